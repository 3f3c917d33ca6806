"""Plan a corpus of Parquet shards as work units, and read a unit's rows.

A work unit is a contiguous range of rows of one shard: a whole small shard, a range of row groups of a larger one, or a
part of a row group too large to hold. Units are planned from the footers alone, so the same files always give the same
units, and everything here holds O(units) memory, never O(rows).
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from sentiment_core.data import columns, files
from sentiment_core.data.columns import SchemaDifferences
from sentiment_core.data.types import canonical_type
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import FileChanged, describe_error
from sentiment_core.runtime.storage import FileStamp

SUFFIXES = (".parquet", ".pq", ".parq")
UNIT_ROWS = 32_768  # most rows of a unit: what is lost when a worker dies, and the grain of the progress bar
# Most bytes of text in a unit, and of all columns, unless one row alone has more: keeps memory flat on long texts.
UNIT_TEXT_BYTES, UNIT_BYTES = 8 << 20, 256 << 20
MAX_SHARD_UNITS = 65_536  # 2,147 million rows or 512 GB of text; a footer that gives more is not believed
READ_ROWS = 8_192  # rows decoded at once
BUFFER_BYTES = 4 << 20  # read at once: a row group of any size passes through it
PARQUET = pa.dataset.ParquetFileFormat()


@dataclass(frozen=True, slots=True)
class Unit:
    """A work unit: a range of rows of one shard, committed as a whole."""

    source: str  # path of the shard relative to the root, with "/"
    start: int  # first row
    stop: int  # row after the last
    shard_rows: int
    size: int  # bytes of the shard when planned: with `mtime_ns` it shows whether the shard changed since
    mtime_ns: int
    text_bytes: int  # uncompressed, estimated from the footer

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def output(self) -> str:
        """Path of the unit's scored rows relative to the output root.

        It is the shard's own path, with the rows in its name if the shard has several units.
        """
        stem, suffix = os.path.splitext(self.source)
        if suffix.lower() not in SUFFIXES:
            stem, suffix = self.source, ".parquet"
        if self.rows == self.shard_rows:
            return stem + suffix
        return f"{stem}.rows-{self.start:012}-{self.stop:012}{suffix}"


@dataclass(frozen=True)
class Shard:
    """A Parquet file to score, as its footer describes it."""

    stamp: FileStamp
    schema: pa.Schema
    group_rows: list[int]  # by row group
    group_text_bytes: list[int]  # of the text column, uncompressed
    group_bytes: list[int]  # of all columns, uncompressed

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.group_rows)


@dataclass(frozen=True)
class FailedShard:
    """A shard that cannot be scored, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The planned input: its work units, and the shards that cannot be scored."""

    root: str  # path or URI that the shards' paths are relative to
    units: list[Unit]
    failed: list[FailedShard]
    schema_differences: list[str]  # columns to keep that differ between shards, described

    @property
    def rows(self) -> int:
        """Number of rows of all units."""
        return sum(unit.rows for unit in self.units)


def plan(path: str, text_column: str, keep: tuple[str, ...] | None, reserved: tuple[str, ...]) -> Corpus:
    """Plan the units of all readable shards at `path`, and list the other shards.

    Raises `UserError` if there is no shard, no readable one, none with the text column, or one that would bring a
    column of a `reserved` name into the output.
    """
    root, stamps = files.find_files(path, SUFFIXES)
    units: list[Unit] = []
    failed: list[FailedShard] = []
    differences = SchemaDifferences()
    unusable: UserError | None = None  # of the first shard with the wrong columns
    for shard in read_footers(root, stamps, text_column):
        if isinstance(shard, FailedShard):
            failed.append(shard)
            continue
        try:
            columns.check_columns(shard.schema, shard.stamp.path, text_column, keep)
        except UserError as error:
            unusable = unusable or error
            failed.append(FailedShard(shard.stamp.path, str(error)))
            continue
        columns.check_clash(shard.schema, shard.stamp.path, text_column, keep, reserved)
        units += cut_into_units(shard)
        differences.note(shard.schema, shard.stamp.path, columns.kept_columns(shard.schema, text_column, keep))
    if not units:
        raise unusable or UserError(
            f"--input {path} holds no readable Parquet file: {failed[0].source}: {failed[0].reason}"
        )
    _check_outputs_differ(units)
    return Corpus(root, units, failed, differences.describe())


def read_footers(root: str, stamps: list[FileStamp], text_column: str | None) -> Iterator[Shard | FailedShard]:
    """Read the shards' footers in parallel, in the order of `stamps`."""

    def read(stamp: FileStamp) -> Shard | FailedShard:
        try:
            storage.check_relative_path(stamp.path)
            metadata = read_metadata(root, stamp.path)
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            if any(group.num_rows < 0 for group in groups):
                raise OSError("its footer gives a negative number of rows; write the file again")
            names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            text = names.index(text_column) if text_column in names else None
            shard = Shard(
                stamp,
                metadata.schema.to_arrow_schema(),
                [group.num_rows for group in groups],
                [0 if text is None else group.column(text).total_uncompressed_size for group in groups],
                [group.total_byte_size for group in groups],
            )
            if len(list(itertools.islice(cut_into_units(shard), MAX_SHARD_UNITS + 1))) > MAX_SHARD_UNITS:
                raise OSError(
                    f"its footer gives {metadata.num_rows:,} rows and {sum(shard.group_text_bytes):,} bytes of text; "
                    "write it as several shards"
                )
            return shard
        except Exception as error:  # a damaged footer may raise anything
            return FailedShard(stamp.path, describe_error(error))

    return storage.map_in_threads(read, stamps)


def read_metadata(root: str, path: str) -> pq.FileMetaData:
    """Read a Parquet file's footer.

    By way of a fragment, which takes a third of the time of `pq.read_metadata`.
    """
    filesystem, inner_path = storage.locate(storage.join(root, path))
    return storage.retry_transient_errors(root, lambda: PARQUET.make_fragment(inner_path, filesystem).metadata)


def cut_into_units(shard: Shard) -> Iterator[Unit]:
    """Cut a shard into units, in row order; one without rows is one unit without rows."""

    def unit(start: int, stop: int, text_bytes: int) -> Unit:
        stamp = shard.stamp
        return Unit(stamp.path, start, stop, shard.rows, stamp.size, stamp.mtime_ns, text_bytes)

    first = start = 0  # row of the current group, and of the unit that is being gathered
    fill, gathered_bytes = 0.0, 0  # how full that unit is, and its text
    for rows, text_bytes, all_bytes in zip(shard.group_rows, shard.group_text_bytes, shard.group_bytes, strict=True):
        if rows <= 0:
            continue
        units = max(rows / UNIT_ROWS, min(max(text_bytes / UNIT_TEXT_BYTES, all_bytes / UNIT_BYTES), rows))
        if first > start and fill + units > 1:
            yield unit(start, first, gathered_bytes)
            start, fill, gathered_bytes = first, 0.0, 0
        if units > 1:
            parts = math.ceil(units)
            for part in range(parts):
                yield unit(first + rows * part // parts, first + rows * (part + 1) // parts, text_bytes // parts)
            start = first + rows
        else:
            fill += units
            gathered_bytes += text_bytes
        first += rows
    if first > start or first == 0:
        yield unit(start, first, gathered_bytes)


def limit_rows(corpus: Corpus, rows: int) -> Corpus:
    """Cut a corpus down to its first rows."""
    units = []
    for unit in corpus.units:
        if rows <= 0:
            break
        units.append(replace(unit, stop=min(unit.stop, unit.start + rows)))
        rows -= unit.rows
    return replace(corpus, units=units)


def read_texts(root: str, unit: Unit, text_column: str) -> pa.ChunkedArray:
    """Read a unit's texts as dictionaries, which hold a repeated text once.

    Raises what `read_rows` raises.
    """
    table = storage.retry_transient_errors(root, lambda: _read_rows(root, unit, lambda _: [text_column], [text_column]))
    return table.column(0)


def read_rows(root: str, unit: Unit, choose: Callable[[pa.Schema], list[str]]) -> pa.Table:
    """Read a unit's rows of the columns that `choose` takes from the shard's schema.

    Columns stand in the order of `choose` and have their canonical types. Raises one of `failures.UNREADABLE`; that is
    `FileChanged` if the shard is no longer as planned.
    """
    table = storage.retry_transient_errors(root, lambda: _read_rows(root, unit, choose, []))
    return table.cast(pa.schema([field.with_type(canonical_type(field.type)) for field in table.schema]))


def _read_rows(root: str, unit: Unit, choose: Callable[[pa.Schema], list[str]], as_dictionary: list[str]) -> pa.Table:
    stamp = storage.read_stamp(root, unit.source)
    if (stamp.size, stamp.mtime_ns) != (unit.size, unit.mtime_ns):
        raise FileChanged("changed while it was being scored; run again")
    filesystem, path = storage.locate(storage.join(root, unit.source))
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES, read_dictionary=as_dictionary)
        names = choose(file.schema_arrow)
        groups, skip = _overlapping_groups(file.metadata, unit)
        missing, batches = unit.rows, []
        if names:
            for batch in file.iter_batches(READ_ROWS, row_groups=groups, columns=names):
                part = batch.slice(min(skip, len(batch)), missing)
                skip -= min(skip, len(batch))
                missing -= len(part)
                batches.append(part)
                if not missing:
                    break
            if missing:
                raise OSError(f"ends early: {missing} of the rows {unit.start} to {unit.stop} are missing")
        schema = pa.schema([file.schema_arrow.field(name) for name in names])
        return pa.Table.from_batches(batches, schema)


def _overlapping_groups(metadata: pq.FileMetaData, unit: Unit) -> tuple[list[int], int]:
    """List the row groups with the unit's rows.

    Also returns the number of rows before the unit in the first of them.
    """
    groups: list[int] = []
    skip = first = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if first < unit.stop and first + rows > unit.start:
            if not groups:
                skip = unit.start - first
            groups.append(group)
        first += rows
    return groups, skip


def _check_outputs_differ(units: list[Unit]) -> None:
    """Refuse two shards whose scored rows would be one file. Raises `UserError`."""
    sources: dict[str, str] = {}
    for unit in units:
        source = sources.setdefault(unit.output, unit.source)
        if source != unit.source:
            raise UserError(f"{source} and {unit.source} would both be scored into {unit.output}; rename one of them")
