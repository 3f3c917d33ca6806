"""Plan a corpus of Parquet shards as work units, and read a unit's rows.

A work unit is a contiguous range of rows of one shard: a whole small shard, a range of row groups of a larger one, or a
part of a row group too large to hold. Units are planned from the footers alone, so the same files always give the same
units, and everything here holds O(units) memory, never O(rows).
"""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from sentiment_core.data import columns, files
from sentiment_core.data.columns import SchemaDifferences
from sentiment_core.data.types import to_canonical
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import FileChanged, describe_error
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.text.arrow import is_text, join_texts

SUFFIXES = (".parquet", ".pq", ".parq")
UNIT_ROWS = 32_768  # most rows of a unit: what is lost when a worker dies, and the grain of the progress bar
# Most bytes of text in a unit, and of all columns, unless one row alone has more: keeps memory flat on long texts.
UNIT_TEXT_BYTES, UNIT_BYTES = 8 << 20, 256 << 20
MAX_SHARD_UNITS = 65_536  # 2,147 million rows or 512 GB of text; a footer that gives more is not believed
READ_ROWS, READ_BYTES = 8_192, 32 << 20  # rows decoded at once, and their bytes by the footer
CAREFUL_ROWS = 256  # decoded at once where nothing tells how long they are
# Most bytes of a unit's decoded columns: beyond, texts are read as dictionaries, which hold a repeated one once.
DECODED_BYTES = 256 << 20
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
    footer_hash: str | None = None  # of the shard, see `hash_footer`; None before the unit is read

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
    footer_hash: str | None = None  # as in `Unit`

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
    column_types: dict[str, pa.DataType] = field(default_factory=dict)  # of columns that some shards have only nulls in
    unread: list[str] = field(default_factory=list)  # names at the input's path that are not read, described

    @property
    def rows(self) -> int:
        """Number of rows of all units."""
        return sum(unit.rows for unit in self.units)


def plan(path: str, text_columns: Sequence[str], keep: tuple[str, ...] | None, reserved: tuple[str, ...]) -> Corpus:
    """Plan the units of all readable shards at `path`, and list the other shards.

    Raises `UserError` if there is no shard, no readable one, none with the text columns, or one that would bring a
    column of a `reserved` name into the output.
    """
    data = files.find_files(path, SUFFIXES)
    root = data.root
    units: list[Unit] = []
    failed: list[FailedShard] = []
    differences = SchemaDifferences()
    unusable: UserError | None = None  # of the first shard with the wrong columns
    for shard in read_footers(root, data.stamps, text_columns):
        if isinstance(shard, FailedShard):
            failed.append(shard)
            continue
        try:
            columns.check_columns(shard.schema, shard.stamp.path, text_columns, keep)
        except UserError as error:
            unusable = unusable or error
            failed.append(FailedShard(shard.stamp.path, str(error)))
            continue
        columns.check_clash(shard.schema, shard.stamp.path, text_columns, keep, reserved)
        units += cut_into_units(shard)
        differences.note(shard.schema, shard.stamp.path, columns.kept_columns(shard.schema, text_columns, keep))
    if not units:
        raise unusable or UserError(
            f"--input {path} holds no readable Parquet file: {failed[0].source}: {failed[0].reason}"
        )
    _check_outputs_differ(units)
    column_types = differences.unify_nulls(lambda name, paths: _has_only_nulls(root, name, paths))
    return Corpus(root, units, failed, differences.describe(), column_types, data.describe_unread())


def read_footers(
    root: str, stamps: list[FileStamp], text_columns: Sequence[str], with_hash: bool = False
) -> Iterator[Shard | FailedShard]:
    """Read the shards' footers in parallel, in the order of `stamps`. `with_hash` costs half as much again."""

    def read(stamp: FileStamp) -> Shard | FailedShard:
        try:
            storage.check_relative_path(stamp.path)
            if not stamp.size and storage.exists(storage.join(root, stamp.path)):
                raise OSError("it is an empty file; write it again")
            metadata = read_metadata(root, stamp.path)
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            if any(group.num_rows < 0 for group in groups):
                raise OSError("its footer gives a negative number of rows; write the file again")
            names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            texts = [i for i, name in enumerate(names) if name in text_columns]
            shard = Shard(
                stamp,
                metadata.schema.to_arrow_schema(),
                [group.num_rows for group in groups],
                [sum(group.column(i).total_uncompressed_size for i in texts) for group in groups],
                [group.total_byte_size for group in groups],
                hash_footer(root, stamp.path, stamp.size) if with_hash else None,
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
        return Unit(stamp.path, start, stop, shard.rows, stamp.size, stamp.mtime_ns, text_bytes, shard.footer_hash)

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


def read_texts(root: str, unit: Unit, text_columns: Sequence[str]) -> Iterator[pa.Array]:
    """Read a unit's texts, in parts; those of several columns are joined.

    Those of one column are dictionaries, which hold a repeated text once. Raises what `read_rows` raises.
    """
    names = list(text_columns)
    table = storage.retry_transient_errors(root, lambda: _read_rows(root, unit, lambda _: names, names))
    for batch in table.select(names).to_batches():
        yield batch.column(0) if len(names) == 1 else pa.array(join_texts(batch.columns), pa.large_string())


def read_rows(root: str, unit: Unit, choose: Callable[[pa.Schema], list[str]]) -> pa.Table:
    """Read a unit's rows of the columns that `choose` takes from the shard's schema.

    Columns stand in the order of `choose` and have their canonical types, but that texts are dictionaries where they
    would take more than `DECODED_BYTES`. Raises one of `failures.UNREADABLE`; that is `FileChanged` if the shard is no
    longer as planned.
    """

    def read() -> pa.Table:
        try:
            return to_canonical(_read_rows(root, unit, choose, [], DECODED_BYTES))
        except _TooManyBytes as heavy:
            table = _read_rows(root, unit, choose, heavy.text_columns)
            return to_canonical(table, apart_from=heavy.text_columns)

    return storage.retry_transient_errors(root, read)


class _TooManyBytes(Exception):
    """The decoded columns of a unit take too much memory."""

    def __init__(self, text_columns: list[str]) -> None:
        super().__init__()
        self.text_columns = text_columns


def _read_rows(
    root: str,
    unit: Unit,
    choose: Callable[[pa.Schema], list[str]],
    as_dictionary: list[str],
    max_bytes: int | None = None,
) -> pa.Table:
    """Read a unit's rows. Raises `_TooManyBytes` above `max_bytes`."""
    stamp = storage.read_stamp(root, unit.source)
    if (stamp.size, stamp.mtime_ns) != (unit.size, unit.mtime_ns):
        raise FileChanged("changed while it was being scored; run again")
    filesystem, path = storage.locate(storage.join(root, unit.source))
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(
            stream,
            pre_buffer=False,
            buffer_size=BUFFER_BYTES,
            read_dictionary=as_dictionary,
            coerce_int96_timestamp_unit="us",  # in nanoseconds, years after 2262 become others
        )
        names = choose(file.schema_arrow)
        groups, skip = _overlapping_groups(file.metadata, unit)
        missing, batches, decoded_bytes = unit.rows, [], 0
        if names:
            texts = [name for name in names if is_text(file.schema_arrow.field(name).type)]
            batch_rows = _rows_at_once(file.metadata, groups, [] if max_bytes is None else texts)
            for batch in file.iter_batches(batch_rows, row_groups=groups, columns=names):
                part = batch.slice(min(skip, len(batch)), missing)
                if max_bytes is not None:
                    decoded_bytes += sum(map(_plain_bytes, part.columns))
                    if decoded_bytes > max_bytes:
                        raise _TooManyBytes(texts)
                skip -= min(skip, len(batch))
                missing -= len(part)
                batches.append(part)
                if not missing:
                    break
            if missing:
                raise OSError(f"ends early: {missing} of the rows {unit.start} to {unit.stop} are missing")
        schema = batches[0].schema if batches else pa.schema([file.schema_arrow.field(name) for name in names])
        return pa.Table.from_batches(batches, schema)


def _plain_bytes(column: pa.Array) -> int:
    """Return the bytes of a column; of a dictionary of texts those that its rows would take."""
    if not (pa.types.is_dictionary(column.type) and is_text(column.type)):
        return column.nbytes
    lengths = pc.binary_length(column.dictionary)
    return pc.sum(lengths.take(column.indices).cast(pa.int64())).as_py() or 0


def _rows_at_once(metadata: pq.FileMetaData, groups: list[int], plain_texts: list[str]) -> int:
    """Return how many rows to decode at once: fewer where they are long.

    A text that is often the same has few bytes in the file. One of the `plain_texts` may be long if its column has no
    least and greatest value in the footer, from which writers leave out long ones.
    """
    sizes = [(metadata.row_group(group).num_rows, metadata.row_group(group).total_byte_size) for group in groups]
    bytes_per_row = max((size / max(1, rows) for rows, size in sizes), default=0)
    most = READ_ROWS
    for group in groups if plain_texts else []:
        columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        chunks = [column for column in columns if column.path_in_schema in plain_texts]
        if any(not (chunk.statistics and chunk.statistics.has_min_max) for chunk in chunks):
            most = CAREFUL_ROWS
    return int(max(1, min(most, READ_BYTES / max(1, bytes_per_row))))


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
