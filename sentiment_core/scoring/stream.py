"""Units through the stages, on Ray: read and tokenised by CPU tasks, computed by actors that hold the bundle, and then
written or compared by tasks.

A block of the stream is one row, a `task` of a few units, so Ray can neither split nor merge units; only tokens and
probabilities travel. The columns to keep are read where the last stage needs them.
"""

import json
import logging
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from sentiment_core.data.shards import FailedShard, Unit
from sentiment_core.model import bundle
from sentiment_core.runtime import cluster
from sentiment_core.runtime.progress import Progress
from sentiment_core.runtime.task_guard import MAX_ATTEMPTS, TaskGuard
from sentiment_core.scoring import stages
from sentiment_core.scoring.meters import Meters
from sentiment_core.scoring.outputs import Counts
from sentiment_core.scoring.stages import Job

# CPUs reserved by a task that reads and tokenises, and by one of the last stage. The first must differ from what an
# actor reserves, or Ray fuses the two and the model waits for the tokenizer.
READ_CPUS, LAST_CPUS = 0.5, 0.25
# Small units are gathered up to this many rows, by what computes them: a task costs about 30 ms whatever it does, which
# is little beside its seconds on a CPU, and beside its tenths of a second on a GPU. Of long texts fewer: a task should
# take seconds.
TASK_ROWS = {"CPU": 4_096, "GPU": 16_384}
TASK_BYTES = {"CPU": 512 << 10, "GPU": 8 << 20}  # of text
LONG_RUN_BYTES = 2 << 30  # of text for each GPU, minutes of work: from there on compiling, about one, should pay
TASK_UNITS = 512  # however small
# What fails in a row until the run stops, since the same must fail all: shards before any succeeded, units afterwards.
# Tasks run in random order, so that a few bad neighbours do not look like it. A lost task, which took its time for each
# try, counts for ten.
FIRST_FAILURES, LATER_FAILURES, LOST_FAILURES = 50, 500, 10
TASK_MINUTES = 60.0  # that a task may take, seconds of work on most chips
OVERTIME_S = 120  # that a run whose time is over waits for the next block, so that it does not compute it for nothing
LOST = (
    f"nothing came back from its worker: it died or hung {MAX_ATTEMPTS} times, or failed in a way that Ray's logs tell"
)


@dataclass
class Tally:
    """What the records of a run add up to."""

    totals: Counts  # of the units done
    some_done: bool = False  # before this run
    started: float = field(default_factory=time.monotonic)
    failed: list[FailedShard] = field(default_factory=list)  # one for each failed unit
    seen: set[str] = field(default_factory=set)  # outputs of the units that are done or failed
    shards_in_a_row: set[str] = field(default_factory=set)  # that failed
    units_in_a_row: int = 0  # that failed
    tasks_in_a_row: int = 0  # that were lost
    last_failure: str = ""
    broken: str = ""  # why nothing can go on
    out_of_time: bool = False
    tokens: int = 0
    padding: int = 0  # tokens computed for nothing
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(stages.STAGES, 0.0))  # seconds
    computed_by: set[str] = field(default_factory=set)
    first_seconds: float | None = None  # when the first task was done, start-up included
    first_rows: int = 0  # of that task

    def add(self, records: list[dict]) -> None:
        """A task's records."""
        if self.first_seconds is None:
            self.first_seconds = time.monotonic() - self.started
            self.first_rows = sum(record["rows"] for record in records)
        self.tasks_in_a_row += records[0]["lost"]
        for record in records:
            if record["error"]:
                self.last_failure = record["error"]
            if record["lost"]:
                continue
            self.seen.add(record["output"])
            self.computed_by.add(record["backend"])
            self.tokens += record["tokens"]
            self.padding += record["padding_tokens"]
            for stage in stages.STAGES:
                self.busy[stage] += record["seconds"][stage]
            if record["error"]:
                self.failed.append(FailedShard(record["source"], record["error"]))
                self.shards_in_a_row.add(record["source"])
                self.units_in_a_row += 1
            else:
                self.totals += Counts(**json.loads(record["counts"]))
                self.shards_in_a_row.clear()
                self.units_in_a_row = self.tasks_in_a_row = 0

    def lost(self, units: list[Unit]) -> list[Unit]:
        """Of a run's units those that nothing is known of; none if it stopped."""
        return [] if self.stopped or self.out_of_time else [unit for unit in units if unit.output not in self.seen]

    @property
    def stopped(self) -> str:
        """Why the run is to stop; empty if it is not."""
        if self.broken:
            return self.broken
        lost = LOST_FAILURES * self.tasks_in_a_row
        never = not self.some_done and not self.totals.units and len(self.shards_in_a_row) + lost >= FIRST_FAILURES
        if not never and self.units_in_a_row + lost < LATER_FAILURES:
            return ""
        parts = [f"{self.units_in_a_row:,} units of {len(self.shards_in_a_row):,} shards"] * bool(self.units_in_a_row)
        parts += [f"{self.tasks_in_a_row:,} tasks"] * bool(self.tasks_in_a_row)
        return f"the last {' and '.join(parts)} all failed, at last with: {self.last_failure}"

    def rows_per_second_after(self, rows: int, seconds: float) -> float | None:
        """Of all `rows` in `seconds`, from the first task on; None if that was all."""
        if self.first_seconds is None or rows == self.first_rows:
            return None
        return (rows - self.first_rows) / (seconds - self.first_seconds)


@dataclass(frozen=True)
class Stream:
    """How units are worked on."""

    job: Job
    files: dict[str, bytes]  # the bundle's
    last: Callable[..., pa.Table]  # stage
    last_takes: dict[str, Any]  # that stage alone
    workers: int
    task_minutes: float
    until: float | None = None  # by `time.monotonic()`: the first block that comes later is the last

    def run(self, what: str, units: list[Unit], tally: Tally) -> None:
        """Tally what comes of all `units`: unless too many fail, of each it is known then that it is done, or why not.
        `what` this is stands before the progress."""
        with Progress(what, sum(unit.rows for unit in units), "rows", cluster.describe_wait) as progress:
            guard, meters = TaskGuard.start(60 * self.task_minutes), Meters(what)
            tasks = list(gather(units, self.workers))
            random.Random(0).shuffle(tasks)
            self._run_tasks(tasks, guard, tally, meters, progress)
            # one of a task's units may have taken the others along
            together = tally.lost([unit for task in tasks if len(task) > 1 for unit in task])
            if together and (tally.first_seconds is not None or len(together) <= FIRST_FAILURES):
                self._run_tasks([[unit] for unit in together], guard, tally, meters, progress)
            tally.failed += [FailedShard(unit.source, LOST) for unit in tally.lost(units)]

    def _run_tasks(
        self, tasks: list[list[Unit]], guard: TaskGuard, tally: Tally, meters: Meters, progress: Progress
    ) -> None:
        blocks = iter(self.of(tasks, guard).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        try:
            while True:
                with _interrupted(None if self.until is None else self.until + OVERTIME_S):
                    block = next(blocks, None)
                if block is None:
                    return
                records = block.to_pylist()  # type: ignore[union-attr]  # a pyarrow table, as asked for
                tally.add(records)
                meters.add(records)
                for record in records:
                    if not record["lost"]:
                        progress.add(record["rows"])
                        if record["error"]:
                            progress.say(f"failed: {record['source']}: {record['error']}")
                tally.out_of_time = self.until is not None and time.monotonic() > self.until
                if tally.stopped or tally.out_of_time:
                    return
        except _OutOfTime:
            tally.out_of_time = True
        except ray.exceptions.RayActorError as error:
            last_line = str(error).strip().rpartition("\n")[2]  # below the trace
            tally.broken = f"no worker could load the model: {last_line}"

    def of(self, tasks: list[list[Unit]], guard: TaskGuard) -> ray.data.Dataset:
        """The lazy stream of records, one for each unit, in order of completion; none of tasks that die where no guard
        sees it."""
        quieten_ray_data()
        # the weights go to the actors only
        weights = ray.put(self.files)
        tokenizer = ray.put({name: data for name, data in self.files.items() if name != bundle.WEIGHTS})
        text_bytes = sum(unit.text_bytes for units in tasks for unit in units)
        engine = {
            "threads": cluster.threads_per_worker(self.workers),
            "backend": "int8" if self.job.run.int8 else None,
            "long_run": text_bytes >= self.workers * LONG_RUN_BYTES,
        }
        common = {"batch_format": "pyarrow", "batch_size": 1}
        stream = ray.data.from_blocks([pa.table({"units": [[asdict(unit) for unit in units]]}) for units in tasks])
        stream.context.enable_progress_bars = False
        stream.context.target_max_block_size = None  # one block for each task, whatever its size
        stream.context.raise_original_map_exception = True
        stream.context.max_errored_blocks = -1  # `Tally.lost` finds their units
        # the guard ends what hangs; nodes may be long in coming
        stream.context.execution_no_progress_timeout_s = -1
        stream.context.max_consecutive_actor_init_deaths = MAX_ATTEMPTS
        return (
            stream.map_batches(
                stages.read_and_tokenise,
                fn_kwargs={"job": self.job, "files": tokenizer, "guard": guard},
                num_cpus=READ_CPUS,
                **common,
            )
            .map_batches(
                stages.Classify,
                fn_constructor_kwargs={"files": weights, "engine": engine, "guard": guard},
                compute=ActorPoolStrategy(size=self.workers),
                **cluster.actor_resources(self.workers, (READ_CPUS, LAST_CPUS)),
                **common,
            )
            .map_batches(
                self.last,
                fn_kwargs={"job": self.job, "guard": guard, **self.last_takes},
                num_cpus=LAST_CPUS,
                **common,
            )
        )


class _OutOfTime(BaseException):
    """No block came in time. Like Ctrl-C it is no `Exception`, which Ray might take for one of its own."""


@contextmanager
def _interrupted(until: float | None) -> Iterator[None]:
    """Raise `_OutOfTime` in what takes longer than `until`, by `time.monotonic()`. In the main thread, where a job
    waits for its blocks; elsewhere time is not limited."""
    if until is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, until - time.monotonic()))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def quieten_ray_data() -> None:
    """Only what this project says goes to the terminal."""
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors")  # the pool starts at its full size
    logger = logging.getLogger("ray.data")
    for handler in [handler for handler in logger.handlers if handler.name == "console"]:
        logger.removeHandler(handler)


def gather(units: list[Unit], workers: int) -> Iterator[list[Unit]]:
    """Units in tasks of up to `TASK_ROWS` rows, `TASK_BYTES` of text and `TASK_UNITS`; smaller ones where that would
    leave workers without a task."""
    kind = cluster.device_kind()
    most = min(TASK_ROWS[kind], sum(unit.rows for unit in units) // (2 * workers) + 1)
    task: list[Unit] = []
    rows = size = 0
    for unit in units:
        if task and (rows + unit.rows > most or size + unit.text_bytes > TASK_BYTES[kind] or len(task) == TASK_UNITS):
            yield task
            task, rows, size = [], 0, 0
        task.append(unit)
        rows += unit.rows
        size += unit.text_bytes
    if task:
        yield task
