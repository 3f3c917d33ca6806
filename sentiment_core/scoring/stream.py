"""Send work units through the stages on Ray Data.

CPU tasks read and tokenize, actors that hold the bundles compute, and CPU tasks write or compare. A block of the stream
is one row, a task of a few units, so that Ray can neither split nor merge units. Only tokens and probabilities travel;
the columns to keep are read where the last stage needs them.
"""

import logging
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from sentiment_core.data.shards import FailedShard, Unit
from sentiment_core.model import bundle
from sentiment_core.runtime import cluster
from sentiment_core.runtime.cluster import DeviceKind
from sentiment_core.runtime.failures import describe_remote_error
from sentiment_core.runtime.progress import Progress
from sentiment_core.runtime.task_guard import MAX_ATTEMPTS, TaskGuard
from sentiment_core.scoring import stages
from sentiment_core.scoring.meters import Meters
from sentiment_core.scoring.models import tokenizer_owner, tokenizing_models
from sentiment_core.scoring.records import Choices
from sentiment_core.scoring.stages import ScoringContext
from sentiment_core.scoring.tally import FIRST_FAILURES, Tally
from sentiment_core.scoring.task_table import TaskRecord, TaskTable

# CPUs reserved by a task that reads and tokenizes, and by one of the last stage. The first must differ from what an
# actor reserves: else Ray Data fuses the two and the model waits for the tokenizer.
READ_CPUS, LAST_CPUS = 0.5, 0.25
# Beside a GPU a task reads with a whole CPU, where nodes have enough of them. Twice as many processes would tokenize
# on the CPU of the thread that launches, which small models need all of.
READ_CPUS_BESIDE_GPU, ENOUGH_CPUS = 1.0, 3
# Calls of an actor at once, and tasks sent to it. One computes at a time: Ray Data gives the stage a thread of its own.
# Meanwhile the next task's block is fetched and the last one's result is stored, which spares a GPU 12 ms between two
# tasks (benchmarks/busy.py). On CPUs tasks take seconds, and should not queue where another actor is free.
ACTOR_CALLS = {"CPU": 1, "GPU": 2}
ACTOR_TASKS = {"CPU": 2, "GPU": 3}
# Small units are gathered into tasks of up to this many rows. A task costs about 30 ms whatever it does, which is
# little beside its seconds on a CPU and beside its tenths of a second on a GPU. Of long texts a task takes fewer, so
# that it stays a matter of seconds.
TASK_ROWS = {"CPU": 4_096, "GPU": 16_384}
TASK_TEXT_BYTES = {"CPU": 512 << 10, "GPU": 8 << 20}
TASK_UNITS = 512  # however small
BYTES_PER_TOKEN = 4.5  # of text, about; of English
OVERTIME_S = 120  # that a run whose time is over waits for the next block, which would else be computed for nothing
LOST = f"its worker died or hung {MAX_ATTEMPTS} times, or failed in a way that only Ray's logs tell"


@dataclass(frozen=True)
class Stream:
    """The way of units through the stages."""

    context: ScoringContext
    bundle_files: Mapping[str, dict[str, bytes]]  # by the model's name, then by the file's
    last_stage: Callable[..., pa.Table]
    last_stage_arguments: dict[str, Any]  # beyond those of all stages
    workers: int
    kind: DeviceKind
    task_minutes: float
    deadline: float | None = None  # by `time.monotonic()`: the first block that comes later is the last
    choices: Choices = field(default_factory=dict)  # of earlier runs
    note_choices: Callable[[Choices], None] = lambda choices: None  # called with those of each new chip
    tolerance: float = 0.0  # within which of a cascade's threshold both models answer, so that answers can be compared

    def run(self, kind: str, units: list[Unit], tally: Tally) -> None:
        """Work on all units and add what comes of them to the tally.

        Unless the run stops, the tally then says of each unit that it is done, or why it failed. `kind` ("score",
        "verify") stands before the progress.
        """
        with Progress(kind, sum(unit.rows for unit in units), "rows", cluster.describe_wait) as progress:
            guard, meters = self.start_guard(), Meters(kind)
            tasks = list(gather_units(units, self.workers, self.kind))
            random.Random(0).shuffle(tasks)
            self._run_tasks(tasks, guard, tally, meters, progress)
            # Any one unit of a lost task may have killed it: its units are tried once more, one by one.
            suspects = tally.unsettled([unit for task in tasks if len(task) > 1 for unit in task])
            if suspects and (tally.first_task_seconds is not None or len(suspects) <= FIRST_FAILURES):
                choices = {name: {**own, **self.choices.get(name, {})} for name, own in tally.choices.items()}
                again = replace(self, choices=choices)
                again._run_tasks([[unit] for unit in suspects], guard, tally, meters, progress)
            tally.failed += [FailedShard(unit.source, LOST) for unit in tally.unsettled(units)]

    def _run_tasks(
        self, tasks: list[list[Unit]], guard: TaskGuard, tally: Tally, meters: Meters, progress: Progress
    ) -> None:
        blocks = self.blocks(tasks, guard)
        try:
            while True:
                with _raise_time_is_up(None if self.deadline is None else self.deadline + OVERTIME_S):
                    block = next(blocks, None)
                if block is None:
                    return
                record = TaskRecord.from_table(block)
                chips, margins = _count_chips(tally.choices), tally.margins
                tally.add(record)
                if self.context.run.int8:
                    for margin in tally.margins:
                        if margin not in margins:
                            progress.say(margin)
                if _count_chips(tally.choices) > chips:
                    self.note_choices(tally.choices)
                meters.add(record)
                if not record.lost:
                    progress.add(record.rows)
                    for unit in record.units:
                        if unit.error:
                            progress.say(f"failed: {unit.source}: {unit.error}")
                tally.out_of_time = self.deadline is not None and time.monotonic() > self.deadline
                if tally.stopped or tally.out_of_time:
                    return
        except _TimeIsUp:
            tally.out_of_time = True
        except ray.exceptions.RayActorError as error:
            tally.broken = f"no worker could load the model: {describe_remote_error(str(error))}"

    def start_guard(self) -> TaskGuard:
        """Start what bounds the time and the attempts of the tasks."""
        return TaskGuard.start(60 * self.task_minutes)

    def blocks(self, tasks: list[list[Unit]], guard: TaskGuard) -> Iterator[pa.Table]:
        """Yield the tasks' records as tables, in order of completion."""
        dataset = self.dataset(tasks, guard)
        return iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))

    def dataset(self, tasks: list[list[Unit]], guard: TaskGuard) -> ray.data.Dataset:
        """Return the lazy stream of task records, in order of completion.

        It has no record of tasks that die where no guard sees it.
        """
        _silence_ray_data()
        models = self.context.models
        weights = {name: ray.put(files) for name, files in self.bundle_files.items()}  # to the actors only
        owners = {tokenizer_owner(name)[0] for name in tokenizing_models(models)}
        tokenizers = {name: ray.put(_without_weights(self.bundle_files[name])) for name in owners}
        engines = self.engine_settings([unit for units in tasks for unit in units])
        candidates = {}
        if self.context.candidates:  # one copy for all tasks of a node
            candidates = {stages.CANDIDATES: ray.put(self.context.candidates)}
        context = replace(self.context, candidates=None)
        stream = ray.data.from_blocks([TaskTable.build(units).table for units in tasks])
        stream.context.enable_progress_bars = False
        stream.context.target_max_block_size = None  # one block for each task, whatever its size
        stream.context.raise_original_map_exception = True
        stream.context.max_errored_blocks = -1  # `Tally.unsettled` finds their units
        # the guard ends what hangs, and nodes may be long in coming
        stream.context.execution_no_progress_timeout_s = -1
        stream.context.max_consecutive_actor_init_deaths = MAX_ATTEMPTS
        batches = {"batch_format": "pyarrow", "batch_size": 1}
        read_cpus = self.read_cpus()
        return (
            stream.map_batches(
                stages.read_and_tokenize,
                fn_kwargs={"context": context, "files": tokenizers, "guard": guard, "candidates": candidates},
                num_cpus=read_cpus,
                **batches,
            )
            .map_batches(
                stages.ClassifyStage,
                fn_constructor_kwargs={"models": models, "files": weights, "engines": engines, "guard": guard},
                compute=ActorPoolStrategy(
                    size=self.workers,
                    max_tasks_in_flight_per_actor=ACTOR_TASKS[self.kind],
                    max_concurrent_calls_per_actor=ACTOR_CALLS[self.kind],
                ),
                **cluster.actor_resources(self.workers, (read_cpus, LAST_CPUS), self.kind),
                **batches,
            )
            .map_batches(
                self.last_stage,
                fn_kwargs={"context": context, "guard": guard, **self.last_stage_arguments},
                num_cpus=LAST_CPUS,
                **batches,
            )
        )

    def read_cpus(self) -> float:
        """Return the CPUs that a task reserves to read and tokenize."""
        beside_gpu = self.kind == "GPU" and cluster.fewest_cpus() >= ENOUGH_CPUS
        return READ_CPUS_BESIDE_GPU if beside_gpu else READ_CPUS

    def engine_settings(self, units: list[Unit]) -> dict[str, dict[str, Any]]:
        """Return the settings of the actors' engines, by the models' names, for the text of these units."""
        tokens = sum(unit.text_bytes for unit in units) / BYTES_PER_TOKEN
        shared = {
            "precision": self.context.run.precision,
            "mean_tokens": tokens / max(1, sum(unit.rows for unit in units)),
            "threads": cluster.threads_per_worker(self.workers),
            "on_cpu": self.kind == "CPU",
            "work_tokens": tokens / self.workers,
        }
        cascades = {model.name for model in self.context.models if model.is_cascade}
        # an older version's bundle lacks the file: then `verify` compares what that version made in 8 bits with floats
        return {
            name: shared
            | {
                "choices": dict(self.choices.get(name, {})),
                "backend": "int8" if self.context.run.int8 and bundle.INT8 in files else None,
            }
            | ({"tolerance": self.tolerance} if name in cascades else {})
            for name, files in self.bundle_files.items()
        }


def _without_weights(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not bundle.is_weights(name)}


def _count_chips(choices: Choices) -> int:
    """Count the chips of each model's choices."""
    return sum(map(len, choices.values()))


def gather_units(units: Sequence[Unit], workers: int, kind: DeviceKind) -> Iterator[list[Unit]]:
    """Yield tasks of up to `TASK_ROWS` rows, `TASK_TEXT_BYTES` and `TASK_UNITS`.

    They are smaller where that would leave workers without a task.
    """
    max_rows = min(TASK_ROWS[kind], sum(unit.rows for unit in units) // (2 * workers) + 1)
    task: list[Unit] = []
    rows = text_bytes = 0
    for unit in units:
        too_long = rows + unit.rows > max_rows or text_bytes + unit.text_bytes > TASK_TEXT_BYTES[kind]
        if task and (too_long or len(task) == TASK_UNITS):
            yield task
            task, rows, text_bytes = [], 0, 0
        task.append(unit)
        rows += unit.rows
        text_bytes += unit.text_bytes
    if task:
        yield task


class _TimeIsUp(BaseException):
    """No block came in time. Like Ctrl-C it is no `Exception`, which Ray might take for one of its own."""


@contextmanager
def _raise_time_is_up(deadline: float | None) -> Iterator[None]:
    """Raise `_TimeIsUp` in a block that takes longer than the deadline, by `time.monotonic()`.

    Only in the main thread, where a command waits for its blocks: elsewhere time is not limited.
    """
    if deadline is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise _TimeIsUp

    previous_handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, deadline - time.monotonic()))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)


def _silence_ray_data() -> None:
    """Keep Ray Data's own lines from the terminal."""
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")  # the pool starts at its full size
    logger = logging.getLogger("ray.data")
    for handler in [handler for handler in logger.handlers if handler.name == "console"]:
        logger.removeHandler(handler)
