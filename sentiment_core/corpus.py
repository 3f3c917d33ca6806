"""The corpus to score: Parquet shards found below a root, cut into work units.

A unit is a contiguous range of rows of one shard: a whole small shard, a range of row groups of a larger one, a part of
a row group too large to hold. Units are planned from the footers alone, so the same files always give the same units,
and everything here holds O(units) memory, never O(rows).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from sentiment_core import storage
from sentiment_core.errors import BadRequest
from sentiment_core.storage import FileStamp
from sentiment_core.texts import is_text

SUFFIXES = (".parquet", ".pq", ".parq")
UNIT_ROWS = 32_768  # most rows of a unit: what is lost when a worker dies, and the grain of the progress bar
UNIT_BYTES = 8 << 20  # most bytes of text in a unit, unless one row alone has more: keeps memory flat on long texts
FOOTER_READERS = 32  # threads; reading footers waits for the disk or the store, not for the CPU
READ_ROWS = 8_192  # rows decoded at once
BUFFER_BYTES = 4 << 20  # read at once: a row group of any size passes through it


@dataclass(frozen=True)
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
    group_text_bytes: list[int]


@dataclass(frozen=True)
class FailedShard:
    source: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    root: str  # place that the shards' paths are relative to
    units: list[Unit]
    failed: list[FailedShard]  # shards that cannot be scored; the others can

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)


def plan(place: str, text_column: str, keep: tuple[str, ...] | None, reserved: tuple[str, ...]) -> Corpus:
    """Units of all readable shards at `place`, and the shards that are not.

    Raises `BadRequest` if there is no shard, no readable one, none with the text column, or one that would bring a
    column of a `reserved` name into the output.
    """
    root, stamps = storage.find_files(place, SUFFIXES)
    units: list[Unit] = []
    failed: list[FailedShard] = []
    unusable: BadRequest | None = None  # the first shard whose columns do not serve
    for shard in read_footers(root, stamps, text_column):
        if isinstance(shard, FailedShard):
            failed.append(shard)
            continue
        try:
            check_columns(shard, text_column, keep)
        except BadRequest as error:
            unusable = unusable or error
            failed.append(FailedShard(shard.stamp.path, str(error)))
            continue
        _check_clash(shard, text_column, keep, reserved)
        units += cut(shard)
    if not units:
        raise unusable or BadRequest(
            f"--input {place} holds no readable Parquet file: {failed[0].source}: {failed[0].reason}"
        )
    _check_outputs(units)
    return Corpus(root, units, failed)


def read_footers(root: str, stamps: list[FileStamp], text_column: str | None) -> Iterator[Shard | FailedShard]:
    """The shards' footers, read in parallel, in the order of `stamps`."""

    def read(stamp: FileStamp) -> Shard | FailedShard:
        try:
            filesystem, path = storage.locate(storage.join(root, stamp.path))
            metadata = storage.patiently(root, lambda: pq.read_metadata(path, filesystem=filesystem))
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            text = names.index(text_column) if text_column in names else None
            sizes = [0 if text is None else group.column(text).total_uncompressed_size for group in groups]
            return Shard(stamp, metadata.schema.to_arrow_schema(), [group.num_rows for group in groups], sizes)
        except storage.UNREADABLE as error:
            return FailedShard(stamp.path, describe(error))

    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        yield from pool.map(read, stamps)


def cut(shard: Shard) -> Iterator[Unit]:
    """The shard's units, in row order; a shard without rows is one unit without rows."""

    def unit(start: int, stop: int, text_bytes: int) -> Unit:
        stamp = shard.stamp
        return Unit(stamp.path, start, stop, sum(shard.group_rows), stamp.size, stamp.mtime_ns, text_bytes)

    first, start, gathered = 0, 0, 0  # row of the current group; first row and bytes of the unit that is being gathered
    for rows, size in zip(shard.group_rows, shard.group_text_bytes, strict=True):
        if not rows:
            continue
        if first > start and (first + rows - start > UNIT_ROWS or gathered + size > UNIT_BYTES):
            yield unit(start, first, gathered)
            start, gathered = first, 0
        pieces = max(-(-rows // UNIT_ROWS), min(-(-size // UNIT_BYTES), rows))
        if pieces > 1:
            for piece in range(pieces):
                yield unit(first + rows * piece // pieces, first + rows * (piece + 1) // pieces, size // pieces)
            start = first + rows
        else:
            gathered += size
        first += rows
    if first > start or first == 0:
        yield unit(start, first, gathered)


def limited(corpus: Corpus, rows: int) -> Corpus:
    """The corpus cut down to its first rows."""
    units = []
    for unit in corpus.units:
        if rows <= 0:
            break
        units.append(replace(unit, stop=min(unit.stop, unit.start + rows)))
        rows -= unit.rows
    return replace(corpus, units=units)


def read_rows(root: str, unit: Unit, choose: Callable[[pa.Schema], list[str]]) -> pa.Table:
    """The unit's rows of the columns that `choose` takes from the shard's schema, in the shard's order.

    Raises one of `storage.UNREADABLE`, also if the shard is no longer as planned.
    """
    return storage.patiently(root, lambda: _read_rows(root, unit, choose))


def _read_rows(root: str, unit: Unit, choose: Callable[[pa.Schema], list[str]]) -> pa.Table:
    now = storage.stamp(root, unit.source)
    if (now.size, now.mtime_ns) != (unit.size, unit.mtime_ns):
        raise storage.Changed("changed while it was being scored; run again")
    filesystem, path = storage.locate(storage.join(root, unit.source))
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES)
        columns = choose(file.schema_arrow)
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
        if columns:
            for batch in file.iter_batches(READ_ROWS, row_groups=groups, columns=columns):
                part = batch.slice(min(skip, len(batch)), wanted)
                skip -= min(skip, len(batch))
                wanted -= len(part)
                batches.append(part)
                if not wanted:
                    break
            if wanted:
                raise OSError(f"broke off: {wanted} of the rows {unit.start} to {unit.stop} are missing")
        schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        return pa.Table.from_batches(batches, schema)


def kept_columns(schema: pa.Schema, text_column: str, keep: Sequence[str] | None) -> list[str]:
    """The shard's columns that go into the output, in its order."""
    return [name for name in schema.names if (name != text_column if keep is None else name in keep)]


def describe(error: Exception) -> str:
    """One line; of an error that files do not raise its type too."""
    text = " ".join(str(error).split())
    expected = isinstance(error, (*storage.UNREADABLE, BadRequest))
    return text if text and expected else f"{type(error).__name__}: {text}".rstrip(": ")


def check_columns(shard: Shard, text_column: str, keep: Sequence[str] | None) -> None:
    """Refuse a shard without the text column or a column to keep."""
    names = shard.schema.names
    if text_column not in names:
        raise BadRequest(
            f"{shard.stamp.path} has no column {text_column!r}; it has {', '.join(names)}; choose with --text-column"
        )
    kind = shard.schema.field(text_column).type
    if not is_text(kind):
        raise BadRequest(
            f"column {text_column!r} of {shard.stamp.path} holds {kind}; expected text; choose with --text-column"
        )
    for name in keep or ():
        if name not in names and name not in _partition_keys(shard.stamp.path):
            raise BadRequest(
                f"{shard.stamp.path} has no column {name!r}; it has {', '.join(names)}; choose with --keep"
            )


def _check_clash(shard: Shard, text_column: str, keep: tuple[str, ...] | None, reserved: tuple[str, ...]) -> None:
    kept = kept_columns(shard.schema, text_column, keep)
    for name in kept:
        if name in reserved:
            others = ",".join(other for other in kept if other not in reserved)
            raise BadRequest(
                f"column {name!r} of {shard.stamp.path} has the name of a scored column; name the columns to keep "
                f"without it: --keep {others or repr('')}"
            )
    for key in _partition_keys(shard.stamp.path):
        if key in reserved:
            raise BadRequest(
                f"the partition folders {key}=... of {shard.stamp.path} have the name of a scored column; rename them, "
                "or score one of them at a time with --input"
            )


def _partition_keys(path: str) -> list[str]:
    return [part.split("=", 1)[0] for part in path.split("/")[:-1] if "=" in part]


def _check_outputs(units: list[Unit]) -> None:
    outputs: dict[str, str] = {}
    for unit in units:
        other = outputs.setdefault(unit.output, unit.source)
        if other != unit.source:
            raise BadRequest(f"{other} and {unit.source} would both be scored into {unit.output}; rename one of them")
