"""Run whole jobs through Ray on this machine: `jobs/score.py` and `jobs/train.py`."""

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpu_steps.bench import Bench
from gpu_steps.inputs import CLASSES, draw_texts

REPO = Path(__file__).resolve().parents[2]
SHAPE = "minilm-l6"
DISTINCT_TEXTS, SHARDS = 200_000, 24
JOB_ROWS, TRAIN_ROWS = 1_500_000, 20_000
SMALL_TEXTS, SMALL_JOB_ROWS = 120, 400
LINES = 3  # of a failed job's errors


def run_score(bench: Bench) -> None:
    """Record the rate of scoring Parquet into Parquet."""
    bench.measure("score", score_corpus, bench)


def run_train(bench: Bench) -> None:
    """Record the rate of training into a bundle."""
    bench.measure("train", train_bundle, bench)


def score_corpus(bench: Bench) -> dict[str, Any]:
    """Score shards of equal size, drawn from fewer texts; return what the summary says."""
    model, source, out = bench.bundle(SHAPE), bench.folder / "corpus", bench.folder / "scored"
    rows = SMALL_JOB_ROWS if bench.is_small else JOB_ROWS
    texts = _draw(bench, DISTINCT_TEXTS)
    source.mkdir()
    for number, picked in enumerate(np.array_split(np.random.default_rng(0).integers(0, len(texts), rows), SHARDS)):
        pq.write_table(pa.table({"id": picked, "text": texts.take(pa.array(picked))}), source / f"{number:03}.parquet")
    with sampled_use(bench) as use:
        _run_job(bench, "score", "--model", model, "--input", str(source), "--out", str(out))
    run = json.loads((out / "_summary.json").read_text())["run"]
    return {name: run[name] for name in ("rows", "seconds", "first_task_seconds", "rows_per_second_after")} | {
        "busy_seconds": run["busy_seconds"],
        "workers_busy_share": run["workers_busy_share"],
        "computed_by": run["computed_by"],
        **use,
    }


def train_bundle(bench: Bench) -> dict[str, Any]:
    """Train one epoch on texts with random labels; return the steps' rate."""
    model, data, out = bench.bundle(SHAPE), bench.folder / "labelled.parquet", bench.folder / "trained"
    texts = _draw(bench, TRAIN_ROWS)
    labels = pa.array([f"label_{number % CLASSES}" for number in range(len(texts))])
    pq.write_table(pa.table({"text": texts, "label": labels}), data)
    flags = ("--recipe", "none", "--epochs", "1", "--batch-size", "128", "--max-length", str(bench.scale.longest))
    with sampled_use(bench) as use:
        _run_job(bench, "train", "--data", str(data), "--model", model, "--out", str(out), *flags)
    training = json.loads((out / "sentiment.json").read_text())["training"]
    return {name: training[name] for name in ("rows_per_second", "seconds", "device", "dtype")} | use


def _draw(bench: Bench, rows: int) -> pa.Array:
    """Draw texts; few where everything is small."""
    rows = SMALL_TEXTS if bench.is_small else rows
    return pa.array(draw_texts(bench.bundle(SHAPE), rows, bench.scale.longest))


def _run_job(bench: Bench, name: str, *flags: str) -> None:
    command = [sys.executable, str(REPO / "jobs" / f"{name}.py"), *flags]
    seconds = max(1.0, bench.ends - time.monotonic())
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {' '.join(done.stderr.strip().splitlines()[-LINES:])}")


@contextlib.contextmanager
def sampled_use(bench: Bench) -> Iterator[dict[str, Any]]:
    """Ask once a second how busy the GPU is inside the block; the figures are there behind it."""
    figures: dict[str, Any] = {}
    if not bench.is_cuda:
        yield figures
        return
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--loop=1", "--id=0"]
    sampler = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield figures
    finally:
        sampler.terminate()
        percents = [int(line) for line in sampler.communicate()[0].split() if line.isdigit()]
        figures["gpu_use_percents"] = percents
        figures["gpu_use_percent_while_used"] = statistics.mean([percent for percent in percents if percent] or [0])
