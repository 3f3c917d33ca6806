"""Plan a corpus of Parquet shards as work units; `unit_reader` reads a unit's rows.

A work unit is a contiguous range of rows of one shard: a whole small shard, a range of row groups of a larger one, or a
part of a row group too large to hold. Units are planned from the footers alone, so the same files always give the same
units, and everything here holds O(units) memory, never O(rows).
"""

import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from sentiment_core.data import columns, files
from sentiment_core.data.columns import SchemaDifferences
from sentiment_core.data.files import HIDDEN, DataFiles
from sentiment_core.data.partitions import partition_values
from sentiment_core.data.snapshot import Snapshot, TableColumns, values_to_json
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.runtime.storage import FileStamp

SUFFIXES = (".parquet", ".pq", ".parq")
UNIT_ROWS = 32_768  # most rows of a unit: what is lost when a worker dies, and the grain of the progress bar
# Most bytes of text in a unit, and of all columns, unless one row alone has more: keeps memory flat on long texts.
UNIT_TEXT_BYTES, UNIT_BYTES = 8 << 20, 256 << 20
MAX_SHARD_UNITS = 65_536  # 2,147 million rows or 512 GB of text; a footer that gives more is not believed
PARQUET = pa.dataset.ParquetFileFormat()


@dataclass(frozen=True, slots=True)
class Unit:
    """A work unit: a range of rows of one shard, committed as a whole."""

    source: str  # path of the shard relative to the root, with "/"; a URI if a table has it elsewhere
    start: int  # first row
    stop: int  # row after the last
    shard_rows: int
    size: int  # bytes of the shard when planned: with `mtime_ns` it shows whether the shard changed since
    mtime_ns: int
    text_bytes: int  # uncompressed, estimated from the footer
    # of the shard, see `hash_footer`, None before the unit is read; of a table's file see `FileColumns.digest`
    footer_hash: str | None = None
    table_values: str | None = None  # of a table's partition columns, as JSON; None: the shard is of no table
    kept_bytes: int = 0  # of the columns that go into the output, compressed, estimated from the footer

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    @property
    def output(self) -> str:
        """Path of the unit's scored rows relative to the output root.

        It is the shard's own path, with the rows in its name if the shard has several units. Of a table's file it is
        that path without partition folders: outputs of tables hold all columns, and a reader should not take other
        values from their path.
        """
        path = self.source if self.table_values is None else _path_of_table_output(self.source)
        stem, suffix = os.path.splitext(path)
        if suffix.lower() not in SUFFIXES:
            stem, suffix = path, ".parquet"
        if self.rows == self.shard_rows:
            return stem + suffix
        return f"{stem}.rows-{self.start:012}-{self.stop:012}{suffix}"


def _path_of_table_output(source: str) -> str:
    """Return the path of a table file's output: no part looks like a partition folder, and none is hidden."""
    if "://" in source:
        digest = hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
        source = f"outside/{digest}/{source.rpartition('/')[2]}"
    return "/".join(part.replace("=", "-").lstrip("".join(HIDDEN)) or part for part in source.split("/"))


@dataclass(frozen=True)
class Shard:
    """A Parquet file to score, as its footer describes it."""

    stamp: FileStamp
    schema: pa.Schema  # of a table's file that of the table
    group_rows: list[int]  # by row group
    group_text_bytes: list[int]  # of the text column, uncompressed
    group_bytes: list[int]  # of all columns, uncompressed
    footer_hash: str | None = None  # as in `Unit`
    table_values: str | None = None  # as in `Unit`
    kept_bytes: int = 0  # as in `Unit`

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.group_rows)

    @property
    def folder_keys(self) -> list[str]:
        """The keys of partition folders on the shard's path; none of a table's file, whose columns hold all."""
        return [] if self.table_values is not None else list(partition_values(self.stamp.path))


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
    column_types: dict[str, pa.DataType] = field(default_factory=dict)  # of columns that some shards have only nulls in
    unread: list[str] = field(default_factory=list)  # names at the input's path that are not read, described
    table: Snapshot | None = None  # the table's version whose files the shards are

    @property
    def rows(self) -> int:
        """Number of rows of all units."""
        return sum(unit.rows for unit in self.units)

    @property
    def columns(self) -> TableColumns | None:
        """The columns of the table; None for plain shards, which have their own."""
        return self.table.columns if self.table else None


def plan(
    path: str,
    text_columns: Sequence[str],
    keep: tuple[str, ...] | None,
    reserved: tuple[str, ...],
    version: int | None = None,
) -> Corpus:
    """Plan the units of all readable shards at `path`, and list the other shards; of a table those of a `version`.

    Raises `UserError` if there is no shard, no readable one, none with the text columns, or one that would bring a
    column of a `reserved` name into the output.
    """
    data = files.find_files(path, SUFFIXES, version)
    root = data.root
    units: list[Unit] = []
    failed: list[FailedShard] = []
    differences = SchemaDifferences()
    unusable: UserError | None = None  # of the first shard with the wrong columns
    for shard in read_footers(data, text_columns, keep):
        if isinstance(shard, FailedShard):
            failed.append(shard)
            continue
        try:
            columns.check_columns(shard.schema, shard.stamp.path, text_columns, keep, shard.folder_keys)
        except UserError as error:
            unusable = unusable or error
            failed.append(FailedShard(shard.stamp.path, str(error)))
            continue
        columns.check_clash(shard.schema, shard.stamp.path, text_columns, keep, reserved, shard.folder_keys)
        units += cut_into_units(shard)
        differences.note(shard.schema, shard.stamp.path, columns.kept_columns(shard.schema, text_columns, keep))
    if data.table:
        columns.check_columns(data.table.columns.schema, path, text_columns, keep, ())
    if not units and (failed or not data.table):  # a table may be without rows
        raise unusable or UserError(
            f"--input {path} holds no readable Parquet file: {failed[0].source}: {failed[0].reason}"
        )
    _check_outputs(units)
    column_types = differences.unify_nulls(lambda name, paths: _has_only_nulls(root, name, paths))
    return Corpus(root, units, failed, differences.describe(), column_types, data.describe_unread(), data.table)


def read_footers(
    data: DataFiles, text_columns: Sequence[str], keep: Sequence[str] | None, with_hash: bool = False
) -> Iterator[Shard | FailedShard]:
    """Read the shards' footers in parallel, in their order. `with_hash` costs half as much again.

    A table's file has a hash without that: of what it holds as the columns that go into the output. `keep`: as for
    `columns.kept_columns`. Raises `UserError` where a file is gone that a table's pinned version has.
    """
    table = data.table
    values = {file.stamp.path: file.values for file in table.files} if table else {}

    def read(stamp: FileStamp) -> Shard | FailedShard:
        try:
            if table is None:
                storage.check_relative_path(stamp.path)
                if not stamp.size and storage.exists(storage.join(data.root, stamp.path)):
                    raise OSError("it is an empty file; write it again")
            metadata = read_metadata(data.root, stamp.path, stamp.size)
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            if any(group.num_rows < 0 for group in groups):
                raise OSError("its footer gives a negative number of rows; write the file again")
            own_schema = metadata.schema.to_arrow_schema()
            schema = table.columns.schema if table else own_schema
            kept_names = columns.kept_columns(schema, text_columns, keep)
            stored_texts, stored_kept = list(text_columns), set(kept_names)
            footer_hash = hash_footer(data.root, stamp.path, stamp.size) if with_hash and not table else None
            if table:
                file_columns = table.columns.find_in(own_schema, values[stamp.path])
                stored_texts = file_columns.stored_names(text_columns)
                chosen = {*text_columns, *kept_names}
                used = [name for name in schema.names if name in chosen]
                file_columns.stored_names(used)  # raises for one that cannot be read
                stored_kept = set(file_columns.stored_names(kept_names))
                footer_hash = file_columns.digest(used)
            names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            texts = [i for i, name in enumerate(names) if name in stored_texts]
            # a nested column has several parts, such as "tags.list.element"
            kept_parts = [i for i, name in enumerate(names) if {name, name.partition(".")[0]} & stored_kept]
            shard = Shard(
                stamp,
                schema,
                [group.num_rows for group in groups],
                [sum(group.column(i).total_uncompressed_size for i in texts) for group in groups],
                [group.total_byte_size for group in groups],
                footer_hash,
                values_to_json(values[stamp.path]) if table else None,
                sum(group.column(i).total_compressed_size for group in groups for i in kept_parts),
            )
            if len(list(itertools.islice(cut_into_units(shard), MAX_SHARD_UNITS + 1))) > MAX_SHARD_UNITS:
                raise OSError(
                    f"its footer gives {metadata.num_rows:,} rows and {sum(shard.group_text_bytes):,} bytes of text; "
                    "write it as several shards"
                )
            return shard
        except Exception as error:  # a damaged footer may raise anything
            if table and table.is_pinned and is_gone(error):
                raise UserError(
                    f"version {table.version} of {table.root} is not whole any more: {stamp.path} is gone, most likely "
                    "by VACUUM or an expired snapshot; score a newer version"
                ) from None
            return FailedShard(stamp.path, describe_error(error))

    return storage.map_in_threads(read, data.stamps)


def is_gone(error: Exception) -> bool:
    """Return whether a file could not be read since it is gone. Of S3 pyarrow raises another error for that."""
    return isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and "NO_SUCH_KEY" in str(error))


def place_of(root: str, source: str) -> str:
    """Return the path or URI of a shard."""
    return source if "://" in source else storage.join(root, source)


def read_metadata(root: str, path: str, size: int | None = None) -> pq.FileMetaData:
    """Read a Parquet file's footer. Its `size`, where it is known, spares a request to a store.

    By way of a fragment, which takes a third of the time of `pq.read_metadata`.
    """
    filesystem, inner_path = storage.locate(place_of(root, path))

    def read() -> pq.FileMetaData:
        return PARQUET.make_fragment(inner_path, filesystem, file_size=size).metadata

    return storage.retry_transient_errors(root, read)


def hash_footer(root: str, path: str, size: int) -> str | None:
    """Hash the footer of a local shard of so many bytes.

    It shows a change that size and time do not: a file written again with its old time set. None for an object store,
    whose times cannot be set.
    """
    if not storage.is_local(root):
        return None
    file = os.open(f"{root}/{path}", os.O_RDONLY)
    try:
        footer_bytes = int.from_bytes(os.pread(file, 4, size - 8), "little")
        footer = os.pread(file, footer_bytes, size - 8 - footer_bytes)
    finally:
        os.close(file)
    return hashlib.blake2b(footer, digest_size=8).hexdigest()


def _has_only_nulls(root: str, column: str, paths: list[str]) -> bool:
    """Return whether a column of these shards has only nulls, by the statistics in their footers."""

    def check(path: str) -> bool:
        metadata = read_metadata(root, path)
        index = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
        chunks = [metadata.row_group(group).column(index) for group in range(metadata.num_row_groups)]
        return all(chunk.statistics and chunk.statistics.null_count == chunk.num_values for chunk in chunks)

    return all(storage.map_in_threads(check, paths))


def cut_into_units(shard: Shard) -> Iterator[Unit]:
    """Cut a shard into units, in row order; one without rows is one unit without rows."""

    def unit(start: int, stop: int, text_bytes: int) -> Unit:
        stamp = shard.stamp
        version = stamp.size, stamp.mtime_ns, text_bytes, shard.footer_hash, shard.table_values
        kept_bytes = shard.kept_bytes * (stop - start) // max(1, shard_rows)
        return Unit(stamp.path, start, stop, shard_rows, *version, kept_bytes)

    shard_rows = shard.rows
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


def _check_outputs(units: list[Unit]) -> None:
    """Refuse two shards whose scored rows would be one file, and one whose would be hidden. Raises `UserError`."""
    sources: dict[str, str] = {}
    for unit in units:
        if files.is_hidden(unit.output):
            raise UserError(
                f"{unit.source} has a name that readers of Parquet folders pass over, and so would its output; rename "
                "it, so that it begins with neither _ nor a dot"
            )
        source = sources.setdefault(unit.output, unit.source)
        if source != unit.source:
            raise UserError(f"{source} and {unit.source} would both be scored into {unit.output}; rename one of them")
