"""Time one pass with several models beside runs with one model each, start-up included.

    python benchmarks/several_models.py --models models/reviews,models/topics --text sentences.parquet

The commands run in turns, each into a new folder; the figures are medians. Says where the time of the pass goes,
and which part of the separate runs it does once. Also writes the figures as JSON into benchmarks/results/.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from timing import RESULTS, today

from sentiment_core.cli import run_and_exit
from sentiment_core.config import check, parse, setting
from sentiment_core.model import bundle
from sentiment_core.runtime import hardware

SCRIPT = Path(__file__).parent.parent / "jobs" / "score.py"
NAMES = ("first", "second", "third", "fourth")
TOGETHER = "together"


@dataclass(frozen=True)
class SeveralModelsSettings:
    """Settings of `several_models.py`."""

    models: tuple[str, ...] = setting(("runs/demo/bundle",) * 2, "two to four models: folders", "A,B")
    text: str = setting("runs/demo/corpus", "Parquet with the texts: a file or folder; few texts are repeated", "P")
    text_column: str = setting("text", "column with the text")
    rows: int = setting(4_000, "texts to score")
    shards: int = setting(4, "shards that they are in")
    rounds: int = setting(3, "timed runs of each command")
    name: str = setting("several_models", "name of the file in benchmarks/results/")
    results: str = setting(str(RESULTS), "folder for the JSON file", "DIR")

    def __post_init__(self) -> None:
        check(2 <= len(self.models) <= len(NAMES), "models", ",".join(self.models), "two to four models")


def main() -> int:
    """Run the benchmark, print its figures and write its report."""
    settings = parse(SeveralModelsSettings, __doc__)
    models = dict(zip(NAMES, settings.models, strict=False))
    commands = {**models, TOGETHER: ",".join(f"{name}={path}" for name, path in models.items())}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(settings, Path(folder, "in"))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for number in range(settings.rounds):
            for name, model in commands.items():
                runs[name].append(time_run(settings, model, Path(folder), Path(folder, f"{name}-{number}")))
                print(f"round {number + 1}: {name}: {runs[name][-1]['wall seconds']:.1f} s", file=sys.stderr)
    report = summarize(settings, runs)
    print_report(report)
    path = Path(settings.results, f"{settings.name}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {path}")
    return 0


def write_shards(settings: SeveralModelsSettings, folder: Path) -> None:
    """Write the texts to score."""
    folder.mkdir()
    table = pads.dataset(settings.text, partitioning="hive").to_table(columns=[settings.text_column])
    texts = table.column(0).drop_null().cast(pa.string()).to_pylist()
    for shard in range(settings.shards):
        rows = range(shard, settings.rows, settings.shards)
        pq.write_table(
            pa.table({settings.text_column: [texts[i % len(texts)] for i in rows]}), folder / f"{shard}.parquet"
        )


def time_run(settings: SeveralModelsSettings, model: str, folder: Path, out: Path) -> dict[str, float]:
    """Score with a model, or with several, as a process of its own; return its seconds and those of its parts."""
    command = [sys.executable, SCRIPT, "--model", model, "--input", folder / "in", "--out", out]
    command += ["--text-column", settings.text_column]
    started = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    run = json.loads((out / "_summary.json").read_text())["run"]
    return {
        "wall seconds": wall,
        "first task seconds": run["first_task_seconds"],  # start-up of Ray and the actors, and loading the models
        **{f"busy: {stage}": seconds for stage, seconds in run["busy_seconds"].items()},
    }


def summarize(settings: SeveralModelsSettings, runs: dict[str, list[dict[str, float]]]) -> dict:
    """Return the report: medians by command, and how the pass compares with the sum of the separate runs."""
    medians = {
        name: {part: statistics.median(run[part] for run in own) for part in own[0]} for name, own in runs.items()
    }
    separate = {part: sum(medians[name][part] for name in medians if name != TOGETHER) for part in medians[TOGETHER]}
    return {
        "name": settings.name,
        "date": today(),
        "device": hardware.device_name(hardware.device()),
        "cpus": os.cpu_count(),
        "settings": {name: getattr(settings, name) for name in ("rows", "shards", "rounds")},
        "seconds": medians,
        "sum of separate runs": separate,
        "of the sum": {part: medians[TOGETHER][part] / seconds for part, seconds in separate.items() if seconds},
        "runs": runs,
        "libraries": bundle.library_versions(),
    }


def print_report(report: dict) -> None:
    """Print a line for each part of the time."""
    names = [name for name in report["seconds"] if name != TOGETHER]
    print(f"{'':28}" + "".join(f"{name:>10}" for name in (*names, "sum", TOGETHER)) + f"{'of the sum':>12}")
    for part, together in report["seconds"][TOGETHER].items():
        seconds = [report["seconds"][name][part] for name in names]
        ratio = report["of the sum"].get(part, float("nan"))
        print(
            f"{part:28}" + "".join(f"{value:10.2f}" for value in (*seconds, sum(seconds), together)) + f"{ratio:12.2f}"
        )


if __name__ == "__main__":
    run_and_exit(main)
