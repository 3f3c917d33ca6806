"""Measure the intervals of `sentiment-core shares` on simulated corpora, and how fast it sums up large outputs.

python benchmarks/shares.py coverage --to benchmarks/results/shares_coverage.json
python benchmarks/shares.py scan --rows 100000000 --folder /tmp/scored

`coverage` simulates corpora of five groups whose shares of a label are 10 to 90 %, scored by a model that was
calibrated where half of the rows have the label. It draws samples as `sentiment-core sample` does. `scan` sums up an
output folder of as many files as a corpus of that size has, which it writes first.
"""

import argparse
import json
import os
import resource
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from sentiment_core.analysis import strata
from sentiment_core.analysis.estimation import Design, estimate_mean, tune_power
from sentiment_core.analysis.population import estimate_scores
from sentiment_core.analysis.scored_rows import ScoredBatch, open_output
from sentiment_core.analysis.shares import estimate_shares
from sentiment_core.data.shards import Unit
from sentiment_core.model.objective import SingleLabel
from sentiment_core.scoring import outputs
from sentiment_core.scoring.records import Run, RunFile
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.statistics import PassCounts

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
Z = 1.959964  # of a 95 % interval
FILE_ROWS = 32_768  # of a work unit, at most
CORPORA = {20: (500, 0), 50: (2_000, 1), 100: (500, 0)}  # by labelled rows of a group: how many, and the seed


def make_corpus(rng: np.random.Generator, rows: int, strength: float, bias: float) -> tuple[np.ndarray, ScoredBatch]:
    """Return the truth (n,) bool of a corpus with one group a share, and its rows as scored.

    `strength`: distance between the labels in standard deviations. `bias`: shift of all logits, as of a model whose
    calibration is off.
    """
    group = np.repeat(np.arange(len(SHARES)), rows)
    truth = rng.random(len(group)) < np.array(SHARES)[group]
    evidence = np.where(truth, strength / 2, -strength / 2) + rng.normal(size=len(group))
    positive = 1 / (1 + np.exp(-strength * evidence - bias))
    labels = (positive >= 0.5).astype(np.int32)
    confidence = np.maximum(positive, 1 - positive).astype(np.float32)
    groups = [(str(share),) for share in SHARES]
    status = np.zeros(len(group), np.int8)
    return truth, ScoredBatch("", np.arange(len(group)), status, labels, confidence, None, groups, group)


def draw(rng: np.random.Generator, batch: ScoredBatch, rows: int) -> tuple[Design, np.ndarray]:
    """Draw a sample as `sentiment-core sample --for shares --by GROUP --rows ROWS` does."""
    designed = strata.design(strata.count_cells(batch), rows)
    stratum_of = strata.make_lookup(designed)(strata.find_cells(batch))
    members = [
        rng.choice(np.flatnonzero(stratum_of == i), stratum.drawn, replace=False) for i, stratum in enumerate(designed)
    ]
    drawn = np.concatenate(members)
    return Design(stratum_of[drawn], np.array([stratum.rows for stratum in designed], float)), drawn


def measure_coverage(corpora: int, rows: int, labelled: int, strength: float, bias: float, seed: int) -> dict:
    """Return, by share, how often intervals hold it, their width, and what counting and labels alone give."""
    rng = np.random.default_rng(seed)
    held, widths, classical, errors, bare = (np.zeros((corpora, len(SHARES))) for _ in range(5))
    for corpus in range(corpora):
        truth, batch = make_corpus(rng, rows, strength, bias)
        scores = estimate_scores(batch, 2)
        design, drawn = draw(rng, batch, labelled * len(SHARES))
        y, f = truth[drawn].astype(float), scores[drawn, 1]
        power = tune_power(design, np.stack([1 - y, y], axis=1), scores[drawn])
        for i in range(len(SHARES)):
            own, share = batch.group_of == i, truth[batch.group_of == i].mean()
            result = estimate_mean(design, y, f, batch.group_of[drawn] == i, float(scores[own, 1].mean()), power, 0.95)
            held[corpus, i] = result.low <= share <= result.high
            widths[corpus, i] = result.high - result.low
            errors[corpus, i] = result.value - share
            bare[corpus, i] = batch.labels[own].mean() - share
            count = rng.binomial(labelled, share)  # as many labelled rows, drawn without strata
            mean = count / labelled
            spread = np.sqrt(mean * (1 - mean) / labelled + Z**2 / 4 / labelled**2)
            classical[corpus, i] = 2 * Z * spread / (1 + Z**2 / labelled)  # Wilson's
    return {
        "labelled_rows": labelled,
        "strength": strength,
        "bias": bias,
        "corpora": corpora,
        "by_share": {
            str(share): {
                "coverage": round(float(held[:, i].mean()), 3),
                "width": round(float(widths[:, i].mean()), 3),
                "width_of_labels_alone": round(float(classical[:, i].mean()), 3),
                "bias": round(float(errors[:, i].mean()), 4),
                "bias_of_counting": round(float(bare[:, i].mean()), 3),
            }
            for i, share in enumerate(SHARES)
        },
    }


def write_copies(folder: Path, rows: int) -> None:
    """Write an output folder of `rows` rows, the same file again and again."""
    rng = np.random.default_rng(0)
    positive = rng.beta(0.5, 0.5, FILE_ROWS).astype(np.float32)
    probabilities = np.stack([1 - positive, positive], axis=1)
    run = Run("corpus", "digest")
    names = ["negative", "positive"]
    zero = PassCounts.zero({"": names})
    folder.mkdir(parents=True)
    outputs.write_run_file(str(folder), RunFile(run))
    scored = ScoredRows(SingleLabel(), names, np.zeros(FILE_ROWS, np.int8), probabilities, np.full(FILE_ROWS, 20))
    kept = pa.table({"lang": pa.array(rng.choice(["de", "en", "fr"], FILE_ROWS))})
    counts = zero.add_unit({"": scored})
    for number in range(-(-rows // FILE_ROWS)):
        unit = Unit(f"month={number % 12 + 1}/part-{number}.parquet", 0, FILE_ROWS, FILE_ROWS, 1, number, 0)
        path = folder / unit.output
        path.parent.mkdir(exist_ok=True)
        table = outputs.scored_table(unit, kept, {"": scored}, run)
        outputs.commit(str(folder), run, unit, table, counts)


def main() -> None:
    """Run the benchmark that the first argument names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["coverage", "scan"])
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "coverage":
        results = [
            measure_coverage(corpora, 4_000, labelled, strength, bias, seed)
            for labelled, (corpora, seed) in CORPORA.items()
            for strength in (1.5, 2.5, 4.0)
            for bias in (0.0, 1.0)
        ]
    else:
        if not arguments.folder.exists():
            write_copies(arguments.folder, arguments.rows)
        results = []
        for keys in ((), ("month",), ("lang",)):
            started = time.perf_counter()
            opened = open_output(str(arguments.folder))
            made = estimate_shares(opened, keys)
            results.append(
                {
                    "by": keys,
                    "rows": opened.rows,
                    "shares": len(made.shares),
                    "seconds": round(time.perf_counter() - started, 1),
                    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                    "cpus": os.cpu_count(),
                }
            )
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.to:
        arguments.to.write_text(text + "\n")


if __name__ == "__main__":
    main()
