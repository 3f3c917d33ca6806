"""Check the engine and the training loop on this GPU against float32, and time them.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --minutes 3 --only machine,attention,families
    python benchmarks/gpu.py --encoder all-MiniLM-L6-v2     # a model folder; without it all weights are random
    python benchmarks/gpu.py --jobs                         # with Ray: whole jobs
    python benchmarks/gpu.py --small                        # on any CPU, to try the script itself

Runs the steps of the table below, each with a time limit. A step that fails, hangs or kills its process leaves its
reason and the figures that it had; the next one goes on in a new process. Needs neither a network nor, without --jobs,
Ray. Appends a line of JSON for each step to OUT.jsonl, and writes all of them to OUT in the end. Exit code 1: something
is wrong, or nothing could be checked.

No GPU has run this yet: benchmarks/results/ holds no figure of it.
"""

import importlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timing import RESULTS, ContenderFailed, ContenderProcess, today

from sentiment_core.cli import run_and_exit
from sentiment_core.config import check, parse, setting
from sentiment_core.errors import EXIT_FAULT, EXIT_OK

LEAST_S = 5.0  # that a step must have left to begin
CPU_FACTOR = 4  # of the time limits with --small: CPUs may be slow and busy


@dataclass(frozen=True)
class Step:
    """A step: the question it answers, its function in `gpu_steps`, and its time limit."""

    question: str
    function: str  # module:name
    seconds: float


STEPS = {
    "machine": Step("Which GPU, driver and libraries?", "machine:describe_machine", 20),
    "ceilings": Step("What can the chip do at most?", "machine:measure_ceilings", 15),
    "attention": Step("Is packed attention right, and which kernel is faster?", "attention:check_attention", 35),
    "families": Step("Are all encoder families right?", "correctness:check_families", 50),
    "engine": Step("How fast is a scoring task, and where does the GPU wait?", "engine:measure_tasks", 75),
    "compiled": Step("What does compiling cost and gain?", "compiled:measure_compiled", 120),
    "memory": Step("Does the engine get by with little memory?", "memory:check_memory", 25),
    "graphs": Step("Would CUDA graphs do instead of compiling?", "compiled:measure_graphs", 30),
    "company": Step("Do rows depend on what is beside them?", "correctness:check_company", 20),
    "peers": Step("How fast is it beside what users would run instead?", "texts:compare_peers", 80),
    "training": Step("Is the training loop right and fast without Ray?", "training:measure_training", 70),
    "sizes": Step("Do larger tasks or a second engine help?", "engine:measure_task_sizes", 45),
}
JOBS = {
    "score job": Step("How fast is jobs/score.py through Ray, and how busy the GPU?", "jobs:run_score", 300),
    "train job": Step("How fast is jobs/train.py through Ray?", "jobs:run_train", 180),
}


@dataclass(frozen=True)
class GpuBenchmarkSettings:
    """Settings of `gpu.py`."""

    minutes: float = setting(7.8, "time for everything; a step that does not fit any more is left out")
    only: tuple[str, ...] = setting((), "steps to run; all without it", "A,B")
    jobs: bool = setting(False, "run whole jobs through Ray instead of the steps")
    encoder: str | None = setting(None, "trained encoder for the shape minilm-l6: a model folder", "DIR")
    small: bool = setting(False, "small models and few rows, to try the script on a CPU")
    out: str | None = setting(None, "JSON file (default: benchmarks/results/gpu_DEVICE_DATE.json)", "FILE")

    def __post_init__(self) -> None:
        check(self.minutes > 0, "minutes", self.minutes, "more than 0")
        names = list(self.table)
        check(set(self.only) <= set(names), "only", ",".join(self.only), f"some of {', '.join(names)}")

    @property
    def table(self) -> dict[str, Step]:
        """The steps to choose from."""
        return JOBS if self.jobs else STEPS


def main() -> int:
    """Run the steps; return the exit code."""
    settings = parse(GpuBenchmarkSettings, __doc__)
    if settings.small:  # threads that wait for each other cost more than the models
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="sentiment-core-gpu-") as folder:
        runner = Runner(settings, folder)
        try:
            runner.run()
        finally:
            runner.close()
    wrong, checked = judge(runner.records)
    report = {
        "name": "gpu",
        "date": today(),
        "device": runner.device,
        "settings": asdict(settings),
        "seconds": time.monotonic() - runner.started,
        "wrong": wrong,
        "checked": checked,
        "steps": runner.records,
    }
    path = runner.path.with_suffix(".json")
    path.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    print(f"written: {path}")
    return EXIT_OK if (checked or settings.jobs) and not wrong else EXIT_FAULT


class Runner:
    """A run: the process that takes the steps, and their records."""

    def __init__(self, settings: GpuBenchmarkSettings, folder: str) -> None:
        self.settings, self.folder = settings, Path(folder)
        self.started = time.monotonic()
        self.ends = self.started + 60 * settings.minutes
        self.records: dict[str, dict[str, Any]] = {}
        self.process: ContenderProcess | None = None
        self.device = "unknown"
        self.path = Path(settings.out or RESULTS / "gpu")

    def run(self) -> None:
        """Take the steps in their order; append each one's record to a file as soon as it is done."""
        for name, step in self.settings.table.items():
            if self.settings.only and name not in self.settings.only:
                continue
            record = self.records[name] = self._take(name, step)
            if not self.settings.out and self.device != "unknown":
                self.path = RESULTS / f"gpu_{self.device}_{today()}"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".jsonl").open("a") as lines:
                lines.write(json.dumps({"step": name, **record}) + "\n")
                lines.flush()
            print(f"{name}: {record['ended']} after {record['seconds']:.1f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the process."""
        if self.process:
            self.process.kill()
            self.process = None

    def _take(self, name: str, step: Step) -> dict[str, Any]:
        """Take one step; return how it ended and its figures, whatever happened."""
        began = time.monotonic()
        ended = "done"
        (self.folder / "figures.json").unlink(missing_ok=True)
        try:
            left = self.ends - time.monotonic()
            if left < LEAST_S:
                raise ContenderFailed("no time left for this step")
            if self.process is None:
                self.process = ContenderProcess(
                    make_worker, str(self.folder), self.settings.small, self.settings.encoder, daemon=False
                )
                self.process.wait_until_made(left)
                left = self.ends - time.monotonic()
            limit = step.seconds * (CPU_FACTOR if self.settings.small else 1)
            seconds = max(1.0, min(limit, left))
            self.device = self.process.call(step.function, seconds, limit_s=seconds)
        except ContenderFailed as error:
            ended = str(error)
            self.close()  # its GPU context may be broken, or it still computes
        figures = self.folder / "figures.json"
        return {
            "question": step.question,
            "ended": ended,
            "seconds": time.monotonic() - began,
            "figures": json.loads(figures.read_text()) if figures.exists() else {},
        }


def make_worker(folder: str, is_small: bool, encoder: str | None) -> Callable[[str, float], str]:
    """Make the function that takes steps, in a process of its own; it returns the device's name."""
    from gpu_steps.bench import Bench  # torch and transformers, which the main process need not import

    from sentiment_core.runtime import hardware

    bench = Bench(folder, is_small, encoder)
    device = re.sub(r"[^a-z0-9]+", "_", hardware.device_name(bench.device).lower()).strip("_")

    def take(function: str, seconds: float) -> str:
        module, _, name = function.partition(":")
        bench.begin(seconds)
        getattr(importlib.import_module(f"gpu_steps.{module}"), name)(bench)
        bench.free_memory()
        return device

    return take


def judge(records: dict[str, dict[str, Any]]) -> tuple[list[str], int]:
    """Name what is wrong, and count what was checked."""
    verdicts = {
        f"{step}: {name}": figures["right"]
        for step, record in records.items()
        for name, figures in record["figures"].items()
        if "right" in figures
    }
    return [name for name, right in verdicts.items() if not right], len(verdicts)


def print_report(report: dict[str, Any]) -> None:
    """Print each step's figures, one measurement a line."""
    print(f"{report['device']}, {report['date']}, {report['seconds']:.0f} s")
    for name, record in report["steps"].items():
        print(f"\n{name}: {record['question']}" + ("" if record["ended"] == "done" else f" {record['ended']}"))
        for title, figures in record["figures"].items():
            print(f"  {title}: " + ", ".join(f"{key} {_shorten(value)}" for key, value in figures.items()))
    print(f"\n{report['checked']} checked, wrong: {', '.join(report['wrong']) or 'none'}")


def _shorten(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shorten(item)}" for key, item in value.items()) + "}"
    return str(value)


if __name__ == "__main__":
    run_and_exit(main)
