"""Read the rows of a work unit: its texts, and the columns that go into its output."""

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sentiment_core.data.shards import Unit, place_of
from sentiment_core.data.snapshot import FileColumns, TableColumns, TableFile, values_from_json
from sentiment_core.data.types import to_canonical
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import FileChanged
from sentiment_core.text.arrow import is_text, join_texts

READ_ROWS, READ_BYTES = 8_192, 32 << 20  # rows decoded at once, and their bytes by the footer
CAREFUL_ROWS = 256  # decoded at once where nothing tells how long they are
# Most bytes of a unit's decoded columns: beyond, texts are read as dictionaries, which hold a repeated one once.
DECODED_BYTES = 256 << 20
BUFFER_BYTES = 4 << 20  # read at once: a row group of any size passes through it


def read_texts(
    root: str, unit: Unit, text_columns: Sequence[str], table: TableColumns | None = None
) -> Iterator[pa.Array]:
    """Read a unit's texts, in parts; those of several columns are joined.

    Those of one column are dictionaries, which hold a repeated text once. `table`: the columns of the table that the
    shard is of. Raises what `read_rows` raises.
    """
    names = list(text_columns)
    rows = storage.retry_transient_errors(root, lambda: _read_rows(root, unit, lambda _: names, names, table=table))
    for batch in rows.select(names).to_batches():
        yield batch.column(0) if len(names) == 1 else pa.array(join_texts(batch.columns), pa.large_string())


def read_rows(
    root: str, unit: Unit, choose: Callable[[pa.Schema], list[str]], table: TableColumns | None = None
) -> pa.Table:
    """Read a unit's rows of the columns that `choose` takes from the shard's schema, or from that of its `table`.

    Columns stand in the order of `choose` and have their canonical types, but that texts are dictionaries where they
    would take more than `DECODED_BYTES`. Raises one of `failures.UNREADABLE`; that is `FileChanged` if the shard is no
    longer as planned.
    """

    def read() -> pa.Table:
        try:
            return to_canonical(_read_rows(root, unit, choose, [], DECODED_BYTES, table))
        except _TooManyBytes as heavy:
            rows = _read_rows(root, unit, choose, heavy.text_columns, table=table)
            return to_canonical(rows, apart_from=heavy.text_columns)

    return storage.retry_transient_errors(root, read)


def read_table_file(root: str, file: TableFile, names: list[str], table: TableColumns) -> pa.Table:
    """Read these columns of a whole data file of a table. Raises one of `failures.UNREADABLE`."""
    filesystem, path = storage.locate(place_of(root, file.stamp.path))

    def read() -> pa.Table:
        with filesystem.open_input_file(path) as stream:
            parquet = _open_parquet(stream, [])
            columns = table.find_in(parquet.schema_arrow, file.values)
            rows = parquet.read(columns=columns.stored_names(names))
            return columns.restore(rows, names, parquet.metadata.num_rows)

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
    table: TableColumns | None = None,
) -> pa.Table:
    """Read a unit's rows. Raises `_TooManyBytes` above `max_bytes`."""
    if table is None:
        stamp = storage.read_stamp(root, unit.source)
        if (stamp.size, stamp.mtime_ns) != (unit.size, unit.mtime_ns):
            raise FileChanged("changed while it was being scored; run again")
    filesystem, path = storage.locate(place_of(root, unit.source))
    with filesystem.open_input_file(path) as stream:
        if table is not None and stream.size() != unit.size:  # the table's log has its own times
            raise FileChanged(f"has {stream.size():,} bytes, and {unit.size:,} by the table's log; repair the table")
        file = _open_parquet(stream, as_dictionary if table is None else [])
        columns = None
        if table is not None:
            columns = table.find_in(file.schema_arrow, values_from_json(unit.table_values or "{}"))
            if as_dictionary:
                file = _open_parquet(stream, columns.stored_names(as_dictionary), file.metadata)
        chosen = choose(file.schema_arrow if table is None else table.schema)
        rows = _read_columns(file, unit, columns.stored_names(chosen) if columns else chosen, columns, max_bytes)
        return columns.restore(rows, chosen, unit.rows) if columns else rows


def _open_parquet(
    stream: pa.NativeFile, as_dictionary: list[str], metadata: pq.FileMetaData | None = None
) -> pq.ParquetFile:
    return pq.ParquetFile(
        stream,
        metadata=metadata,
        pre_buffer=False,
        buffer_size=BUFFER_BYTES,
        read_dictionary=as_dictionary,
        coerce_int96_timestamp_unit="us",  # in nanoseconds, years after 2262 become others
    )


def _read_columns(
    file: pq.ParquetFile, unit: Unit, names: list[str], columns: FileColumns | None, max_bytes: int | None
) -> pa.Table:
    """Read a unit's rows of these columns of a file. Raises `_TooManyBytes` above `max_bytes`."""
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
                    raise _TooManyBytes(columns.table_names(texts) if columns else texts)
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
