"""Check that every input row was scored exactly once, from nothing but the files of input and output; and, if asked to,
that the scores are those the bundle gives."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.data import columns, files
from sentiment_core.data import shards as corpus
from sentiment_core.data.shards import Corpus, FailedShard
from sentiment_core.errors import EXIT_FAULT, EXIT_OK, EXIT_PARTIAL, UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.scoring import outputs as scored
from sentiment_core.scoring.outputs import Output

CHECKED = ("label", "confidence", "status", "source", "row")
SHOWN = 20  # findings of a kind in the report
FAULTS = ("missing", "doubled", "stale", "orphaned", "damaged", "foreign", "different")


@dataclass(frozen=True)
class VerifySettings:
    input: str = setting(REQUIRED, "the input that was scored: as given to jobs/score.py", "P")
    out: str = setting(REQUIRED, "the output folder or URI of jobs/score.py", "DIR")
    limit: int | None = setting(None, "only the first N rows, in the folder OUT-limit-N, as with jobs/score.py", "N")
    sample: int | None = setting(None, "also score about N rows, taken at random, once more and compare", "N")
    full: bool = setting(False, "also score all rows once more and compare")
    model: str | None = setting(None, "the bundle, if it is no longer where jobs/score.py found it", "BUNDLE")
    workers: int | None = setting(None, "actors that score once more, as with jobs/score.py", "N")

    def __post_init__(self) -> None:
        for name in ("limit", "sample", "workers"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, value, "1 or more")


@dataclass
class Findings:
    """What verification found; all lists empty means that every input row stands in the output exactly once."""

    rows_in: int = 0
    rows_out: int = 0
    missing: list[str] = field(default_factory=list)  # input rows without output
    doubled: list[str] = field(default_factory=list)  # input rows in two outputs
    stale: list[str] = field(default_factory=list)  # outputs of a shard that has changed, or of other settings
    orphaned: list[str] = field(default_factory=list)  # outputs of a shard that is gone
    damaged: list[str] = field(default_factory=list)  # outputs that cannot be read or do not hold what they say
    foreign: list[str] = field(default_factory=list)  # Parquet files without a footer of jobs/score.py
    different: list[str] = field(default_factory=list)  # outputs that do not hold what their bundle gives now
    unreadable: list[str] = field(default_factory=list)  # input shards
    compared: int | None = None  # rows scored once more and the same; None if that was not asked for
    passed_over: int = 0  # rows that were not, since another bundle scored them
    stopped: str = ""  # why not all of these were

    @property
    def exit_code(self) -> int:
        if self.stopped or any(getattr(self, kind) for kind in FAULTS):
            return EXIT_FAULT
        return EXIT_PARTIAL if self.unreadable else EXIT_OK

    def report(self) -> str:
        lines = [f"{self.rows_in:,} rows in, {self.rows_out:,} rows out"]
        if self.compared is not None:
            lines.append(
                f"scored once more: {self.compared:,} rows are the same; outputs that differ: {len(self.different):,}"
            )
        if self.passed_over:
            lines.append(f"not scored once more: {self.passed_over:,} rows that other bundles have scored")
        if self.stopped:
            lines.append(f"stopped: {self.stopped}")
        for kind in (*FAULTS, "unreadable"):
            found = getattr(self, kind)
            lines += [f"{kind}: {text}" for text in found[:SHOWN]]
            if len(found) > SHOWN:
                lines.append(f"{kind}: ... {len(found):,} in all")
        good = {
            EXIT_OK: "every input row is scored exactly once",
            EXIT_PARTIAL: "every row of the readable shards is scored exactly once",
            EXIT_FAULT: "NOT every input row is scored, rightly and exactly once; delete what is damaged, doubled or "
            "different and run jobs/score.py again",
        }
        return "\n".join([*lines, good[self.exit_code]])


@dataclass(frozen=True)
class Expected:
    """A shard whose rows 0 to `rows` should stand in the output."""

    stamp: FileStamp
    rows: int
    needed: bool  # whether there must be an output, even if there are no rows


def verify(settings: VerifySettings, since_ns: int = 0, planned: Corpus | None = None) -> Findings:
    """Compare input and output; of the outputs, the rows of those written at `since_ns` or later, and the footers of
    all. `planned`: the input as it was, instead of as it is now. Raises `UserError` if one of the places, or the
    bundle where it is needed, is not there."""
    place = scored.place_of(settings.out, settings.limit)
    if not storage.is_folder(place):
        raise UserError(f"--out {place} does not exist; expected the output folder of jobs/score.py")
    run = scored.read_run(place)
    rescoring = None
    if settings.sample or settings.full:
        from sentiment_core.scoring.rescore import Rescoring  # and with it Ray: a second that the files do not need

        rescoring = Rescoring.of(place, settings.model)
    outputs: dict[str, list[Output]] = defaultdict(list)
    findings = Findings()
    if planned:
        shards = _shards_of(planned)
    else:
        shards = _read_shards(*files.find_files(settings.input, corpus.SUFFIXES), run, settings.limit)
    found = list(scored.read_outputs(place))
    read = [output for output in found if output.mtime_ns >= since_ns]
    faults = dict(storage.map_in_threads(lambda output: (output.path, _fault_of(place, output)), read))
    for output in found:
        if not output.origin:
            findings.foreign.append(f"{output.path}: not written by jobs/score.py, or its footer is damaged")
        else:
            if run and not scored.belongs(output.origin["run"], run):
                findings.stale.append(f"{output.path}: made by another bundle or settings than {scored.RUN_FILE} tells")
            outputs[output.origin["unit"]["source"]].append(output)
    for shard in shards:
        if isinstance(shard, FailedShard):
            findings.unreadable.append(f"{shard.source}: {shard.reason}")
            outputs.pop(shard.source, None)
        else:
            findings.rows_in += shard.rows
            _check_shard(findings, faults, shard, outputs.pop(shard.stamp.path, []))
    for source, orphans in outputs.items():
        findings.orphaned += [
            f"{output.path}: stale, for its input {source} is gone; jobs/score.py --prune deletes it"
            for output in orphans
        ]
    if rescoring:
        whole = {output.path: output for output in found if not faults.get(output.path)}
        some = None if settings.full else settings.sample
        tally = rescoring.compare(settings.input, whole, some, settings.workers)
        findings.compared, findings.stopped = tally.totals.rows, tally.stopped
        findings.passed_over = sum(rescoring.passes_over(output) * output.rows for output in whole.values())
        findings.different += [f"{shard.source}: {shard.reason}" for shard in tally.failed]
    return findings


def _shards_of(planned: Corpus) -> Iterator[Expected | FailedShard]:
    """The shards of a corpus as scoring planned it."""
    yield from planned.failed
    for _, units in itertools.groupby(planned.units, key=lambda unit: unit.source):
        *_, last = units  # they lie in order
        yield Expected(FileStamp(last.source, last.size, last.mtime_ns), last.stop, needed=True)


def _read_shards(
    root: str, stamps: list[FileStamp], run: dict | None, left: int | None
) -> Iterator[Expected | FailedShard]:
    """The shards as they are now, up to the first rows that are `left`; failed are those that jobs/score.py, with the
    settings of `run`, lists as failed."""
    limited = left is not None
    for shard in corpus.read_footers(root, stamps, run["text_column"] if run else None):
        if isinstance(shard, FailedShard):
            yield shard
            continue
        try:
            if run:
                columns.check_columns(shard.schema, shard.stamp.path, run["text_column"], run["keep"])
        except UserError as error:
            yield FailedShard(shard.stamp.path, str(error))
            continue
        rows = sum(shard.group_rows)
        if left is not None:
            rows, left = min(rows, left), left - min(rows, left)
        yield Expected(shard.stamp, rows, needed=rows > 0 or not limited)


def _check_shard(findings: Findings, faults: dict[str, str], shard: Expected, outputs: list[Output]) -> None:
    """One shard's outputs must cover its rows without gap or overlap, and have no `faults`, by path."""
    stamp, rows = shard.stamp, shard.rows
    covered = 0
    if not outputs and shard.needed:
        findings.missing.append(f"{stamp.path}: all {rows} rows")
    for output in sorted(outputs, key=lambda output: output.origin["unit"]["start"]):
        unit = output.origin["unit"]
        start, stop = unit["start"], unit["stop"]
        if (unit["size"], unit["mtime_ns"]) != (stamp.size, stamp.mtime_ns):
            findings.stale.append(f"{output.path}: its input {stamp.path} has changed since it was scored")
        if faults.get(output.path):
            findings.damaged.append(f"{output.path}: {faults[output.path]}")
        findings.rows_out += output.rows
        if stop > rows:
            findings.stale.append(f"{output.path}: it holds rows from {rows} on, which are not asked for")
        if start > covered:
            findings.missing.append(f"{stamp.path}: rows {covered} to {start - 1}")
        if start < covered:
            findings.doubled.append(f"{stamp.path}: rows {start} to {min(covered, stop) - 1}, again in {output.path}")
        covered = max(covered, stop)
    if outputs and covered < rows:
        findings.missing.append(f"{stamp.path}: rows {covered} to {rows - 1}")


def _fault_of(place: str, output: Output) -> str:
    """What is wrong with an output's content; empty if nothing, or if it is foreign."""
    if not output.origin or not output.counts:
        return ""
    unit, counts = output.origin["unit"], output.counts
    try:
        table = scored.read(place, output.path, CHECKED)
        absent = [name for name in CHECKED if table.column_names.count(name) != 1]
        if absent:
            return f"has no column {absent[0]!r}, or several"
        if not np.array_equal(table["row"].to_numpy(), np.arange(unit["start"], unit["stop"])):
            return f"its rows are not {unit['start']} to {unit['stop'] - 1} in order"
        if len(table) and pc.unique(table["source"]).to_pylist() != [unit["source"]]:
            return f"its rows are not all of {unit['source']}"
        for column, without in (("confidence", ["empty", "null"]), ("label", ["empty", "null", "abstained"])):
            missing = pc.is_in(table["status"], pa.array(without))
            if pc.any(pc.not_equal(pc.is_null(table[column]), missing)).as_py():
                return f"{column} is null where status says it is scored, or the other way round"
        for column, told in (("status", counts.status), ("label", counts.labels)):
            found = Counter(value for value in table[column].to_pylist() if value is not None)
            if found != Counter(told):
                return f"{column} is not as its footer counts it"
        confidence = table["confidence"].drop_null().to_numpy()
        return "" if ((confidence > 0) & (confidence <= 1)).all() else "a confidence is not between 0 and 1"
    except Exception as error:  # it may hold anything
        return f"cannot be checked: {describe_error(error)}"
