"""Check the engine on this GPU against float32 and time it beside its peers.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --minutes 3 --shapes minilm-l6 --only "engine packed,padded half sorted"
    python benchmarks/gpu.py --small          # on any CPU: small models, to try the script itself

Three BERT shapes with random weights, at two lengths of text, as token ids. For each shape: how far the probabilities
of each contender lie from plain torch in float32, and whether a row depends on the rows beside it. Then median rates,
measured in turns, and training steps. A measurement that fails is recorded with its reason; the others go on.
Needs neither a network nor Ray. Prints tables and writes one JSON file. Exit code 1: probabilities are wrong, or
none could be checked.

No GPU has run this yet: benchmarks/results/ holds no figure of it.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_contenders import TRAIN_BATCH_ROWS, Contender, EngineScorer, PaddedScorer, Trainer
from gpu_inputs import SHAPES, SMALL_SHAPES, TEXT_LENGTHS, Sample, Shape, draw_check_lists
from gpu_reference import Reference
from timing import RESULTS, ContenderFailed, ContenderProcess, installed_versions, today

from sentiment_core.cli import run_and_exit
from sentiment_core.config import check, parse, setting
from sentiment_core.errors import EXIT_FAULT, EXIT_OK

SAMPLE_TOKENS, SMALL_SAMPLE_TOKENS = 8_000_000, 2_000  # a second of work for the smallest shape on an H100
CHECK_ROWS, SMALL_CHECK_ROWS = (200, 24), (8, 1)  # sentences and reviews
SMALL_CHECK_LENGTH, SMALL_CEILING_TOKENS = 64, 64
# What is right: the engine's own tolerance for bfloat16 and what verify allows between two runs. And rounding must move
# rows less than lost isolation would.
TOLERANCE, ALONE_TOLERANCE, SHARE_OF_LOST_ISOLATION = 0.05, 0.02, 0.25
LONGEST_PASS_S, SHORTEST_PASS_S = 1.5, 0.05
LOADING_SHARE, TRAINING_SHARE = 0.6, 0.15  # of a shape's time
LEAST_LIMIT_S = 30.0  # that any call may take, however late it is
CHOOSES_ITSELF = "engine auto"  # loads alone: it may choose by timing

REFERENCE = "float32 reference"
ENGINE_BACKENDS: dict[str, str | None] = {
    "engine compiled": "compiled",
    "engine packed": "packed",
    "engine torch": "torch",
    "engine auto": None,
}
PADDED: dict[str, tuple[str | None, int | None, bool]] = {
    "padded float32 batch 32": ("float32", 32, False),
    "padded half": (None, None, False),
    "padded half sorted": (None, None, True),
}
TRAINING = {"training": TRAIN_BATCH_ROWS, "training batch 256": 256}
CONTENDERS: dict[str, tuple[Callable[..., Contender], tuple]] = {
    REFERENCE: (Reference, ()),
    **{name: (EngineScorer, (backend,)) for name, backend in ENGINE_BACKENDS.items()},
    **{name: (PaddedScorer, arguments) for name, arguments in PADDED.items()},
    **{name: (Trainer, (rows,)) for name, rows in TRAINING.items()},
}


@dataclass(frozen=True)
class GpuBenchmarkSettings:
    """Settings of `gpu.py`."""

    minutes: float = setting(8.0, "time for everything; with less of it passes get shorter and rounds fewer")
    shapes: tuple[str, ...] = setting(tuple(SHAPES), f"shapes to measure, of {', '.join(SHAPES)}", "A,B")
    only: tuple[str, ...] = setting((), "contenders to run; all without it", "A,B")
    rounds: int = setting(3, "timed passes of each contender")
    small: bool = setting(False, "small models and few rows, to try the script on a CPU")
    out: str | None = setting(None, "JSON file (default: benchmarks/results/gpu_DEVICE_DATE.json)", "FILE")

    def __post_init__(self) -> None:
        check(self.minutes > 0, "minutes", self.minutes, "more than 0")
        check(self.rounds > 0, "rounds", self.rounds, "at least 1")
        check(set(self.shapes) <= set(SHAPES), "shapes", ",".join(self.shapes), f"some of {', '.join(SHAPES)}")
        names = [name for name in CONTENDERS if name != REFERENCE]
        check(set(self.only) <= set(names), "only", ",".join(self.only), f"some of {', '.join(names)}")


def main() -> int:
    """Run the benchmark; return the exit code."""
    settings = parse(GpuBenchmarkSettings, __doc__)
    benchmark = GpuBenchmark(settings)
    try:
        benchmark.run()
    finally:
        benchmark.close()
    print_tables(benchmark.report)
    print(f"written: {benchmark.path}")
    return EXIT_OK if benchmark.checked and not benchmark.wrong else EXIT_FAULT


class GpuBenchmark:
    """A run: the contenders' processes, the time that is left, and the report so far."""

    def __init__(self, settings: GpuBenchmarkSettings) -> None:
        self.settings = settings
        if settings.small:  # threads that wait for each other cost more than the models
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.started = time.monotonic()
        self.deadline = self.started + 60 * settings.minutes
        self.processes: dict[str, ContenderProcess] = {}
        self.checked = 0  # contenders whose probabilities were compared
        self.wrong: list[str] = []
        self.report: dict[str, Any] = {
            "name": "gpu",
            "date": today(),
            **describe_driver(),
            "cpus": os.cpu_count(),
            "libraries": installed_versions(),
            "settings": asdict(settings),
            "shapes": {},
            "failures": [],
        }
        self.report |= self._ask("machine", [REFERENCE], ("machine",), 120).get(REFERENCE, {"device": "unknown"})
        device = re.sub(r"[^a-z0-9]+", "_", self.report["device"].lower()).strip("_")
        self.path = Path(settings.out or RESULTS / f"gpu_{device}_{today()}.json")

    def run(self) -> None:
        """Measure all shapes; write the report after each, in case the run is stopped."""
        for i, name in enumerate(self.settings.shapes):
            shape = (SMALL_SHAPES if self.settings.small else SHAPES)[name]
            share = (self.deadline - time.monotonic()) / (len(self.settings.shapes) - i)
            with tempfile.TemporaryDirectory() as folder:
                self._measure_shape(name, shape, folder, max(LEAST_LIMIT_S, share))
            self.report["seconds"] = time.monotonic() - self.started
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.report, indent=2) + "\n")

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.kill()

    def _measure_shape(self, name: str, shape: Shape, folder: str, seconds: float) -> None:
        """Measure one shape within about so many seconds."""
        ends = time.monotonic() + seconds
        record: dict[str, Any] = {"correctness": {}, "lengths": {}, "training": {}}
        self.report["shapes"][name] = record
        facts = self._ask(name, [REFERENCE], ("make_model", shape, folder), seconds)
        if not facts:
            return
        record |= facts[REFERENCE]
        ceiling_tokens = SMALL_CEILING_TOKENS if self.settings.small else None
        ceiling = self._ask(name, [REFERENCE], ("ceiling", shape, ceiling_tokens), LEAST_LIMIT_S)
        record["matrix_ceiling_flops"] = ceiling.get(REFERENCE, {})
        lists = draw_check_lists(*CHECK_ROWS)
        if self.settings.small:
            lists = draw_check_lists(*SMALL_CHECK_ROWS, SMALL_CHECK_LENGTH)
        expected = self._ask(name, [REFERENCE], ("check", lists), LOADING_SHARE * seconds)
        self._ask(name, [REFERENCE], ("unload",), LEAST_LIMIT_S)

        scorers = self._load(name, [*ENGINE_BACKENDS, *PADDED], folder, LOADING_SHARE * seconds, record)
        if expected:
            probabilities, record["lost_isolation_difference"] = expected[REFERENCE]
            for scorer, answer in self._ask(name, scorers, ("check", lists), LEAST_LIMIT_S).items():
                record["correctness"][scorer] = self._compare(name, scorer, probabilities, *answer)
        for i, length in enumerate(TEXT_LENGTHS):
            left = ends - time.monotonic() - TRAINING_SHARE * seconds
            record["lengths"][length] = self._time(name, scorers, length, left / (len(TEXT_LENGTHS) - i))
            requests = ("time_requests", self._sample(length))
            for scorer, medians in self._ask(name, scorers, requests, LEAST_LIMIT_S).items():
                record["lengths"][length]["contenders"][scorer]["request_ms"] = medians
        self._ask(name, scorers, ("unload",), LEAST_LIMIT_S)

        trainers = self._load(name, [*TRAINING], folder, LOADING_SHARE * seconds, record)
        for length in TEXT_LENGTHS:
            record["training"][length] = self._time(name, trainers, length, TRAINING_SHARE * seconds / 2)
        self._ask(name, trainers, ("unload",), LEAST_LIMIT_S)
        add_ratios(record, self.report.get("half_dtype", ""))

    def _load(self, shape: str, names: list[str], folder: str, limit_s: float, record: dict) -> list[str]:
        """Load the model in these contenders' processes; return those that could."""
        names = [name for name in names if not self.settings.only or name in self.settings.only]
        loaded = self._ask(shape, [n for n in names if n != CHOOSES_ITSELF], ("load", folder), limit_s, at_once=True)
        loaded |= self._ask(shape, [n for n in names if n == CHOOSES_ITSELF], ("load", folder), limit_s)
        record.setdefault("loaded", {}).update(loaded)
        return [name for name in names if name in loaded]

    def _sample(self, length: str) -> Sample:
        """Return the sample of one length of text."""
        tokens = SMALL_SAMPLE_TOKENS if self.settings.small else SAMPLE_TOKENS
        return Sample(length, max(16, int(tokens / TEXT_LENGTHS[length].mean)))

    def _time(self, shape: str, names: list[str], length: str, seconds: float) -> dict[str, Any]:
        """Time contenders in turns; return each one's passes. There is one round at least."""
        ends = time.monotonic() + seconds
        # a pass has a warm-up, and a contender's first pass comes twice and tries batch sizes
        pass_seconds = seconds / max(1, len(names)) / (1.5 * self.settings.rounds + 2)
        pass_seconds = min(LONGEST_PASS_S, max(SHORTEST_PASS_S, pass_seconds))
        if self.settings.small:
            pass_seconds = SHORTEST_PASS_S
        passes: dict[str, list[dict]] = {name: [] for name in names}
        for number in range(self.settings.rounds):
            if number and time.monotonic() > ends:
                break
            running = [name for name in names if name in self.processes]
            asked = ("measure", self._sample(length), pass_seconds)
            for name, facts in self._ask(shape, running, asked, LEAST_LIMIT_S + 10 * pass_seconds).items():
                passes[name].append(facts)
                rate = facts["tokens"] / facts["seconds"]
                say(f"{shape}, {length}, round {number + 1}: {name}: {rate:,.0f} tokens/s")
        return {"contenders": {name: summarize(p) for name, p in passes.items() if p}}

    def _compare(
        self, shape: str, name: str, expected: np.ndarray, together: np.ndarray, alone: np.ndarray
    ) -> dict[str, Any]:
        """Compare probabilities with float32's, and rows alone with rows together."""
        differences = np.abs(together - expected).max(axis=1)
        by_company = float(np.abs(alone - together[: len(alone)]).max())
        lost_isolation = self.report["shapes"][shape]["lost_isolation_difference"]
        right = (
            bool(differences.max() <= TOLERANCE)  # not so where it is no number
            and bool(differences.mean() <= SHARE_OF_LOST_ISOLATION * lost_isolation)
            and by_company <= ALONE_TOLERANCE
        )
        self.checked += 1
        if not right:
            self.wrong.append(f"{shape}: {name}")
        return {
            "right": right,
            "rows": len(expected),
            "largest_difference": float(differences.max()),
            "mean_difference": float(differences.mean()),
            "same_labels": float((together.argmax(axis=1) == expected.argmax(axis=1)).mean()),
            "alone_difference": by_company,
        }

    def _ask(self, stage: str, names: list[str], call: tuple, limit_s: float, at_once: bool = False) -> dict[str, Any]:
        """Call contenders in turn, or all at once; return the answers by name.

        Those without an answer are recorded as failures. Their processes end, and start again when they are next asked.
        """
        answers = {}
        limit_s = max(LEAST_LIMIT_S, limit_s)
        asked = []
        for name in names:
            if name not in self.processes and call[0] not in ("machine", "load", "make_model"):
                continue  # failed at an earlier step of this shape
            asked.append(name)
            if at_once:
                self._process(name).send(*call)
        for name in asked:
            process = self._process(name)
            if not at_once:
                process.send(*call)
            try:
                answers[name] = process.receive(limit_s)
            except ContenderFailed as error:
                process.kill()
                del self.processes[name]
                self.report["failures"].append(
                    {"shape": stage, "contender": name, "step": call[0], "reason": str(error)}
                )
                say(f"{stage}: {name}: {call[0]} failed: {error}")
        return answers

    def _process(self, name: str) -> ContenderProcess:
        """Return the contender's process; start it if there is none."""
        if name not in self.processes:
            self.processes[name] = ContenderProcess(make_contender, name)
        return self.processes[name]


def make_contender(name: str) -> Contender:
    """Make the contender of this name."""
    make, arguments = CONTENDERS[name]
    return make(*arguments)


def describe_driver() -> dict[str, str]:
    """Ask nvidia-smi for driver, power limit and clock, or say why it cannot tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        driver, power_limit, clock = (part.strip() for part in done.stdout.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return {"driver": f"unknown: {type(error).__name__}"}
    return {"driver": driver, "power_limit": power_limit, "clock": clock}


def summarize(passes: list[dict]) -> dict[str, Any]:
    """Summarize a contender's passes: median rates and facts of the last pass."""
    last = passes[-1]
    seconds = [facts["seconds"] for facts in passes]
    median = statistics.median(seconds)
    tokens = last.get("used_tokens", last["tokens"])
    return {
        "rows_per_second": last["rows"] / median,
        "tokens_per_second": tokens / median,
        "padding_share": last["padding"] / (tokens + last["padding"]),
        **{name: last[name] for name in ("rows", "steps", "batch_size", "peak_memory_mb") if name in last},
        "seconds": seconds,
    }


def add_ratios(record: dict[str, Any], half_dtype: str) -> None:
    """Add each contender's share of the ceiling and ratio to the best padded one."""
    ceiling = record["matrix_ceiling_flops"].get(half_dtype)
    for kind in ("lengths", "training"):
        for measured in record[kind].values():
            contenders = measured["contenders"]
            best = max((contenders[n]["tokens_per_second"] for n in PADDED if n in contenders), default=None)
            operations = record["flop_per_token"] * (1 if kind == "lengths" else 3)  # backward is twice forward
            for facts in contenders.values():
                rate = facts["tokens_per_second"]
                facts["of_ceiling"] = rate * operations / ceiling if isinstance(ceiling, float) else None
                facts["times_best_padded"] = rate / best if best else None


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def print_tables(report: dict[str, Any]) -> None:
    """Print what the report says, shape by shape."""
    print(f"{report['device']}, driver {report['driver']}, torch {report['libraries'].get('torch')}, {report['date']}")
    for name, record in report["shapes"].items():
        if "hidden" not in record:
            continue
        ceilings = [
            f"{dtype} {rate / 1e12:.3g} TFLOP/s"
            for dtype, rate in record["matrix_ceiling_flops"].items()
            if isinstance(rate, float)
        ]
        print(f"\n{name}: {record['layers']} layers of {record['hidden']}; matrix ceiling {', '.join(ceilings)}")
        _print_row("probabilities beside float32", "largest", "mean", "same labels", "row alone", "")
        for contender, facts in record["correctness"].items():
            _print_row(
                f"  {contender}",
                f"{facts['largest_difference']:.4f}",
                f"{facts['mean_difference']:.4f}",
                f"{100 * facts['same_labels']:.1f} %",
                f"{facts['alone_difference']:.4f}",
                "" if facts["right"] else "WRONG",
            )
        for kind, title in (("lengths", ""), ("training", "training on ")):
            for length, measured in record[kind].items():
                _print_row(
                    title + length, "rows/s", "tokens/s", "of ceiling", "x padded", "padding", "MB", "1 row ms", "by"
                )
                for contender, facts in measured["contenders"].items():
                    _print_rate(contender, facts, record["loaded"][contender]["computed_by"])
    for failure in report["failures"]:
        print(f"failed: {failure['shape']}: {failure['contender']}: {failure['step']}: {failure['reason']}")


def _print_rate(contender: str, facts: dict[str, Any], computed_by: str) -> None:
    """Print a contender's line of a table of rates."""
    _print_row(
        f"  {contender}",
        f"{facts['rows_per_second']:,.0f}",
        f"{facts['tokens_per_second']:,.0f}",
        f"{100 * facts['of_ceiling']:.0f} %" if facts["of_ceiling"] is not None else "",
        f"{facts['times_best_padded']:.2f}" if facts["times_best_padded"] is not None else "",
        f"{100 * facts['padding_share']:.0f} %",
        f"{facts['peak_memory_mb']:,.0f}",
        f"{facts['request_ms']['1']:.1f}" if "request_ms" in facts else "",
        computed_by,
    )


def _print_row(title: str, *cells: str) -> None:
    """Print a line of a table."""
    print(f"{title:30}" + "".join(f"{cell:>13}" for cell in cells[:-1]) + f"  {cells[-1]}")


if __name__ == "__main__":
    run_and_exit(main)
