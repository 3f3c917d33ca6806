"""Time this project against what a user would run instead, on the same texts and weights, in one run.

    python benchmarks/run.py --model runs/demo/bundle --text runs/demo/corpus
    python benchmarks/run.py --model models/imdb --text imdb.parquet --rows 200 --job-rows 2000

Every contender lives in a process of its own and waits while another one runs. All run once to warm up, then in turns;
medians are given. Prints a table and writes it as JSON into benchmarks/results/.
"""

import contextlib
import datetime
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import torch
from peers import ENGINES, ONLY_ON, PEERS, engine

from sentiment_core.cli import run_and_exit
from sentiment_core.config import parse, setting
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.runtime import hardware
from sentiment_core.text.arrow import to_texts

RESULTS = Path(__file__).parent / "results"
GEMM_TOKENS = 2_048  # rows of the matrices that the ceiling is measured with
JOB, JOB_SHARDS = "whole job", 12


@dataclass(frozen=True)
class BenchmarkSettings:
    model: str = setting("runs/demo/bundle", "model bundle with a standard head: a folder", "BUNDLE")
    text: str = setting("runs/demo/corpus", "Parquet with the texts: a file or folder", "P")
    text_column: str = setting("text", "column with the text")
    name: str = setting("demo", "what the table and the file in benchmarks/results/ are called")
    rows: int = setting(1_000, "texts that every contender is timed on, taken at random")
    job_rows: int = setting(10_000, "texts that the whole job, Parquet to Parquet, is timed on; 0 leaves it out")
    rounds: int = setting(3, "times that each contender runs, after once to warm up")
    results: str = setting(str(RESULTS), "folder for the JSON file", "DIR")
    only: tuple[str, ...] = setting((), "contenders to run; without it all", "A,B")


def main() -> int:
    settings = parse(BenchmarkSettings, __doc__)
    info = bundle.read_info(settings.model)
    texts = read_texts(settings.text, settings.text_column)
    chosen = np.random.default_rng(0).permutation(len(texts))
    some = [texts[i] for i in chosen[: settings.rows]]
    lengths = bundle.load_tokenizer(settings.model).encode(some)[0].lengths
    device = hardware.device()
    ceiling = gemm_ceiling(settings.model, device)
    elsewhere = ONLY_ON["cpu" if device.type == "cuda" else "cuda"]
    contenders = {
        name: make
        for name, make in (PEERS | ENGINES).items()
        if (not settings.only or name in settings.only) and name not in elsewhere
    }
    timed = time_contenders(contenders, settings, some)
    flop = flop_per_token(settings.model)
    best_pipeline = max(
        (r["rows_per_second"] for name, r in timed.items() if name.startswith("pipeline batch")), default=None
    )
    for found in timed.values():
        found["tokens_per_second"] = found["rows_per_second"] * float(lengths.mean())
        found["padding_share"] = 1 - float(lengths.sum()) / found["computed"] if found["computed"] else None
        found["of_ceiling"] = found["tokens_per_second"] * flop / ceiling
        found["times_pipeline"] = found["rows_per_second"] / best_pipeline if best_pipeline else None
    report = {
        "name": settings.name,
        "date": datetime.date.today().isoformat(),
        "device": hardware.device_name(device),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "settings": {name: getattr(settings, name) for name in ("rows", "rounds", "job_rows", "only")},
        "mean_tokens": float(lengths.mean()),
        "max_length": info.max_length,
        "flop_per_token": flop,
        "gemm_ceiling_flops": ceiling,
        "contenders": timed,
        "libraries": bundle.library_versions(),
    }
    if settings.job_rows:
        report[JOB] = time_job(settings, [texts[i] for i in chosen[: settings.job_rows]])
    print_table(report)
    path = Path(settings.results) / f"{settings.name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {path}")
    return 0


def read_texts(place: str, column: str) -> list[str]:
    """Distinct texts that are no nulls, in the order found."""
    if not os.path.exists(place):
        raise UserError(f"--text {place} does not exist; expected a Parquet file or folder (`make demo` makes one)")
    chunks = pads.dataset(place, partitioning="hive").to_table(columns=[column]).column(0).chunks
    return list(dict.fromkeys(text for chunk in chunks for text in to_texts(chunk) if text and text.strip()))


def flop_per_token(folder: str) -> float:
    """Operations of the linear layers inside the encoder, two for each weight; attention's own are left out."""
    model, _ = bundle.load(folder)
    layers = [m for name, m in model.encoder.named_modules() if isinstance(m, torch.nn.Linear) and "pooler" not in name]
    return 2.0 * sum(layer.weight.numel() for layer in layers)


def gemm_ceiling(folder: str, device: torch.device) -> float:
    """Operations per second of bare matrix products at the model's shapes, in the number type that the engine uses."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    inner = getattr(config, "intermediate_size", None) or config.hidden_dim
    dtype = hardware.compute_dtype(device)
    rates = []
    for inputs, outputs in (
        (config.hidden_size, config.hidden_size),
        (config.hidden_size, inner),
        (inner, config.hidden_size),
    ):
        rows = GEMM_TOKENS if device.type == "cpu" else 16 * GEMM_TOKENS
        a, b = (torch.randn(n, inputs, device=device).to(dtype) for n in (rows, outputs))
        seconds = []
        with torch.inference_mode():
            for _ in range(30):
                started = time.perf_counter()
                for _ in range(5):
                    torch.nn.functional.linear(a, b)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - started)
        rates.append(2 * rows * inputs * outputs * 5 / statistics.median(seconds))
    return statistics.harmonic_mean(rates)


def time_contenders(contenders: dict, settings: BenchmarkSettings, texts: list[str]) -> dict[str, dict]:
    """Median rows per second, tokens computed, peak memory and share of labels equal to the first contender's."""
    context = multiprocessing.get_context("spawn")
    lines, processes = {}, []
    for name in contenders:
        lines[name], end = context.Pipe()
        process = context.Process(target=serve, args=(name, settings.model, end), daemon=name != "Ray's example")
        process.start()
        processes.append(process)
        print(f"loading: {name}", file=sys.stderr)
        if isinstance(problem := lines[name].recv(), str):
            print(f"left out: {name}: {problem}", file=sys.stderr)
            del lines[name]
    seconds: dict[str, list[float]] = {name: [] for name in lines}
    labels, memory, computed = {}, {}, {}
    for round_number in range(settings.rounds + 1):
        for name, line in lines.items():
            line.send(texts)
            elapsed, labels[name], memory[name], computed[name] = line.recv()
            if round_number:  # the first is to warm up
                seconds[name].append(elapsed)
            print(f"round {round_number}: {name}: {len(texts) / elapsed:,.1f} rows/s", file=sys.stderr)
    for line in lines.values():
        line.send(None)
    for process in processes:
        process.join(30)
    expected = next(iter(labels.values()))
    return {
        name: {
            "rows_per_second": len(texts) / statistics.median(seconds[name]),
            "seconds": seconds[name],
            "computed": computed[name],
            "peak_memory_mb": memory[name],
            "same_labels": float((labels[name] == expected).mean()),
        }
        for name in lines
    }


def serve(name: str, folder: str, line) -> None:
    """A contender's process: loads, then times itself on every list of texts it is sent."""
    if name == "Ray's example":
        os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # its actors import `peers`
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        try:
            run = (PEERS | ENGINES)[name](folder)
        except Exception as error:
            line.send(f"{type(error).__name__}: {error}")
            return
        line.send(None)
        while (texts := line.recv()) is not None:
            started = time.perf_counter()
            labels = run(texts)
            elapsed = run.seconds or time.perf_counter() - started
            line.send((elapsed, labels, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, run.computed))


def time_job(settings: BenchmarkSettings, texts: list[str]) -> dict:
    """jobs/score.py on shards of equal size, between two runs of the engine alone on the same rows."""
    script = Path(__file__).parent.parent / "jobs" / "score.py"
    with tempfile.TemporaryDirectory() as place:
        os.mkdir(os.path.join(place, "in"))
        per_shard = -(-len(texts) // JOB_SHARDS)
        for start in range(0, len(texts), per_shard):
            part = texts[start : start + per_shard]
            pq.write_table(
                pa.table({"id": range(start, start + len(part)), "text": part}), f"{place}/in/{start:09}.parquet"
            )
        alone = []
        run = engine(settings.model, None)
        run(texts[:200])
        for turn in range(2):
            started = time.perf_counter()
            run(texts)
            alone.append(len(texts) / (time.perf_counter() - started))
            if turn == 0:
                started = time.perf_counter()
                command = [
                    sys.executable,
                    script,
                    "--model",
                    settings.model,
                    "--input",
                    f"{place}/in",
                    "--out",
                    f"{place}/out",
                ]
                subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
                wall = time.perf_counter() - started
        summary = json.loads(Path(place, "out", "_summary.json").read_text())["run"]
    return {
        "rows": len(texts),
        "wall_seconds": wall,
        "first_task_seconds": summary["first_task_seconds"],
        "rows_per_second_after": summary["rows_per_second_after"],
        "engine_alone": statistics.mean(alone),
        "of_engine": summary["rows_per_second_after"] / statistics.mean(alone),
        "computed_by": summary["computed_by"],
    }


def print_table(report: dict) -> None:
    print(
        f"{report['name']}: {report['settings']['rows']:,} texts of {report['mean_tokens']:.0f} tokens on average; "
        f"{report['device']}, {report['torch_threads']} threads, matrix ceiling "
        f"{report['gemm_ceiling_flops'] / 1e9:,.0f} GFLOP/s"
    )
    heads = ("rows/s", "tokens/s", "x pipeline", "padding", "of ceiling", "same labels", "memory MB")
    print(" " * 24 + "".join(f"{head:>13}" for head in heads))
    for name, found in report["contenders"].items():
        times = f"{found['times_pipeline']:.2f}" if found["times_pipeline"] else ""
        padding = "" if found["padding_share"] is None else f"{100 * found['padding_share']:.0f} %"
        cells = (
            f"{found['rows_per_second']:,.1f}",
            f"{found['tokens_per_second']:,.0f}",
            times,
            padding,
            f"{100 * found['of_ceiling']:.0f} %",
            f"{100 * found['same_labels']:.2f} %",
            f"{found['peak_memory_mb']:,.0f}",
        )
        print(f"{name:24}" + "".join(f"{cell:>13}" for cell in cells))
    if JOB in report:
        job = report[JOB]
        print(
            f"whole job, Parquet to Parquet, {job['rows']:,} rows: {job['wall_seconds']:.1f} s, first task done after "
            f"{job['first_task_seconds']:.1f} s, then {job['rows_per_second_after']:,.1f} rows/s: "
            f"{job['of_engine']:.2f} of the engine alone ({job['engine_alone']:,.1f})"
        )


if __name__ == "__main__":
    run_and_exit(main)
