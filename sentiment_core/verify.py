"""Check that every input row was scored exactly once, from nothing but the files of input and output."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sentiment_core import corpus, scored, storage
from sentiment_core.corpus import FailedShard, Shard
from sentiment_core.errors import EXIT_FAULT, EXIT_OK, EXIT_PARTIAL, BadRequest
from sentiment_core.scored import Output
from sentiment_core.settings import REQUIRED, check, setting

CHECKED = ("label", "confidence", "status", "source", "row")
READERS = 8  # threads; each holds the checked columns of one output
SHOWN = 20  # findings of a kind in the report


@dataclass(frozen=True)
class VerifySettings:
    input: str = setting(REQUIRED, "the input that was scored: as given to jobs/score.py", "P")
    out: str = setting(REQUIRED, "the output folder or URI of jobs/score.py", "DIR")
    limit: int | None = setting(None, "only the first N rows, in the folder OUT-limit-N, as with jobs/score.py", "N")

    def __post_init__(self) -> None:
        check(self.limit is None or self.limit >= 1, "limit", self.limit, "1 or more")


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
    unreadable: list[str] = field(default_factory=list)  # input shards

    @property
    def exit_code(self) -> int:
        if self.missing or self.doubled or self.stale or self.damaged or self.foreign:
            return EXIT_FAULT
        return EXIT_PARTIAL if self.unreadable else EXIT_OK

    def report(self) -> str:
        lines = [f"{self.rows_in:,} rows in, {self.rows_out:,} rows out"]
        for kind in ("missing", "doubled", "stale", "damaged", "foreign", "unreadable"):
            found = getattr(self, kind)
            lines += [f"{kind}: {text}" for text in found[:SHOWN]]
            if len(found) > SHOWN:
                lines.append(f"{kind}: ... {len(found):,} in all")
        good = {
            EXIT_OK: "every input row is scored exactly once",
            EXIT_PARTIAL: "every row of the readable shards is scored exactly once",
            EXIT_FAULT: "NOT every input row is scored exactly once; delete what is damaged or doubled and run "
            "jobs/score.py again",
        }
        return "\n".join([*lines, good[self.exit_code]])


def verify(settings: VerifySettings) -> Findings:
    """Compare input and output. Raises `BadRequest` if one of them is not there."""
    place = storage.absolute(settings.out) + (f"-limit-{settings.limit}" if settings.limit else "")
    if not storage.is_folder(place):
        raise BadRequest(f"--out {place} does not exist; expected the output folder of jobs/score.py")
    run = scored.read_run(place)
    root, stamps = storage.find_files(settings.input, corpus.SUFFIXES)
    outputs: dict[str, list[Output]] = defaultdict(list)
    findings = Findings()
    found = scored.read_outputs(place)
    with ThreadPoolExecutor(READERS) as pool:
        faults = dict(zip((o.path for o in found), pool.map(lambda o: _fault_of(place, o), found), strict=True))
    for output in found:
        if not output.origin:
            findings.foreign.append(f"{output.path}: not written by jobs/score.py, or its footer is damaged")
        else:
            if run and output.origin["run"] != run:
                findings.stale.append(f"{output.path}: made by another bundle or settings than {scored.RUN_FILE} tells")
            outputs[output.origin["unit"]["source"]].append(output)
    left = settings.limit
    for shard in corpus.read_footers(root, stamps, None):
        if isinstance(shard, FailedShard):
            findings.unreadable.append(f"{shard.source}: {shard.reason}")
            outputs.pop(shard.source, None)
            continue
        try:
            if run:
                corpus.check_columns(shard, run["text_column"], run["keep"])
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
            f"{output.path}: its input {source} is gone; delete it if it is not wanted" for output in orphans
        ]
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
        if faults[output.path]:
            findings.damaged.append(f"{output.path}: {faults[output.path]}")
        findings.rows_out += output.rows
        if start > covered:
            findings.missing.append(f"{stamp.path}: rows {covered} to {start - 1}")
        if start < covered:
            findings.doubled.append(f"{stamp.path}: rows {start} to {min(covered, stop) - 1}, again in {output.path}")
        covered = max(covered, stop)
    if outputs and covered < rows:
        findings.missing.append(f"{stamp.path}: rows {covered} to {rows - 1}")


def _fault_of(place: str, output: Output) -> str:
    """What is wrong with an output's content; empty if nothing, or if it is foreign."""
    if not output.origin:
        return ""
    unit = output.origin["unit"]
    filesystem, path = storage.locate(storage.join(place, output.path))

    def read() -> pa.Table:
        with filesystem.open_input_file(path) as stream:
            file = pq.ParquetFile(stream)
            return file.read(columns=[name for name in CHECKED if name in file.schema_arrow.names])

    try:
        table = storage.patiently(place, read)
    except storage.UNREADABLE as error:
        return f"cannot be read: {corpus.describe(error)}"
    missing = [name for name in CHECKED if name not in table.column_names]
    if missing:
        return f"has no column {missing[0]!r}"
    if not np.array_equal(table["row"].to_numpy(), np.arange(unit["start"], unit["stop"])):
        return f"its rows are not {unit['start']} to {unit['stop'] - 1} in order"
    if len(table) and pc.unique(table["source"]).to_pylist() != [unit["source"]]:
        return f"its rows are not all of {unit['source']}"
    unscored = pc.is_in(table["status"], pa.array(["empty", "null"]))
    for column in ("label", "confidence"):
        if pc.any(pc.not_equal(pc.is_null(table[column]), unscored)).as_py():
            return f"{column} is null where status says it is scored, or the other way round"
    return ""
