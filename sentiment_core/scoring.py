"""The scoring job: work units -> tokens (CPU tasks) -> probabilities (actors holding the bundle) -> scored Parquet.

Ray Data streams it through the stages of `stages`. A block of the stream is one row, a `task` of a few units, so Ray can
neither split nor merge units; only tokens and probabilities travel. The columns to keep are read where the output is
written.
"""

import contextlib
import importlib.util
import json
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy

from sentiment_core import bundle, cluster, corpus, scored, storage
from sentiment_core.corpus import Corpus, FailedShard, Unit
from sentiment_core.errors import EXIT_FAULT, EXIT_OK, EXIT_PARTIAL, BadRequest
from sentiment_core.guard import TRIES, Guard
from sentiment_core.progress import Progress
from sentiment_core.scored import Counts, Run
from sentiment_core.settings import REQUIRED, check, setting
from sentiment_core.stages import STAGES, Classify, read_and_tokenise, write

# CPUs reserved by a task that reads and tokenises, and by one that writes. The first must differ from what an actor
# reserves, or Ray fuses the two and the model waits for the tokenizer.
READ_CPUS, WRITE_CPUS = 0.5, 0.25
# Small units are gathered up to this many rows, by what computes them: a task costs about 30 ms whatever it does, which
# is little beside its seconds on a CPU, and beside its tenths of a second on a GPU. Of long texts fewer: a task should
# take seconds.
TASK_ROWS = {"CPU": 4_096, "GPU": 16_384}
TASK_BYTES = {"CPU": 512 << 10, "GPU": 8 << 20}  # of text
LONG_RUN_BYTES = 2 << 30  # of text for each GPU, minutes of work: from there on compiling, about one, should pay
INT8_AGREEMENT = 0.995  # least share of rows whose label 8 bits leave as it is
# Failed shards in a row at which the run stops, before and after the first that succeeds: what fails them fails all.
FIRST_FAILURES, LATER_FAILURES = 50, 500
WEEK = 7 * 24 * 60  # minutes
LOST = f"nothing came back from its worker: it died or hung {TRIES} times, or failed in a way that Ray's logs tell"
OUTPUT_BYTES_PER_ROW = 64  # at most, without kept columns; for the check of disk space


@dataclass(frozen=True)
class ScoreSettings:
    model: str = setting(REQUIRED, "model bundle made by jobs/train.py: a folder or URI", "BUNDLE")
    input: str = setting(REQUIRED, "Parquet to score: file, folder (nested, Hive-partitioned), glob or URI", "P")
    out: str = setting(
        REQUIRED, "folder or URI for the scored Parquet; the same command again does only what is missing", "DIR"
    )
    text_column: str = setting("text", "column with the text")
    keep: tuple[str, ...] | None = setting(
        None, "input columns to keep in the output; without it all but the text, with '' none", "A,B"
    )
    probabilities: bool = setting(False, "also write the probabilities of all labels")
    int8: bool = setting(
        False,
        "compute in 8 bits on CPUs (OpenVINO), if the bundle's labels were seen to stay the same in 99.5 % of rows",
    )
    task_minutes: float = setting(
        60.0, "end and try again what takes longer for one task, seconds of work on most chips"
    )
    workers: int | None = setting(None, "actors holding the model; without it one for each GPU, or for each two CPUs")
    limit: int | None = setting(
        None, "score only that many rows, into the folder OUT-limit-N, for a look before the big run", "N"
    )
    dry_run: bool = setting(False, "only say what would be done")

    def __post_init__(self) -> None:
        for name in ("workers", "limit"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, value, "1 or more")
        check(0 < self.task_minutes <= WEEK, "task_minutes", self.task_minutes, f"more than 0 and at most {WEEK}")


@dataclass(frozen=True)
class Scored:
    """What a scoring run leaves."""

    place: str
    summary: dict  # the content of `_summary.json`

    @property
    def exit_code(self) -> int:
        if self.summary["stopped"]:
            return EXIT_FAULT
        return EXIT_PARTIAL if self.summary["failed_shards"] else EXIT_OK

    def report(self) -> str:
        """A few lines for the terminal."""
        s = self.summary
        lines = [
            f"{s['rows']:,} rows in {s['units']:,} files: {_listed(s['status'])}",
            f"labels: {_listed(s['labels'])}",
            f"this run: {s['run']['rows']:,} rows in {s['run']['seconds']:.1f} s, {s['run']['rows_per_second']:,.1f} rows/s, "
            f"{s['run']['tokens_per_second']:,.0f} tokens/s, padding {100 * s['padding_share']:.1f} %, "
            f"workers busy {100 * s['run']['workers_busy_share']:.0f} %",
            *self._speed(),
            f"scored: {self.place}",
        ]
        lines += [f"failed: {shard['source']}: {shard['reason']}" for shard in s["failed_shards"][:10]]
        if len(s["failed_shards"]) > 10:
            lines.append(f"... {len(s['failed_shards']):,} failed shards in all, listed in {scored.SUMMARY_FILE}")
        if s["stopped"]:
            lines.append(f"stopped: {s['stopped']}; mend that and give the same command again")
        return "\n".join(lines)

    def _speed(self) -> list[str]:
        run = self.summary["run"]
        if run["rows_per_second_after"] is None:
            return []
        return [
            f"first rows after {run['first_task_seconds']:.1f} s, then {run['rows_per_second_after']:,.1f} rows/s, "
            f"computed by {', '.join(run['computed_by'])}"
        ]


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items() if number) or "none"


@dataclass(frozen=True)
class Work:
    """What is to be done, known before Ray starts."""

    place: str
    run: Run
    bundle_files: dict[str, bytes]
    labels: list[str]
    corpus: Corpus
    todo: list[Unit]
    done: list[Counts]
    stale: list[str]  # outputs of shards that have changed into other units since
    settings: ScoreSettings

    @property
    def rows_todo(self) -> int:
        return sum(unit.rows for unit in self.todo)

    def describe(self) -> str:
        return (
            f"{self.corpus.rows:,} rows in {len(self.corpus.units):,} units; to score: {self.rows_todo:,} rows in "
            f"{len(self.todo):,} units; already scored: {len(self.done):,} units; outputs of changed shards to remove: "
            f"{len(self.stale):,}; shards that cannot be read: {len(self.corpus.failed):,}"
        )


@dataclass
class Tally:
    """What the records of a run add up to."""

    started: float  # of time.monotonic()
    failed: list[FailedShard]
    seen: set[str] = field(default_factory=set)  # outputs of the units that there was a record of
    counts: list[Counts] = field(default_factory=list)  # of the units committed
    failed_in_a_row: set[str] = field(default_factory=set)  # shards
    tokens: int = 0
    padding: int = 0  # tokens computed for nothing
    busy: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))  # seconds
    computed_by: set[str] = field(default_factory=set)
    first_seconds: float | None = None  # when the first task was done, start-up included
    first_rows: int = 0  # of that task

    def add(self, records: list[dict]) -> None:
        """A task's records."""
        if self.first_seconds is None:
            self.first_seconds = time.monotonic() - self.started
            self.first_rows = sum(record["rows"] for record in records)
        for record in records:
            self.seen.add(record["output"])
            self.computed_by.add(record["backend"])
            self.tokens += record["tokens"]
            self.padding += record["padding_tokens"]
            for stage in STAGES:
                self.busy[stage] += record["seconds"][stage]
            if record["error"]:
                self.failed.append(FailedShard(record["source"], record["error"]))
                self.failed_in_a_row.add(record["source"])
            else:
                self.counts.append(Counts(**json.loads(record["counts"])))
                self.failed_in_a_row.clear()

    def lost(self, units: list[Unit]) -> list[Unit]:
        """Of a run's units those that there is no record of; none if it stopped."""
        return [] if self.stopped else [unit for unit in units if unit.output not in self.seen]

    @property
    def stopped(self) -> str:
        """Why the run is to stop; empty if it is not."""
        if len(self.failed_in_a_row) < (LATER_FAILURES if self.counts else FIRST_FAILURES):
            return ""
        return f"the last {len(self.failed_in_a_row):,} shards all failed, at last with: {self.failed[-1].reason}"

    def rows_per_second_after(self, rows: int, seconds: float) -> float | None:
        """Of all `rows` in `seconds`, from the first task on; None if that was all."""
        if self.first_seconds is None or rows == self.first_rows:
            return None
        return (rows - self.first_rows) / (seconds - self.first_seconds)


def prepare(settings: ScoreSettings) -> Work:
    """Find out what is to be done; reads footers, writes nothing. Raises `BadRequest`."""
    info = bundle.read_info(settings.model)
    if settings.int8:
        check_int8(settings.model, info)
    files = storage.read_folder(settings.model)
    planned = corpus.plan(settings.input, settings.text_column, settings.keep, scored.COLUMNS)
    if settings.limit:
        planned = corpus.limited(planned, settings.limit)
    run = Run(
        input=storage.absolute(settings.input),
        bundle=bundle.digest_of(files),
        text_column=settings.text_column,
        keep=None if settings.keep is None else list(settings.keep),
        probabilities=settings.probabilities,
        limit=settings.limit,
        int8=settings.int8,
    )
    storage.check_lasting(settings.out)
    place = storage.absolute(settings.out) + (f"-limit-{settings.limit}" if settings.limit else "")
    check_output(place, planned.root, run)
    outputs = {output.path: output for output in scored.read_outputs(place)}
    todo, done = [], []
    for unit in planned.units:
        found = outputs.get(unit.output)
        if found and found.counts and found.origin == scored.origin(run, unit):
            done.append(found.counts)
        else:
            todo.append(unit)
    current = {unit.output for unit in planned.units}
    sources = {unit.source for unit in planned.units}
    stale = [
        o.path for o in outputs.values() if o.origin and o.path not in current and o.origin["unit"]["source"] in sources
    ]
    return Work(place, run, files, info.labels, planned, todo, done, stale, settings)


def check_int8(model: str, info: bundle.BundleInfo) -> None:
    """Refuse 8 bits for a bundle that they would change, or of which that is not known."""
    if "agreement" not in info.int8:
        raise BadRequest(
            f"--int8: --model {model} was not checked in 8 bits ({info.int8.get('reason', 'made by an older version')}); "
            "train it again with the extra `cpu` installed, or score without --int8"
        )
    if info.int8["agreement"] < INT8_AGREEMENT:
        raise BadRequest(
            f"--int8: of {info.int8['rows']:,} rows --model {model} gives only {100 * info.int8['agreement']:.2f} % the "
            f"same label in 8 bits; expected {100 * INT8_AGREEMENT} % or more; score without --int8"
        )
    if importlib.util.find_spec("openvino") is None:
        raise BadRequest("--int8 needs OpenVINO; install the extra `cpu` on all nodes")


def score(work: Work) -> Scored:
    """Score what is not scored yet. Raises `BadRequest` before any work if the cluster cannot do it."""
    started = time.monotonic()
    storage.check_space(work.place, OUTPUT_BYTES_PER_ROW * work.rows_todo)
    workers = 0
    if work.todo:
        cluster.connect()
        if work.run.int8 and cluster.device_kind() == "GPU":
            raise BadRequest("--int8 computes on CPUs, and this cluster has GPUs; score without --int8")
        workers = number_of_workers(work.settings.workers, len(work.todo))
    storage.check_writable(work.place)
    if work.todo:
        cluster.check_shared(work.place, "--out", writable=True)
        cluster.check_shared(work.corpus.root, "--input", writable=False)
    storage.write_file(storage.join(work.place, scored.RUN_FILE), json.dumps(asdict(work.run), indent=2).encode())
    check_output(work.place, work.corpus.root, work.run)  # another run may have started just now, with other settings
    storage.delete_abandoned(work.place, storage.stamp(work.place, scored.RUN_FILE).mtime_ns)
    for path in work.stale:
        with contextlib.suppress(FileNotFoundError):  # that run is at it too
            storage.delete_file(storage.join(work.place, path))
    tally = Tally(started, failed=list(work.corpus.failed))
    if work.todo:
        with Progress("score", work.rows_todo, "rows", cluster.waiting_for) as progress:
            guard = Guard.start(60 * work.settings.task_minutes)
            tasks = list(gather(work.todo, workers))
            run_tasks(tasks, work, workers, guard, tally, progress)
            # one of a task's units may have taken the others along
            together = tally.lost([unit for units in tasks if len(units) > 1 for unit in units])
            if together and (tally.counts or len(together) <= FIRST_FAILURES):
                run_tasks([[unit] for unit in together], work, workers, guard, tally, progress)
            for unit in tally.lost(work.todo):
                tally.failed.append(FailedShard(unit.source, LOST))
    summary = summarise(work, tally, workers, time.monotonic() - started)
    content = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    try:
        storage.write_file(storage.join(work.place, scored.SUMMARY_FILE), content.encode())
    except OSError as error:  # what stopped the run, most likely
        summary["stopped"] = summary["stopped"] or f"{scored.SUMMARY_FILE} cannot be written: {error}"
    return Scored(work.place, summary)


def run_tasks(
    tasks: list[list[Unit]], work: Work, workers: int, guard: Guard, tally: Tally, progress: Progress
) -> None:
    """Stream the tasks and tally their records, until all are done or too many have failed in a row."""
    for block in make_stream(tasks, work, workers, guard).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0
    ):
        records = block.to_pylist()  # type: ignore[union-attr]  # a pyarrow table, as asked for
        tally.add(records)
        for record in records:
            progress.add(record["rows"])
            if record["error"]:
                progress.say(f"failed: {record['source']}: {record['error']}")
        if tally.stopped:
            return


def check_output(place: str, root: str, run: Run) -> None:
    """Refuse an output folder that overlaps the input, holds something else, or the output of another run."""
    searched_whole = "**" in run.input or storage.is_folder(run.input)
    if (searched_whole and f"{place}/".startswith(f"{root}/")) or f"{root}/".startswith(f"{place}/"):
        raise BadRequest(f"--out {place} and --input {root} overlap; choose an --out outside the input")
    if not storage.exists(place):
        return
    pinned = scored.read_run(place)
    if pinned is None:
        if storage.holds_something(place):
            raise BadRequest(
                f"--out {place} holds something else (no readable {scored.RUN_FILE}); expected a new folder or one that "
                "jobs/score.py made"
            )
        return
    wanted = asdict(run)
    differences = [
        f"{name} {pinned.get(name)!r}, now {value!r}" for name, value in wanted.items() if pinned.get(name) != value
    ]
    if differences:
        raise BadRequest(
            f"--out {place} was made with other settings: {'; '.join(differences)}; use those or choose another --out"
        )


def number_of_workers(asked: int | None, units: int) -> int:
    """Actors to start: as asked, else one for each GPU, or for each two CPUs, but no more than there are units. Raises
    `BadRequest` for more than the cluster can ever hold."""
    kind = cluster.device_kind()
    workers = asked or min(units, max(1, cluster.largest(kind) // (1 if kind == "GPU" else 2)))
    cluster.require(workers)
    return workers


def make_stream(tasks: list[list[Unit]], work: Work, workers: int, guard: Guard) -> ray.data.Dataset:
    """The lazy stream of records, one for each unit, in order of completion. Of a task that is given up there is
    none."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # one block for each task, whatever its size
    context.raise_original_map_exception = True
    warnings.filterwarnings(
        "ignore", "The minimum number of concurrent actors"
    )  # the pool is at full size from the start
    for handler in list((logger := logging.getLogger("ray.data")).handlers):
        if handler.name == "console":
            logger.removeHandler(handler)
    # the weights go to the actors only
    weights = ray.put(work.bundle_files)
    tokenizer = ray.put({name: data for name, data in work.bundle_files.items() if name != bundle.WEIGHTS})
    common = {"batch_format": "pyarrow", "batch_size": 1}
    engine = {
        "threads": threads_each(workers),
        "backend": "int8" if work.run.int8 else None,
        "long_run": sum(unit.text_bytes for unit in work.todo) >= workers * LONG_RUN_BYTES,
    }
    shared = {"guard": guard}
    files = {"root": work.corpus.root, "run": work.run}
    stream = ray.data.from_blocks([pa.table({"units": [[asdict(unit) for unit in units]]}) for units in tasks])
    stream.context.max_errored_blocks = -1  # a task that is given up: `Tally.lost` finds its units
    stream.context.max_consecutive_actor_init_deaths = TRIES
    return (
        stream.map_batches(
            read_and_tokenise,
            fn_kwargs=shared | files | {"files": tokenizer},
            num_cpus=READ_CPUS,
            **common,
        )
        .map_batches(
            Classify,
            fn_constructor_kwargs=shared | {"files": weights, "engine": engine},
            compute=ActorPoolStrategy(size=workers),
            **actor_resources(workers),
            **common,
        )
        .map_batches(
            write,
            fn_kwargs=shared | files | {"place": work.place, "labels": work.labels},
            num_cpus=WRITE_CPUS,
            **common,
        )
    )


def actor_resources(workers: int) -> dict[str, float]:
    """A GPU each; or a CPU, as far as some node then keeps room for a task of both other stages, however Ray spreads
    the actors (without that the stream would stand still)."""
    if cluster.device_kind() == "GPU":
        return {"num_gpus": 1}
    room = cluster.nodes_with_cpus() * (READ_CPUS + WRITE_CPUS)
    share = min(1.0, max(0.01, int(100 * (cluster.largest("CPU") - room) / workers) / 100))
    return {"num_cpus": share if share != READ_CPUS else share - 0.01}


def threads_each(workers: int) -> int:
    """All CPUs compute: reading, tokenising and writing need few per cent of them."""
    return max(1, cluster.largest("CPU") // workers)


def gather(units: list[Unit], workers: int) -> Iterator[list[Unit]]:
    """Units in tasks of up to `TASK_ROWS` rows and `TASK_BYTES` of text, fewer where that would leave workers without a
    task."""
    kind = cluster.device_kind()
    most = min(TASK_ROWS[kind], sum(unit.rows for unit in units) // (2 * workers) + 1)
    task: list[Unit] = []
    rows = size = 0
    for unit in units:
        if task and (rows + unit.rows > most or size + unit.text_bytes > TASK_BYTES[kind]):
            yield task
            task, rows, size = [], 0, 0
        task.append(unit)
        rows += unit.rows
        size += unit.text_bytes
    if task:
        yield task


def summarise(work: Work, tally: Tally, workers: int, seconds: float) -> dict:
    """The content of `_summary.json`: the whole folder, and what this run did of it."""
    everything = scored.total(iter([*work.done, *tally.counts]), work.labels)
    this_run = scored.total(iter(tally.counts), work.labels)
    return {
        "rows_in": work.corpus.rows,
        "rows": everything.rows,
        "units": len(work.done) + len(tally.counts),
        "status": everything.status,
        "labels": everything.labels,
        "confidence_histogram": everything.confidence_histogram,
        "tokens": everything.tokens,
        "padding_share": tally.padding / max(1, tally.tokens + tally.padding),  # in this run
        "stopped": tally.stopped,
        "failed_shards": [asdict(shard) for shard in tally.failed],
        "run": {
            "rows": this_run.rows,
            "units": len(tally.counts),
            "seconds": seconds,
            "rows_per_second": this_run.rows / seconds,
            "tokens_per_second": this_run.tokens / seconds,
            "first_task_seconds": tally.first_seconds,
            "rows_per_second_after": tally.rows_per_second_after(work.rows_todo, seconds),
            "workers": workers,
            "busy_seconds": tally.busy,
            "workers_busy_share": tally.busy["classify"] / (seconds * workers) if workers else 0.0,
            "workers_idle_seconds": max(0.0, seconds * workers - tally.busy["classify"]),
            "computed_by": sorted(tally.computed_by),
        },
        "bundle": work.run.bundle,
        "libraries": bundle.library_versions(),
    }
