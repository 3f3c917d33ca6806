"""Time scoring beside what a user would run instead, on the same texts.

    python benchmarks/run.py --model runs/demo/bundle --text runs/demo/corpus
    python benchmarks/run.py --model models/imdb --text imdb.parquet --rows 200 --job-rows 2000

Each contender lives in a process of its own and waits while another one runs. All run once to warm up, then in turns;
the table shows medians. Also writes them as JSON into benchmarks/results/.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from peers import ENGINES, ONLY_ON, PEERS, RAY_EXAMPLE, make_engine
from timing import RESULTS, ContenderFailed, ContenderProcess, flop_per_token, matrix_ceiling, peak_memory_mb, today

from sentiment_core.cli import run_and_exit
from sentiment_core.config import parse, setting
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.runtime import hardware
from sentiment_core.text.arrow import to_texts

JOB, JOB_SHARDS = "whole job", 12
CPU = torch.device("cpu")


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of `run.py`."""

    model: str = setting("runs/demo/bundle", "model bundle with a standard head: a folder", "BUNDLE")
    text: str = setting("runs/demo/corpus", "Parquet with the texts: a file or folder", "P")
    text_column: str = setting("text", "column with the text")
    name: str = setting("demo", "name of the table and of the file in benchmarks/results/")
    rows: int = setting(1_000, "texts that each contender is timed on, drawn at random")
    job_rows: int = setting(10_000, "texts that the whole job, Parquet to Parquet, is timed on; 0 skips it")
    rounds: int = setting(3, "timed passes of each contender")
    results: str = setting(str(RESULTS), "folder for the JSON file", "DIR")
    only: tuple[str, ...] = setting((), "contenders to run; all without it", "A,B")


def main() -> int:
    """Run the benchmark, print its table and write its report."""
    settings = parse(BenchmarkSettings, __doc__)
    info = bundle.read_info(settings.model)
    texts = read_texts(settings.text, settings.text_column)
    order = np.random.default_rng(0).permutation(len(texts))
    timed_texts = [texts[i] for i in order[: settings.rows]]
    lengths = bundle.load_tokenizer(settings.model).encode(timed_texts)[0].lengths
    device = hardware.device()
    flop, ceiling = measure_ceiling(settings.model, device)
    records = time_contenders(select_contenders(settings.only, device), settings, timed_texts)
    add_ratios(records, lengths, flop, ceiling)
    report = {
        "name": settings.name,
        "date": today(),
        "device": hardware.device_name(device),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "settings": {name: getattr(settings, name) for name in ("rows", "rounds", "job_rows", "only")},
        "mean_tokens": float(lengths.mean()),
        "max_length": info.max_length,
        "flop_per_token": flop,
        "gemm_ceiling_flops": ceiling,
        "contenders": records,
        "libraries": bundle.library_versions(),
    }
    if settings.job_rows:
        report[JOB] = time_job(settings, [texts[i] for i in order[: settings.job_rows]])
    print_table(report)
    path = Path(settings.results) / f"{settings.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {path}")
    return 0


def read_texts(path: str, column: str) -> list[str]:
    """Read the distinct texts, without nulls and blanks, in the order of the files."""
    if not os.path.exists(path):
        raise UserError(f"--text {path} does not exist; expected a Parquet file or folder. `make demo` makes one.")
    chunks = pads.dataset(path, partitioning="hive").to_table(columns=[column]).column(0).chunks
    return list(dict.fromkeys(text for chunk in chunks for text in to_texts(chunk) if text and text.strip()))


def measure_ceiling(folder: str, device: torch.device) -> tuple[float, float]:
    """Return the encoder's operations per token and the chip's matrix ceiling.

    The ceiling is measured at the encoder's shapes, in the chip's fastest listed number type.
    """
    model, _ = bundle.load(folder)
    config = model.encoder.config
    inner = getattr(config, "intermediate_size", None) or config.hidden_dim
    return flop_per_token(model.encoder), matrix_ceiling(
        config.hidden_size, inner, hardware.number_types(device)[-1], device
    )


def select_contenders(only: tuple[str, ...], device: torch.device) -> list[str]:
    """Name the contenders that run on this device, or those of `only`."""
    elsewhere = ONLY_ON["cpu" if device.type == "cuda" else "cuda"]
    return [name for name in PEERS | ENGINES if (not only or name in only) and name not in elsewhere]


def add_ratios(records: dict[str, dict], lengths: np.ndarray, flop: float, ceiling: float) -> None:
    """Add tokens per second, padding and ratios to each contender's record."""
    best_pipeline = max(
        (r["rows_per_second"] for name, r in records.items() if name.startswith("pipeline batch")), default=None
    )
    for record in records.values():
        record["tokens_per_second"] = record["rows_per_second"] * float(lengths.mean())
        record["padding_share"] = 1 - float(lengths.sum()) / record["computed"] if record["computed"] else None
        record["of_ceiling"] = record["tokens_per_second"] * flop / ceiling
        record["times_pipeline"] = record["rows_per_second"] / best_pipeline if best_pipeline else None


def time_contenders(names: list[str], settings: BenchmarkSettings, texts: list[str]) -> dict[str, dict]:
    """Time contenders in turns.

    Returns for each its median rows per second, tokens computed, peak memory and share of labels equal to the first
    one's. A contender that fails is left out.
    """
    processes: dict[str, ContenderProcess] = {}
    for name in names:
        say(f"loading: {name}")
        # Ray starts processes, which a daemon may not
        process = ContenderProcess(make_timed, name, settings.model, daemon=name != RAY_EXAMPLE)
        try:
            process.wait_until_made()
            processes[name] = process
        except ContenderFailed as error:
            say(f"left out: {name}: {error}")
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    labels, memory, computed = {}, {}, {}
    for round_number in range(settings.rounds + 1):
        for name in list(processes):
            try:
                elapsed, labels[name], memory[name], computed[name] = processes[name].call(texts)
            except ContenderFailed as error:
                say(f"left out: {name}: {error}")
                processes.pop(name).kill()
                continue
            if round_number:  # the first is to warm up
                seconds[name].append(elapsed)
            say(f"round {round_number}: {name}: {len(texts) / elapsed:,.1f} rows/s")
    for process in processes.values():
        process.close()
    expected = next((labels[name] for name in processes), None)
    return {
        name: {
            "rows_per_second": len(texts) / statistics.median(seconds[name]),
            "seconds": seconds[name],
            "computed": computed[name],
            "peak_memory_mb": memory[name],
            "same_labels": float((labels[name] == expected).mean()),
        }
        for name in processes
    }


def make_timed(name: str, folder: str) -> Callable[[list[str]], tuple]:
    """Make a contender, in its own process, as a function that times itself.

    The function returns seconds, labels, peak memory in MB and computed tokens.
    """
    if name == RAY_EXAMPLE:
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # its actors import `peers`
    contender = (PEERS | ENGINES)[name](folder)

    def run(texts: list[str]) -> tuple[float, np.ndarray, float, int | None]:
        started = time.perf_counter()
        labels = contender(texts)
        elapsed = contender.seconds or time.perf_counter() - started
        return elapsed, labels, peak_memory_mb(CPU), contender.computed

    return run


def time_job(settings: BenchmarkSettings, texts: list[str]) -> dict:
    """Time jobs/score.py on shards of equal size.

    The engine alone computes the same rows before and after.
    """
    script = Path(__file__).parent.parent / "jobs" / "score.py"
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "in"))
        shard_rows = -(-len(texts) // JOB_SHARDS)
        for start in range(0, len(texts), shard_rows):
            shard = texts[start : start + shard_rows]
            pq.write_table(
                pa.table({"id": range(start, start + len(shard)), "text": shard}), f"{folder}/in/{start:09}.parquet"
            )
        command = [sys.executable, str(script), "--model", settings.model]
        command += ["--input", f"{folder}/in", "--out", f"{folder}/out"]
        engine = make_engine(settings.model, None)
        engine(texts[:200])
        rate_before = measure_rate(engine, texts)
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.perf_counter() - started
        rate_alone = statistics.mean([rate_before, measure_rate(engine, texts)])
        summary = json.loads(Path(folder, "out", "_summary.json").read_text())["run"]
    return {
        "rows": len(texts),
        "wall_seconds": wall,
        "first_task_seconds": summary["first_task_seconds"],
        "rows_per_second_after": summary["rows_per_second_after"],
        "engine_alone": rate_alone,
        "of_engine": summary["rows_per_second_after"] / rate_alone,
        "computed_by": summary["computed_by"],
    }


def measure_rate(contender: Callable[[list[str]], np.ndarray], texts: list[str]) -> float:
    """Measure a contender's rows per second."""
    started = time.perf_counter()
    contender(texts)
    return len(texts) / (time.perf_counter() - started)


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr)


def print_table(report: dict) -> None:
    """Print the report's contenders, one a line, and the whole job."""
    print(
        f"{report['name']}: {report['settings']['rows']:,} texts of {report['mean_tokens']:.0f} tokens on average; "
        f"{report['device']}, {report['torch_threads']} threads, matrix ceiling "
        f"{report['gemm_ceiling_flops'] / 1e9:,.0f} GFLOP/s"
    )
    heads = ("rows/s", "tokens/s", "x pipeline", "padding", "of ceiling", "same labels", "memory MB")
    print(" " * 24 + "".join(f"{head:>13}" for head in heads))
    for name, record in report["contenders"].items():
        times = f"{record['times_pipeline']:.2f}" if record["times_pipeline"] else ""
        padding = "" if record["padding_share"] is None else f"{100 * record['padding_share']:.0f} %"
        cells = (
            f"{record['rows_per_second']:,.1f}",
            f"{record['tokens_per_second']:,.0f}",
            times,
            padding,
            f"{100 * record['of_ceiling']:.0f} %",
            f"{100 * record['same_labels']:.2f} %",
            f"{record['peak_memory_mb']:,.0f}",
        )
        print(f"{name:24}" + "".join(f"{cell:>13}" for cell in cells))
    if JOB in report:
        job = report[JOB]
        print(
            f"whole job, Parquet to Parquet, {job['rows']:,} rows: {job['wall_seconds']:.1f} s. The first task took "
            f"{job['first_task_seconds']:.1f} s, then {job['rows_per_second_after']:,.1f} rows/s: "
            f"{job['of_engine']:.2f} of the engine alone ({job['engine_alone']:,.1f})"
        )


if __name__ == "__main__":
    run_and_exit(main)
