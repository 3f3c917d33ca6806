"""Check that every input row was scored exactly once, from nothing but the files of input and output; and, if asked to,
that the scores are those the bundle gives."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sentiment_core import columns, corpus, scored, storage
from sentiment_core.corpus import FailedShard, Shard
from sentiment_core.errors import EXIT_FAULT, EXIT_OK, EXIT_PARTIAL, BadRequest
from sentiment_core.scored import Output
from sentiment_core.settings import REQUIRED, check, setting

CHECKED = ("label", "confidence", "status", "source", "row")
SHOWN = 20  # findings of a kind in the report
FAULTS = ("missing", "doubled", "stale", "damaged", "foreign", "different")


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
    stale: list[str] = field(default_factory=list)  # outputs of a shard that has changed or is gone
    damaged: list[str] = field(default_factory=list)  # outputs that cannot be read or do not hold what they say
    foreign: list[str] = field(default_factory=list)  # Parquet files without a footer of jobs/score.py
    different: list[str] = field(default_factory=list)  # outputs that do not hold what their bundle gives now
    unreadable: list[str] = field(default_factory=list)  # input shards
    compared: int | None = None  # rows scored once more and the same; None if that was not asked for
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


def verify(settings: VerifySettings, since_ns: int = 0) -> Findings:
    """Compare input and output; of the outputs, the rows of those written at `since_ns` or later, and the footers of
    all. Raises `BadRequest` if one of the places, or the bundle where it is needed, is not there."""
    place = scored.place_of(settings.out, settings.limit)
    if not storage.is_folder(place):
        raise BadRequest(f"--out {place} does not exist; expected the output folder of jobs/score.py")
    run = scored.read_run(place)
    rescoring = None
    if settings.sample or settings.full:
        from sentiment_core.rescoring import Rescoring  # and with it Ray: a second that the files do not need

        rescoring = Rescoring.of(place, settings.model)
    root, stamps = storage.find_files(settings.input, corpus.SUFFIXES)
    outputs: dict[str, list[Output]] = defaultdict(list)
    findings = Findings()
    found = list(scored.read_outputs(place))
    read = [output for output in found if output.mtime_ns >= since_ns]
    faults = dict(storage.in_parallel(lambda output: (output.path, _fault_of(place, output)), read))
    for output in found:
        if not output.origin:
            findings.foreign.append(f"{output.path}: not written by jobs/score.py, or its footer is damaged")
        else:
            if run and not scored.belongs(output.origin["run"], run):
                findings.stale.append(f"{output.path}: made by another bundle or settings than {scored.RUN_FILE} tells")
            outputs[output.origin["unit"]["source"]].append(output)
    left = settings.limit
    for shard in corpus.read_footers(root, stamps, run["text_column"] if run else None):
        if isinstance(shard, FailedShard):
            findings.unreadable.append(f"{shard.source}: {shard.reason}")
            outputs.pop(shard.source, None)
            continue
        try:
            if run:
                columns.check(shard.schema, shard.stamp.path, run["text_column"], run["keep"])
        except BadRequest as error:  # jobs/score.py lists it as failed too
            findings.unreadable.append(str(error))
            outputs.pop(shard.stamp.path, None)
            continue
        rows = sum(shard.group_rows)
        if left is not None:
            rows, left = min(rows, left), left - min(rows, left)
        findings.rows_in += rows
        _check_shard(findings, faults, shard, rows, outputs.pop(shard.stamp.path, []), limited=left is not None)
    for source, orphans in outputs.items():
        findings.stale += [
            f"{output.path}: its input {source} is gone; jobs/score.py --prune deletes it" for output in orphans
        ]
    if rescoring:
        whole = {output.path: output for output in found if not faults.get(output.path)}
        some = None if settings.full else settings.sample
        tally = rescoring.compare(settings.input, whole, some, settings.workers)
        findings.compared, findings.stopped = tally.totals.rows, tally.stopped
        findings.different += [f"{shard.source}: {shard.reason}" for shard in tally.failed]
    return findings


def _check_shard(
    findings: Findings, faults: dict[str, str], shard: Shard, rows: int, outputs: list[Output], limited: bool
) -> None:
    """One shard's outputs must cover its rows 0 to `rows` without gap or overlap, and have no `faults`, by path."""
    stamp = shard.stamp
    covered = 0
    if not outputs and (rows or not limited):
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
        return f"cannot be checked: {storage.describe(error)}"
