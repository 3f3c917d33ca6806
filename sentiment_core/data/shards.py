"""The corpus to score: Parquet shards found below a root, cut into work units.

A unit is a contiguous range of rows of one shard: a whole small shard, a range of row groups of a larger one, a part of
a row group too large to hold. Units are planned from the footers alone, so the same files always give the same units,
and everything here holds O(units) memory, never O(rows).
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
SHARD_UNITS = 65_536  # more no shard makes that is what its footer says: 2,147 million rows, or 512 GB of text
READ_ROWS = 8_192  # rows decoded at once
BUFFER_BYTES = 4 << 20  # read at once: a row group of any size passes through it
PARQUET = pa.dataset.ParquetFileFormat()


@dataclass(frozen=True, slots=True)
class Unit:
    source: str  # path of the shard relative to the root, with "/"
    start: int  # first row
    stop: int  # one behind the last row
    shard_rows: int
    size: int  # of the shard as planned: with `mtime_ns` it shows whether the shard changed since
    mtime_ns: int
    text_bytes: int  # uncompressed, estimated from the footer

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def output(self) -> str:
        """Path of the unit's scored rows relative to the output root: the shard's own, unless it has several units."""
        stem, suffix = os.path.splitext(self.source)
        if suffix.lower() not in SUFFIXES:
            stem, suffix = self.source, ".parquet"
        if self.rows == self.shard_rows:
            return stem + suffix
        return f"{stem}.rows-{self.start:012}-{self.stop:012}{suffix}"


@dataclass(frozen=True)
class Shard:
    stamp: FileStamp
    schema: pa.Schema
    group_rows: list[int]
    group_text_bytes: list[int]  # uncompressed, as the footer tells
    group_bytes: list[int]  # of all columns


@dataclass(frozen=True)
class FailedShard:
    source: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    root: str  # place that the shards' paths are relative to
    units: list[Unit]
    failed: list[FailedShard]  # shards that cannot be scored; the others can
    schema_differences: list[str]  # columns to keep that are not alike in all shards, in words

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)


def plan(place: str, text_column: str, keep: tuple[str, ...] | None, reserved: tuple[str, ...]) -> Corpus:
    """Units of all readable shards at `place`, and the shards that are not.

    Raises `UserError` if there is no shard, no readable one, none with the text column, or one that would bring a
    column of a `reserved` name into the output.
    """
    root, stamps = files.find_files(place, SUFFIXES)
    units: list[Unit] = []
    failed: list[FailedShard] = []
    differences = SchemaDifferences()
    unusable: UserError | None = None  # the first shard whose columns do not serve
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
            f"--input {place} holds no readable Parquet file: {failed[0].source}: {failed[0].reason}"
        )
    _check_outputs(units)
    return Corpus(root, units, failed, differences.describe())


def read_footers(root: str, stamps: list[FileStamp], text_column: str | None) -> Iterator[Shard | FailedShard]:
    """The shards' footers, read in parallel, in the order of `stamps`."""

    def read(stamp: FileStamp) -> Shard | FailedShard:
        try:
            storage.check_relative_path(stamp.path)
            metadata = read_metadata(root, stamp.path)
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            if any(group.num_rows < 0 for group in groups):
                raise OSError("its footer tells of a negative number of rows")
            names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            text = names.index(text_column) if text_column in names else None
            shard = Shard(
                stamp,
                metadata.schema.to_arrow_schema(),
                [group.num_rows for group in groups],
                [0 if text is None else group.column(text).total_uncompressed_size for group in groups],
                [group.total_byte_size for group in groups],
            )
            if len(list(itertools.islice(cut_into_units(shard), SHARD_UNITS + 1))) > SHARD_UNITS:
                told = f"{metadata.num_rows:,} rows and {sum(shard.group_text_bytes):,} bytes of text"
                raise OSError(f"its footer tells of {told}; write it as several shards")
            return shard
        except Exception as error:  # a damaged footer may raise anything
            return FailedShard(stamp.path, describe_error(error))

    return storage.map_in_threads(read, stamps)


def read_metadata(root: str, path: str) -> pq.FileMetaData:
    """A Parquet file's footer. By way of a fragment, which takes a third of the time of `pq.read_metadata`."""
    filesystem, inner = storage.locate(storage.join(root, path))
    return storage.retry_transient_errors(root, lambda: PARQUET.make_fragment(inner, filesystem).metadata)


def cut_into_units(shard: Shard) -> Iterator[Unit]:
    """The shard's units, in row order; a shard without rows is one unit without rows."""

    def unit(start: int, stop: int, text_bytes: int) -> Unit:
        stamp = shard.stamp
        return Unit(stamp.path, start, stop, sum(shard.group_rows), stamp.size, stamp.mtime_ns, text_bytes)

    first = start = 0  # row of the current group, and of the unit that is being gathered
    fill, gathered = 0.0, 0  # how full that unit is, and its bytes of text
    for rows, text, whole in zip(shard.group_rows, shard.group_text_bytes, shard.group_bytes, strict=True):
        if rows <= 0:
            continue
        units = max(rows / UNIT_ROWS, min(max(text / UNIT_TEXT_BYTES, whole / UNIT_BYTES), rows))
        if first > start and fill + units > 1:
            yield unit(start, first, gathered)
            start, fill, gathered = first, 0.0, 0
        if units > 1:
            pieces = math.ceil(units)
            for piece in range(pieces):
                yield unit(first + rows * piece // pieces, first + rows * (piece + 1) // pieces, text // pieces)
            start = first + rows
        else:
            fill += units
            gathered += text
        first += rows
    if first > start or first == 0:
        yield unit(start, first, gathered)


def limit_rows(corpus: Corpus, rows: int) -> Corpus:
    """The corpus cut down to its first rows."""
    units = []
    for unit in corpus.units:
        if rows <= 0:
            break
        units.append(replace(unit, stop=min(unit.stop, unit.start + rows)))
        rows -= unit.rows
    return replace(corpus, units=units)


def read_texts(root: str, unit: Unit, text_column: str) -> pa.ChunkedArray:
    """The unit's texts as dictionaries: a text that stands in many rows is held once. Raises as `read_rows`."""
    return storage.retry_transient_errors(
        root, lambda: _read_rows(root, unit, lambda _: [text_column], [text_column])
    ).column(0)


def read_rows(root: str, unit: Unit, choose: Callable[[pa.Schema], list[str]]) -> pa.Table:
    """The unit's rows of the columns that `choose` takes from the shard's schema, in the shard's order, in their
    `plain` types.

    Raises one of `failures.UNREADABLE`, also if the shard is no longer as planned.
    """
    table = storage.retry_transient_errors(root, lambda: _read_rows(root, unit, choose, []))
    return table.cast(pa.schema([field.with_type(canonical_type(field.type)) for field in table.schema]))


def _read_rows(root: str, unit: Unit, choose: Callable[[pa.Schema], list[str]], as_dictionary: list[str]) -> pa.Table:
    now = storage.read_stamp(root, unit.source)
    if (now.size, now.mtime_ns) != (unit.size, unit.mtime_ns):
        raise FileChanged("changed while it was being scored; run again")
    filesystem, path = storage.locate(storage.join(root, unit.source))
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES, read_dictionary=as_dictionary)
        names = choose(file.schema_arrow)
        groups: list[int] = []
        skip = first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < unit.stop and first + rows > unit.start:
                if not groups:
                    skip = unit.start - first
                groups.append(group)
            first += rows
        wanted, batches = unit.rows, []
        if names:
            for batch in file.iter_batches(READ_ROWS, row_groups=groups, columns=names):
                part = batch.slice(min(skip, len(batch)), wanted)
                skip -= min(skip, len(batch))
                wanted -= len(part)
                batches.append(part)
                if not wanted:
                    break
            if wanted:
                raise OSError(f"broke off: {wanted} of the rows {unit.start} to {unit.stop} are missing")
        schema = pa.schema([file.schema_arrow.field(name) for name in names])
        return pa.Table.from_batches(batches, schema)


def _check_outputs(units: list[Unit]) -> None:
    outputs: dict[str, str] = {}
    for unit in units:
        other = outputs.setdefault(unit.output, unit.source)
        if other != unit.source:
            raise UserError(f"{other} and {unit.source} would both be scored into {unit.output}; rename one of them")
