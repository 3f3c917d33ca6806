"""Simulate how busy scoring keeps a GPU, on a machine without one.

    python benchmarks/busy.py
    python benchmarks/busy.py --task-ms 40 --tasks 200

The tasks go through the real stream on a Ray of this machine: its actor, its guard, its object store. The engine does
all that a GPU's engine does on its CPU, and sleeps as long as the GPU would compute. 40 ms is what an H100 needs for
16,384 sentences with MiniLM. Tokenizing and writing are left out, since two cores cannot feed an H100.

Prints the share of the time in which the simulated GPU is busy, from the first task to the last, and its median pause
between two tasks.
"""

import itertools
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from torch import (  # by name: cloudpickle takes `torch` with an attribute `classes` for a module
    Tensor,
    device,
    nn,
    zeros,
)

from sentiment_core.cli import run_and_exit
from sentiment_core.config import check, parse, setting
from sentiment_core.data.shards import Unit
from sentiment_core.inference.backends.base import CUDA_TOKENS
from sentiment_core.inference.engine import Engine
from sentiment_core.inference.timing import Choice
from sentiment_core.model.objective import SingleLabel
from sentiment_core.runtime.task_guard import TaskGuard
from sentiment_core.scoring import stages
from sentiment_core.scoring.context import ScoringContext
from sentiment_core.scoring.known_rows import KnownRows
from sentiment_core.scoring.models import PassModel
from sentiment_core.scoring.records import Run
from sentiment_core.scoring.stages import TokenizedTexts
from sentiment_core.scoring.stream import TASK_ROWS, Stream
from sentiment_core.scoring.task_table import ModelRecord, TaskRecord, TaskTable, UnitRecord
from sentiment_core.text.batching import packs_by_tokens
from sentiment_core.text.token_lists import TokenLists

LABELS = ["negative", "positive"]
ROWS = TASK_ROWS["GPU"]
LOGICAL_CPUS = 8
WARM_UP_TASKS = 10  # until the stream is full


@dataclass(frozen=True)
class BusySettings:
    """Settings of `busy.py`."""

    task_ms: float = setting(40.0, "what the GPU computes for a task of 16,384 sentences", "MS")
    tasks: int = setting(200, "tasks to send through the stream")

    def __post_init__(self) -> None:
        check(self.task_ms > 0, "task_ms", self.task_ms, "more than 0")
        check(self.tasks > WARM_UP_TASKS, "tasks", self.tasks, f"more than {WARM_UP_TASKS}")


def draw_tokens() -> TokenLists:
    """Draw a task's sentences: 3 to 128 tokens, 31 on average, a tenth of them equal to others."""
    rng = np.random.default_rng(0)
    lengths = rng.gamma(2, 14, ROWS).clip(1, 125).astype(np.int64) + 3
    tokens = TokenLists(rng.integers(1_000, 30_000, lengths.sum(), dtype=np.int32), np.cumsum([0, *lengths]))
    rows = np.arange(ROWS)
    rows[rng.choice(ROWS, ROWS // 10)] = 0
    return tokens.take(rows)


def read_drawn(table: pa.Table, **arguments: Any) -> pa.Table:
    """Run the first stage on drawn tokens, in Ray's worker."""
    global drawn
    if "drawn" not in globals():
        drawn = draw_tokens()
    status = np.zeros(ROWS, np.int8)
    tokenized = {"": [TokenizedTexts(drawn, status)]}
    stages._tokenize_unit = lambda context, unit, files: (tokenized, context.no_counts, KnownRows.nothing(ROWS))
    return stages.read_and_tokenize(table, **arguments)


class SleepingBackend:
    """A packed backend whose GPU computes a task in a fixed time."""

    name = "asleep"

    def __init__(self, seconds: float, log: Path) -> None:
        self.seconds, self.log, self.budget = seconds, log, CUDA_TOKENS

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Pack rows into steps."""
        return packs_by_tokens(lengths, self.budget)

    def __call__(self, tokens: TokenLists, batches: list[np.ndarray]) -> Tensor:
        """Prepare all steps, while the GPU computes from the first one on."""
        started = None
        for rows in batches:
            picked = tokens.take(rows)
            np.arange(len(picked.ids)) - np.repeat(picked.offsets[:-1], picked.lengths)
            started = started or time.monotonic()
        time.sleep(max(0.0, started + self.seconds - time.monotonic()))
        with self.log.open("a") as file:
            file.write(f"{started} {time.monotonic()}\n")
        return zeros(sum(map(len, batches)), len(LABELS))

    def padding(self, lengths: np.ndarray) -> int:
        """Count no padding."""
        return 0


class SleepingEngine(Engine):
    """The real engine on a backend that sleeps."""

    def __init__(self, seconds: float, log: Path) -> None:
        self.device, self.threads, self.classes, self.max_length = device("cpu"), None, len(LABELS), 512
        self.objective, self.passed_over, self.head = SingleLabel(), [], nn.Identity()
        self.chip, self.choice, self.exact_model, self.margin = "simulated", Choice("asleep", "bfloat16"), None, ""
        self.process = os.getpid()
        self.backend: Any = SleepingBackend(seconds, log)
        self._initial_budget = self.backend.budget


class SleepingStage(stages.ClassifyStage):
    """The real stage with an engine that sleeps; `engines` has that engine's arguments."""

    def __init__(self, models: tuple[PassModel, ...], files: dict, engines: dict, guard: TaskGuard) -> None:
        self.guard, self.models = guard, models
        self.engines = {name: SleepingEngine(**engine) for name, engine in engines.items()}


def record(table: pa.Table, **_: Any) -> pa.Table:
    """Leave a record of the task, in place of writing."""
    task = TaskTable(table)
    records = [UnitRecord(unit.output, unit.source, unit.rows, "", "{}") for unit in task.units]
    tokens = int(task.lengths("").sum())
    model = ModelRecord("", tokens, task.padding_tokens(""), task.backend(""), task.choice(""))
    return TaskRecord(records, task.lost, task.seconds, [model]).to_table()


class SleepingStream(Stream):
    """The real stream, whose actor gets an engine that sleeps."""

    def engine_settings(self, units: list[Unit]) -> dict[str, Any]:
        """Return the settings of that engine."""
        return {"": self.last_stage_arguments["engine"]}


def main() -> None:
    """Run the simulation and print the busy share."""
    settings = parse(BusySettings, __doc__)
    ray.init(num_cpus=LOGICAL_CPUS, num_gpus=1, include_dashboard=False, log_to_driver=False, address="local")
    stages.read_and_tokenize, stages.ClassifyStage = read_drawn, SleepingStage  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        model = PassModel("", "none", SingleLabel(), LABELS, ("",))
        context = ScoringContext(folder, folder, Run(folder, "none"), (model,), {})
        units = [Unit(f"{i}.parquet", 0, ROWS, ROWS, 0, 0, 0) for i in range(settings.tasks)]
        engine = {"seconds": settings.task_ms / 1000, "log": log}
        stream = SleepingStream(context, {"": {}}, record, {"engine": engine}, 1, "GPU", 60.0)
        done = sum(1 for _ in stream.blocks([[unit] for unit in units], stream.start_guard()))
        intervals = [tuple(map(float, line.split())) for line in log.read_text().splitlines()][WARM_UP_TASKS:]
    assert done == settings.tasks
    busy = sum(stop - start for start, stop in intervals) / (intervals[-1][1] - intervals[0][0])
    pauses = [1000 * (after[0] - before[1]) for before, after in itertools.pairwise(intervals)]
    print(
        f"busy {busy:.3f} with {settings.task_ms:g} ms a task; pause: median {statistics.median(pauses):.1f} ms, "
        f"shortest tenth {statistics.quantiles(pauses, n=10)[0]:.1f} ms"
    )


if __name__ == "__main__":
    run_and_exit(main)
