"""The scoring job: finds out what is not scored yet, sends it through the stream, and says what came of it."""

import json
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass

from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.data import shards
from sentiment_core.data.shards import Corpus, Unit
from sentiment_core.errors import EXIT_FAULT, EXIT_OK, EXIT_PARTIAL, UserError
from sentiment_core.inference.int8 import require_int8_agreement
from sentiment_core.model import bundle, registry
from sentiment_core.runtime import cluster, connection, preflight, storage
from sentiment_core.scoring import outputs, stages
from sentiment_core.scoring.outputs import Counts, Run
from sentiment_core.scoring.stages import Job
from sentiment_core.scoring.stream import TASK_MINUTES, Stream, Tally

WEEK = 7 * 24 * 60  # minutes
SHOWN = 10  # failed shards in what is said; all are in the summary
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
    min_confidence: float = setting(
        0.0,
        "leave rows without a label (status abstained) whose best label is less probable; jobs/evaluate.py shows which value gives which accuracy",
        "P",
    )
    int8: bool = setting(
        False,
        "compute in 8 bits on CPUs (OpenVINO), if the bundle's labels were seen to stay the same in 99.5 % of rows",
    )
    task_minutes: float = setting(
        TASK_MINUTES, "end and try again what takes longer for one task, seconds of work on most chips"
    )
    workers: int | None = setting(None, "actors holding the model; without it one for each GPU, or for each two CPUs")
    limit: int | None = setting(
        None, "score only that many rows, into the folder OUT-limit-N, for a look before the big run", "N"
    )
    prune: bool = setting(
        False, "delete the outputs of input files that are gone; without it they are kept and counted"
    )
    dry_run: bool = setting(False, "only say what would be done")

    def __post_init__(self) -> None:
        for name in ("workers", "limit"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, value, "1 or more")
        check(0 <= self.min_confidence <= 1, "min_confidence", self.min_confidence, "a probability from 0 to 1")
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
            f"{s['rows']:,} rows in {s['units']:,} files: {listed(s['status'])}",
            f"labels: {listed(s['labels'])}",
            f"this run: {s['run']['rows']:,} rows in {s['run']['seconds']:.1f} s, {s['run']['rows_per_second']:,.1f} rows/s, "
            f"{s['run']['tokens_per_second']:,.0f} tokens/s, padding {100 * s['padding_share']:.1f} %, "
            f"workers busy {100 * s['run']['workers_busy_share']:.0f} %",
            *self._speed(),
            f"scored: {self.place}",
        ]
        lines += [f"failed: {shard['source']}: {shard['reason']}" for shard in s["failed_shards"][:SHOWN]]
        if len(s["failed_shards"]) > SHOWN:
            lines.append(f"... {len(s['failed_shards']):,} failed shards in all, listed in {outputs.SUMMARY_FILE}")
        lines += [f"not the same in all shards: {difference}" for difference in s["column_drift"][:SHOWN]]
        if s["orphans"]:
            lines.append(f"{s['orphans']:,} outputs of input files that are gone were kept; --prune deletes them")
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


def listed(numbers: dict[str, int]) -> str:
    """Those that are not 0."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items() if number) or "none"


@dataclass(frozen=True)
class Work:
    """What is to be done, known before Ray starts."""

    place: str
    run: Run
    model: str  # place of the bundle
    bundle_files: dict[str, bytes]
    info: bundle.BundleInfo
    corpus: Corpus
    todo: list[Unit]
    done: Counts
    stale: list[str]  # outputs of shards that have changed into other units since
    orphans: list[str]  # outputs of shards that are gone
    earlier: list[str]  # digests of earlier bundles whose outputs stay
    settings: ScoreSettings

    @property
    def job(self) -> Job:
        return Job(self.corpus.root, self.place, self.run, self.info.labels)

    @property
    def rows_todo(self) -> int:
        return sum(unit.rows for unit in self.todo)

    def describe(self) -> str:
        lines = [
            f"{self.corpus.rows:,} rows in {len(self.corpus.units):,} units; to score: {self.rows_todo:,} rows in "
            f"{len(self.todo):,} units; already scored: {self.done.units:,} units; outputs of changed shards to remove: "
            f"{len(self.stale):,}; outputs of shards that are gone, to {'remove' if self.settings.prune else 'keep'}: "
            f"{len(self.orphans):,}; shards that cannot be read: {len(self.corpus.failed):,}",
            *(f"not the same in all shards: {difference}" for difference in self.corpus.schema_differences),
            *(f"cannot be read: {shard.source}: {shard.reason}" for shard in self.corpus.failed[:SHOWN]),
        ]
        return "\n".join(lines)


def prepare(settings: ScoreSettings, replaced: Collection[str] = ()) -> Work:
    """Find out what is to be done; reads footers, writes nothing. Raises `UserError`.

    `replaced`: digests of bundles that `--model` has taken the place of: what they have scored stays, if only they are
    the difference.
    """
    model = registry.resolve(settings.model)
    info, files = bundle.read_files(model)
    if settings.int8:
        require_int8_agreement(settings.model, info)
    whole = shards.plan(settings.input, settings.text_column, settings.keep, outputs.COLUMNS)
    planned = shards.limit_rows(whole, settings.limit) if settings.limit else whole
    run = Run(
        input=storage.absolute(settings.input),
        bundle=bundle.digest_of(files),
        text_column=settings.text_column,
        keep=None if settings.keep is None else list(settings.keep),
        probabilities=settings.probabilities,
        limit=settings.limit,
        int8=settings.int8,
        min_confidence=settings.min_confidence,
    )
    preflight.check_lasting(settings.out)
    place = outputs.place_of(settings.out, settings.limit)
    earlier = check_output(place, planned.root, run, replaced)
    units = {unit.output: unit for unit in planned.units}
    readable, unreadable = {unit.source for unit in whole.units}, {shard.source for shard in whole.failed}
    done = Counts.none(info.labels)
    stale: list[str] = []
    orphans: list[str] = []
    for output in outputs.read_outputs(place):
        unit = units.get(output.path)
        if unit:
            if output.counts and outputs.is_of(output.origin, run, unit, earlier):
                done += output.counts
                del units[output.path]
        elif output.origin and (source := output.origin["unit"]["source"]) not in unreadable:
            (stale if source in readable else orphans).append(output.path)
    return Work(place, run, model, files, info, planned, list(units.values()), done, stale, orphans, earlier, settings)


def score(work: Work, minutes: float | None = None) -> Scored:
    """Score what is not scored yet, for so many minutes at most. Raises `UserError` before any work if the cluster
    cannot do it."""
    started = time.monotonic()
    preflight.check_space(work.place, OUTPUT_BYTES_PER_ROW * work.rows_todo)
    workers = 0
    if work.todo:
        connection.connect()
        if work.run.int8 and cluster.device_kind() == "GPU":
            raise UserError("--int8 computes on CPUs, and this cluster has GPUs; score without --int8")
        workers = cluster.number_of_workers(work.settings.workers, len(work.todo))
        preflight.check_workers(workers)
    preflight.check_writable(work.place)
    if work.todo:
        preflight.check_shared(work.place, "--out", writable=True)
        preflight.check_shared(work.corpus.root, "--input", writable=False)
    take_output(work)
    try:
        storage.delete_abandoned_files(work.place, storage.read_stamp(work.place, outputs.RUN_FILE).mtime_ns)
        for path in [*work.stale, *(work.orphans if work.settings.prune else [])]:
            storage.delete_file(storage.join(work.place, path))
    except OSError as error:
        raise UserError(f"--out {work.place} cannot be tidied: {error}; check who may write there") from None
    tally = Tally(Counts.none(work.info.labels), bool(work.done.units), started, failed=list(work.corpus.failed))
    if work.todo:
        until = None if minutes is None else started + 60 * minutes
        stream = Stream(work.job, work.bundle_files, stages.write, {}, workers, work.settings.task_minutes, until)
        stream.run("score", work.todo, tally)
    summary = summarise(work, tally, workers, time.monotonic() - started)
    content = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    try:
        storage.write_file(storage.join(work.place, outputs.SUMMARY_FILE), content.encode())
    except OSError as error:  # what stopped the run, most likely
        summary["stopped"] = summary["stopped"] or f"{outputs.SUMMARY_FILE} cannot be written: {error}"
    return Scored(work.place, summary)


def take_output(work: Work) -> None:
    """Note in the output folder what runs into it must agree on. Raises `UserError` if another run has done so."""
    mine = [work.run.bundle, *work.earlier]
    check_output(work.place, work.corpus.root, work.run, mine)  # another one may have begun since
    outputs.pin(work.place, work.run, storage.absolute(work.model), work.earlier)
    check_output(work.place, work.corpus.root, work.run, mine)  # or just now


def check_output(place: str, root: str, run: Run, replaced: Collection[str] = ()) -> list[str]:
    """Refuse an output folder that overlaps the input, holds something else, or the output of another run, unless the
    other one had but a `replaced` bundle. The digests of the earlier bundles whose outputs stay."""
    searched_whole = "**" in run.input or storage.is_folder(run.input)
    preflight.check_overlap(root, place, recursive=searched_whole)
    something = storage.is_occupied(place)  # asked first: another run may begin meanwhile
    pinned = outputs.read_run(place) if storage.exists(place) else None
    if pinned is None:
        if something:
            raise UserError(
                f"--out {place} holds something else (no readable {outputs.RUN_FILE}); expected a new folder or one that "
                "jobs/score.py made"
            )
        return []
    wanted = asdict(run)
    differences = [
        f"{name} {pinned.get(name)!r}, now {value!r}"
        for name, value in wanted.items()
        if pinned.get(name) != value and not (name == "bundle" and pinned["bundle"] in replaced)
    ]
    if differences:
        raise UserError(
            f"--out {place} was made with other settings: {'; '.join(differences)}; use those or choose another --out"
        )
    return [
        digest
        for digest in {**dict.fromkeys(pinned["earlier_bundles"]), pinned["bundle"]: None}
        if digest != run.bundle
    ]


def summarise(work: Work, tally: Tally, workers: int, seconds: float) -> dict:
    """The content of `_summary.json`: the whole folder, and what this run did of it."""
    everything, this_run = work.done + tally.totals, tally.totals
    return {
        "rows_in": work.corpus.rows,
        "rows": everything.rows,
        "units": everything.units,
        "status": everything.status,
        "labels": everything.labels,
        "confidence_histogram": everything.confidence_histogram,
        "tokens": everything.tokens,
        "padding_share": tally.padding / max(1, tally.tokens + tally.padding),  # in this run
        "stopped": tally.stopped,
        "out_of_time": tally.out_of_time,
        "failed_shards": [asdict(shard) for shard in {shard.source: shard for shard in tally.failed}.values()],
        "column_drift": work.corpus.schema_differences,
        "orphans": 0 if work.settings.prune else len(work.orphans),
        "run": {
            "rows": this_run.rows,
            "units": this_run.units,
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
