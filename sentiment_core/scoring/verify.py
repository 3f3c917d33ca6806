"""Check that every input row was scored exactly once, from nothing but the files of input and output.

If asked to, rows are scored again and compared with what was written.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pyarrow.parquet as pq

from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.data import columns, files
from sentiment_core.data import shards as corpus
from sentiment_core.data.files import DataFiles
from sentiment_core.data.shards import Corpus, FailedShard
from sentiment_core.errors import EXIT_FAULT, EXIT_OK, EXIT_PARTIAL, UserError
from sentiment_core.model.naming import Models
from sentiment_core.runtime import preflight, storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.scoring import content, outputs
from sentiment_core.scoring.outputs import Output
from sentiment_core.scoring.records import Run, RunFile, UnitOrigin, may_stand_beside

SHOWN_FINDINGS = 20  # of a kind in the report
FAULTS = ("missing", "doubled", "stale", "orphaned", "damaged", "foreign", "different")


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Flags of `sentiment-core verify`."""

    input: str = setting(REQUIRED, "the input that was scored, as given to sentiment-core score", "P", group="data")
    limit: int | None = setting(
        None, "only the first N rows, in the folder OUT-limit-N, as with sentiment-core score", "N", group="data"
    )
    model: Models | None = setting(  # noqa: RUF009
        None,
        "the bundle for --sample and --full, several with their names; default: where it was when it scored",
        "BUNDLE or A=BUNDLE,B=BUNDLE",
        group="model",
    )
    out: str = setting(REQUIRED, "output folder or URI of sentiment-core score", "DIR", group="output")
    sample: int | None = setting(None, "also score about N random rows again and compare", "N", group="run")
    full: bool = setting(False, "also score all rows again and compare", group="run")
    report: str | None = setting(
        None, "also write the findings as JSON: counts by kind, and descriptions", "FILE.json", group="output"
    )
    workers: int | None = setting(
        None, "actors for --sample and --full; default: one for each GPU, or for each two CPUs", "N", group="run"
    )
    device: Literal["auto", "cpu", "gpu"] = setting(
        "auto", "what --sample and --full compute on; auto: GPUs where the cluster has any", group="run"
    )

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        for name in ("limit", "sample", "workers"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, value, "1 or more")


@dataclass
class Findings:
    """The findings of a verification. Without any, every input row stands in the output exactly once."""

    rows_in: int = 0
    rows_out: int = 0
    missing: list[str] = field(default_factory=list)  # input rows without output
    doubled: list[str] = field(default_factory=list)  # input rows in two outputs
    stale: list[str] = field(default_factory=list)  # outputs of a shard that has changed, or of other settings
    orphaned: list[str] = field(default_factory=list)  # outputs of a shard that is gone
    damaged: list[str] = field(default_factory=list)  # outputs that are unreadable or do not hold what they say
    foreign: list[str] = field(default_factory=list)  # Parquet files without a footer of sentiment-core score
    different: list[str] = field(default_factory=list)  # outputs that do not hold what their bundle gives now
    unreadable: list[str] = field(default_factory=list)  # input shards, or rows of them, that could not be scored
    not_read: list[str] = field(default_factory=list)  # names at the input's path that are not data, described
    compared: int | None = None  # rows scored again with the same result; None if that was not asked for
    scored_by_other_bundles: int = 0  # rows that were not scored again for that reason
    stopped: str = ""  # why scoring again stopped

    @property
    def exit_code(self) -> int:
        """The exit code of `sentiment-core verify`."""
        if self.stopped or any(getattr(self, kind) for kind in FAULTS):
            return EXIT_FAULT
        return EXIT_PARTIAL if self.unreadable else EXIT_OK

    def to_json(self) -> dict[str, Any]:
        """Return the content of --report: rows, the number of findings of each kind, and all findings."""
        kinds = (*FAULTS, "unreadable")
        return {
            "exit_code": self.exit_code,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "rows_compared": self.compared,
            "rows_scored_by_other_bundles": self.scored_by_other_bundles,
            "stopped": self.stopped,
            "not_read": self.not_read,
            "counts": {kind: len(getattr(self, kind)) for kind in kinds},
            "findings": {kind: getattr(self, kind) for kind in kinds},
        }

    def report(self) -> str:
        """Return a few lines for the terminal."""
        lines = [f"{self.rows_in:,} rows in, {self.rows_out:,} rows out"]
        if self.compared is not None:
            lines.append(
                f"scored again: {self.compared:,} rows are the same; outputs that differ: {len(self.different):,}"
            )
        if self.scored_by_other_bundles:
            lines.append(f"not scored again: {self.scored_by_other_bundles:,} rows that other bundles scored")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        for kind in (*FAULTS, "unreadable"):
            findings = getattr(self, kind)
            lines += [f"{kind}: {text}" for text in findings[:SHOWN_FINDINGS]]
            if len(findings) > SHOWN_FINDINGS:
                lines.append(f"{kind}: ... {len(findings):,} in all")
        lines += [f"not read: {line}" for line in self.not_read]
        verdicts = {
            EXIT_OK: "every input row is scored exactly once",
            EXIT_PARTIAL: "every row of the readable shards is scored exactly once",
            EXIT_FAULT: "NOT every input row is scored correctly and exactly once; delete outputs that are damaged, "
            "doubled or different, and rerun sentiment-core score",
        }
        return "\n".join([*lines, verdicts[self.exit_code]])


@dataclass(frozen=True)
class ExpectedShard:
    """A shard whose rows 0 to `rows` should stand in the output."""

    stamp: FileStamp
    rows: int
    needs_output: bool  # even if it has no rows
    footer_hash: str | None = None


def verify(settings: VerifySettings, since_ns: int = 0, planned: Corpus | None = None) -> Findings:
    """Compare input and output.

    Args:
        settings: What to compare.
        since_ns: Of outputs written before, only the footers are read; of later ones the rows too.
        planned: The input as scoring planned it; without it, the input as it is now.

    Raises UserError if the input or the output, or the bundle where it is needed, does not exist.
    """
    folder = outputs.output_folder(settings.out, settings.limit)
    if not storage.is_folder(folder):
        raise UserError(f"--out {folder} does not exist; expected the output folder of sentiment-core score")
    if settings.report:
        preflight.check_file(settings.report, "--report")
    run_file = outputs.read_run_file(folder)
    rescoring = None
    if settings.sample or settings.full:
        from sentiment_core.scoring.rescore import Rescoring  # imports Ray: a second that checking files does not need

        rescoring = Rescoring.load(folder, settings.model)
    findings = Findings()
    if planned:
        shards, table, root = _planned_shards(planned), planned.table, planned.root
    else:
        data = files.find_files(settings.input, corpus.SUFFIXES, run_file.input_version if run_file else None)
        shards = _current_shards(data, run_file, settings.limit)
        findings.not_read, table, root = data.describe_unread(), data.table, data.root
    existing = list(outputs.read_outputs(folder))
    faults = _check_contents(folder, [output for output in existing if output.mtime_ns >= since_ns])
    by_source = _group_by_source(findings, existing, run_file)
    failed = _read_failed_shards(folder)
    for shard in shards:
        if isinstance(shard, FailedShard):
            findings.unreadable.append(f"{shard.source}: {shard.reason}")
            by_source.pop(shard.source, None)
        else:
            findings.rows_in += shard.rows
            source = shard.stamp.path
            run = run_file.run if run_file and source in failed else None
            find_obstacle = partial(_find_obstacle, root, run, source)
            _check_shard(findings, faults, shard, by_source.pop(source, []), find_obstacle)
    shared = {path for output in existing for path in output.replaced}
    for source, orphans in by_source.items():
        findings.orphaned += [
            _describe_orphan(output, source, output.path in shared, table is not None) for output in orphans
        ]
    if rescoring:
        intact = {output.path: output for output in existing if not faults.get(output.path)}
        sample_rows = None if settings.full else settings.sample
        tally = rescoring.compare(settings.input, intact, sample_rows, settings.workers, settings.device)
        findings.compared, findings.stopped = tally.totals.rows, tally.stopped
        findings.scored_by_other_bundles = sum(
            output.rows for output in intact.values() if rescoring.was_scored_by_another_bundle(output)
        )
        findings.different += [f"{shard.source}: {shard.reason}" for shard in tally.failed]
    if settings.report:
        report = json.dumps(findings.to_json(), indent=2, ensure_ascii=False) + "\n"
        storage.write_file(settings.report, report.encode())
    return findings


def _group_by_source(
    findings: Findings, existing: Iterable[Output], run_file: RunFile | None
) -> dict[str, list[Output]]:
    """Return the outputs of each shard; note those that are foreign or of another run."""
    by_source: dict[str, list[Output]] = defaultdict(list)
    for output in existing:
        if output.origin is None:
            findings.foreign.append(f"{output.path}: not written by sentiment-core score, or its footer is damaged")
            continue
        if run_file and not may_stand_beside(output.origin, run_file):
            findings.stale.append(f"{output.path}: made with another bundle or settings than {outputs.RUN_FILE} says")
        by_source[output.origin.unit.source].append(output)
    return by_source


def _planned_shards(planned: Corpus) -> Iterator[ExpectedShard | FailedShard]:
    """Yield the shards of a corpus as scoring planned it."""
    yield from planned.failed
    for _, units in itertools.groupby(planned.units, key=lambda unit: unit.source):
        *_, last = units  # they are in order
        stamp = FileStamp(last.source, last.size, last.mtime_ns)
        yield ExpectedShard(stamp, last.stop, needs_output=True, footer_hash=last.footer_hash)


def _current_shards(
    data: DataFiles, run_file: RunFile | None, limit: int | None
) -> Iterator[ExpectedShard | FailedShard]:
    """Yield the shards as they are now, up to the first `limit` rows.

    Failed are those that scoring with the settings of `run_file` lists as failed.
    """
    run, rows_left = run_file.run if run_file else None, limit
    for shard in corpus.read_footers(data, run.text_columns if run else (), run.keep if run else (), with_hash=True):
        if isinstance(shard, FailedShard):
            yield shard
            continue
        try:
            if run:
                columns.check_columns(shard.schema, shard.stamp.path, run.text_columns, run.keep, shard.folder_keys)
        except UserError as error:
            yield FailedShard(shard.stamp.path, str(error))
            continue
        rows = sum(shard.group_rows)
        if rows_left is not None:
            rows = min(rows, rows_left)
            rows_left -= rows
        yield ExpectedShard(shard.stamp, rows, rows > 0 or limit is None, shard.footer_hash)


def _read_failed_shards(folder: str) -> set[str]:
    """Return the shards that failed in the last run, as its summary says."""
    try:
        summary = json.loads(storage.read_file(storage.join(folder, outputs.SUMMARY_FILE)))
        return {shard["source"] for shard in summary["failed_shards"]}
    except (OSError, ValueError, KeyError, TypeError):  # no run has ended
        return set()


def _find_obstacle(root: str, run: Run | None, source: str, start: int, stop: int) -> str:
    """Return why rows of a shard cannot be read; empty if they can be. A footer does not tell of damaged pages.

    `run`: the last one, if the shard failed in it; None: nothing is read.
    """
    if run is None:
        return ""
    try:
        filesystem, inner_path = storage.locate(corpus.place_of(root, source))
        with filesystem.open_input_file(inner_path) as stream:
            file = pq.ParquetFile(stream)
            names = [*run.text_columns, *columns.kept_columns(file.schema_arrow, run.text_columns, run.keep)]
            first = 0
            for i in range(file.num_row_groups):
                last = first + file.metadata.row_group(i).num_rows
                if first < stop and last > start:
                    file.read_row_group(i, columns=names)
                first = last
    except Exception as error:  # a damaged file may raise anything
        return describe_error(error)
    return ""


def _check_shard(
    findings: Findings,
    faults: dict[str, str],
    shard: ExpectedShard,
    existing: list[Output],
    find_obstacle: Callable[[int, int], str],
) -> None:
    """Check that a shard's outputs cover its rows without gap or overlap, and have no `faults` (by path).

    `find_obstacle`: returns why the rows from one to another cannot be read; empty if they can be.
    """
    stamp, rows = shard.stamp, shard.rows

    def note_missing(start: int, stop: int) -> None:
        line = f"{stamp.path}: " + (f"rows {start} to {stop - 1}" if existing else f"all {rows} rows")
        if obstacle := find_obstacle(start, stop):
            findings.unreadable.append(f"{line}: {obstacle}")
        else:
            findings.missing.append(line)

    if not existing and shard.needs_output:
        note_missing(0, rows)
    units = [(output, output.origin.unit) for output in existing if output.origin]
    current: list[tuple[Output, UnitOrigin]] = []
    stale: list[tuple[Output, UnitOrigin]] = []
    for output, unit in sorted(units, key=lambda pair: pair[1].start):
        is_current = unit.has_version(stamp.size, stamp.mtime_ns, shard.footer_hash)
        (current if is_current else stale).append((output, unit))
        if faults.get(output.path):
            findings.damaged.append(f"{output.path}: {faults[output.path]}")
        findings.rows_out += output.rows
    # without a current output, rows of the earlier version count: they are no longer right, but they are not missing
    covered = 0  # rows that the outputs so far hold without a gap
    for output, unit in current or stale:
        start, stop = unit.start, unit.stop
        if stop > rows and current:
            findings.stale.append(f"{output.path}: holds rows from {rows} on, which are not asked for")
        if start > covered:
            note_missing(covered, start)
        if start < covered and current:
            findings.doubled.append(f"{stamp.path}: rows {start} to {min(covered, stop) - 1}, again in {output.path}")
        covered = max(covered, stop)
    if existing and covered < rows:
        note_missing(covered, rows)
    remedy = "deletes it" if current and covered >= rows else "scores the input again and replaces it"
    findings.stale += [
        f"{output.path}: its input {stamp.path} has changed since it was scored; the next sentiment-core score {remedy}"
        for output, _ in stale
    ]


def _describe_orphan(output: Output, source: str, is_shared: bool, of_table: bool) -> str:
    """Describe an output whose shard is gone; `is_shared`: a current output has some of its texts."""
    if of_table:
        remedy = "the next sentiment-core score deletes it"
    elif is_shared:
        remedy = "the next sentiment-core score deletes it if all of its rows stand in other outputs, or with --prune"
    else:
        remedy = "sentiment-core score --prune deletes it"
    return f"{output.path}: its input {source} is gone; {remedy}"


def _check_contents(folder: str, existing: Iterable[Output]) -> dict[str, str]:
    """Return what is wrong with the rows of these outputs, by path; empty where nothing is, or where it is foreign."""
    return dict(storage.map_in_threads(partial(_check_content, folder), existing))


def _check_content(folder: str, output: Output) -> tuple[str, str]:
    if output.origin is None or output.counts is None:
        return output.path, ""
    try:
        run = output.origin.run
        checked = [name for name in run.scored_columns if not name.endswith("probabilities")]
        checked += [run.text_hash_column] * output.has_text_hash
        table = outputs.read_output(folder, output.path, checked)
        return output.path, content.find_fault(table, output.origin, output.counts, output.has_text_hash)
    except Exception as error:  # the file may hold anything
        return output.path, f"cannot be checked: {describe_error(error)}"
