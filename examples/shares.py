"""From the demo's 23,703 scored sentences and 300 labelled ones to a statement with an interval.

    make demo
    .venv/bin/python examples/shares.py

People rated all of the demo's sentences. So this example can fill in the labels that you would ask people for, and
show beside each estimate what is true.
"""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.dataset as pads

from sentiment_core.demo import KINDS, NAMES, TEXTS, read_ratings

DEMO = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
OUT = DEMO.parent / "shares"


def run(*arguments: str) -> None:
    """Run a command of sentiment-core, and show it."""
    print("$ sentiment-core", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "sentiment_core", *arguments], check=True)
    print(flush=True)


def fill_in_labels(sample: Path, labelled: Path, label_of: dict[str, str]) -> None:
    """Write the sample with its labels, as people would do in a spreadsheet. `label_of`: labels by text."""
    with open(sample, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = label_of[row["text"].removeprefix("'")]
    with open(labelled, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Draw a sample, label it, report the shares, and compare them with the truth."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    sample, labelled, report = OUT / "sample.csv", OUT / "labelled.csv", OUT / "shares.json"
    scored, corpus = str(DEMO / "scored"), str(DEMO / "corpus")
    run("sample", "--scored", scored, "--input", corpus, "--by", "kind", "--rows", "300", "--to", str(sample))

    ratings = read_ratings(TEXTS.fetch()).to_pylist()
    fill_in_labels(sample, labelled, {row["text"].removeprefix("'"): row["label"] for row in ratings})
    run("shares", "--scored", scored, "--labelled", str(labelled), "--by", "kind", "--to", str(report))

    rated = Counter((row["kind"], row["label"]) for row in ratings)
    print(f"{'':>22} {'true':>8} {'counted':>9} {'estimate':>9}   interval")
    for share in json.loads(report.read_text()):
        kinds = [share["by"]["kind"]] if share["by"] else list(KINDS)
        rows = sum(rated[kind, label] for kind in kinds for label in NAMES)
        true = sum(rated[kind, share["label"]] for kind in kinds) / rows
        name = f"{share['by'].get('kind', 'all')} {share['label']}"
        numbers = f"{100 * true:6.1f} % {100 * share['counted']:7.1f} % {100 * share['estimate']:7.1f} %"
        print(f"{name:>22} {numbers}   {100 * share['low']:.1f} to {100 * share['high']:.1f} %")
    assert pads.dataset(scored).count_rows() == len(ratings)


if __name__ == "__main__":
    main()
