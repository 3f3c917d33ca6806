"""Scored Parquet: the files of an output folder, their columns, and how a unit's output is written and read.

A file that exists is complete. Its footer says which bundle and settings made it, and from which rows of a
shard in which version. There is no other record of what is done.
"""

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.types import is_dictionary

from sentiment_core.data import files, shards
from sentiment_core.data.shards import SUFFIXES, Unit
from sentiment_core.data.types import canonical_type, set_types, to_canonical
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.scoring.known_rows import KnownRows
from sentiment_core.scoring.records import ROW_COLUMNS, ModelColumns, Origin, Run, RunFile, UnitOrigin
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.text.status import STATUS_NAMES

RUN_FILE, SUMMARY_FILE, SUCCESS_FILE = "_run.json", "_summary.json", "_SUCCESS"
ORIGIN_KEY, COUNTS_KEY = b"sentiment_core.origin", b"sentiment_core.counts"
SCORED_NS_KEY = b"sentiment_core.scored_ns"  # of an output that was written again with other types: its time before
# of an output that shares texts with outputs whose shards were gone: the paths of these, by which a later run knows
# where to look whether all of their rows were found again
REPLACED_KEY = b"sentiment_core.replaced"


HEAVY_ROWS = 256  # written at once where texts are so long, and so often the same, that they are held as dictionaries


def output_folder(out: str, limit: int | None) -> str:
    """Return the folder that the output goes to: OUT, or OUT-limit-N for a look at the first rows."""
    return storage.absolute(out) + (f"-limit-{limit}" if limit else "")


def write_run_file(folder: str, run_file: RunFile) -> None:
    """Write `_run.json`."""
    storage.write_file(storage.join(folder, RUN_FILE), json.dumps(run_file.to_json(), indent=2).encode())


def read_run_file(folder: str) -> RunFile | None:
    """Read `_run.json` of an output folder; None if it is missing or damaged.

    Raises UserError if it cannot be told whether it is there.
    """
    try:
        return RunFile.from_json(json.loads(storage.read_file(storage.join(folder, RUN_FILE))))
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    except OSError as error:
        raise UserError(f"{folder}/{RUN_FILE} cannot be read: {error}; check the path and the credentials") from None


def scored_table(
    unit: Unit, kept_columns: pa.Table, rows: Mapping[str, ScoredRows], run: Run, known_rows: KnownRows | None = None
) -> pa.Table:
    """Return the content of a unit's output: the kept columns of the input, then the scored ones.

    Args:
        unit: The work unit.
        kept_columns: Its kept columns.
        rows: The rows that were computed, as each model scored them, by its name.
        run: The settings.
        known_rows: The rows that were reused, and the texts' hashes; None: all rows were computed, without hashes.
    """
    # without the shard's schema metadata: what pandas or datasets noted there speaks of columns that are gone
    columns = {name: kept_columns[name] for name in kept_columns.column_names}
    for names in run.columns_of_models:
        for name, column in columns_of_model(rows[names.model], run.probabilities).items():
            columns[names.prefix + name] = known_rows.fill_in(names.prefix + name, column) if known_rows else column
    columns[run.prefix + "source"] = pa.array([unit.source] * unit.rows, pa.string())
    columns[run.prefix + "row"] = pa.array(np.arange(unit.start, unit.stop), pa.int64())
    if known_rows and known_rows.text_hash is not None:
        columns[run.text_hash_column] = known_rows.text_hash
    return pa.table(columns)


def columns_of_model(rows: ScoredRows, with_probabilities: bool) -> dict[str, pa.Array]:
    """Return the columns of one model, under the names that they have without a prefix."""
    columns = rows.objective.output_columns(rows.probabilities, rows.has_label, rows.labels, with_probabilities)
    return columns | {"status": pa.array(np.array(STATUS_NAMES, dtype=object)[rows.status], pa.string())}


def commit(
    folder: str, run: Run, unit: Unit, table: pa.Table, counts: PassCounts, replaced: Collection[str] = ()
) -> None:
    """Write the unit's output with its footer.

    It is built in memory, a unit being small, so that it reaches the store in one piece. `replaced`: as in
    `REPLACED_KEY`.
    """
    footer = {
        ORIGIN_KEY: json.dumps(Origin(run, UnitOrigin.of(unit)).to_json()).encode(),
        COUNTS_KEY: json.dumps(counts.to_json()).encode(),
    } | ({REPLACED_KEY: json.dumps(list(replaced)).encode()} if replaced else {})
    _write(folder, unit.output, table.replace_schema_metadata(footer), run.scored_columns)


def aside_path(path: str, unit: UnitOrigin) -> str:
    """Return where an output of this unit is kept while a new one has taken its path."""
    stem, _, suffix = path.rpartition(".")
    return f"{stem}.replaced-{hashlib.blake2b(repr(unit).encode(), digest_size=4).hexdigest()}.{suffix}"


def set_aside(folder: str, unit: Unit, aside: str) -> None:
    """Copy the output that has the unit's path, before a new one takes it. A retry finds the new one there."""
    origin = read_origin(folder, unit.output)
    if origin is not None and origin.unit != UnitOrigin.of(unit):
        storage.write_file(storage.join(folder, aside), storage.read_file(storage.join(folder, unit.output)))


def _write(folder: str, path: str, table: pa.Table, scored: Sequence[str]) -> None:
    """Write a table; kept texts that are dictionaries are written as texts, few rows at a time."""
    buffer = io.BytesIO()
    heavy = [i for i, field in enumerate(table.schema) if field.name not in scored and is_dictionary(field.type)]
    if not heavy:
        pq.write_table(table, buffer, compression="zstd")
    else:
        plain = {table.schema.names[i]: canonical_type(table.schema.types[i]) for i in heavy}
        schema = set_types(table.slice(0, 0), plain).schema
        with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
            for start in range(0, len(table), HEAVY_ROWS):
                writer.write_table(set_types(table.slice(start, HEAVY_ROWS), plain))
    storage.write_file(storage.join(folder, path), buffer.getbuffer())


def change_types(folder: str, path: str, types: Mapping[str, pa.DataType]) -> None:
    """Write an output again with other types of kept columns. Raises one of `UNREADABLE`."""
    table, stamp = read_output(folder, path), storage.read_stamp(folder, path)
    footer = {SCORED_NS_KEY: str(stamp.mtime_ns).encode()} | (table.schema.metadata or {})
    scored = Run.from_json(json.loads(table.schema.metadata[ORIGIN_KEY])["run"]).scored_columns
    canonical = to_canonical(table, apart_from=scored)  # an older version may have written nanoseconds
    _write(folder, path, set_types(canonical, types).replace_schema_metadata(footer), scored)


@dataclass(frozen=True)
class Output:
    """A Parquet file of an output folder, by its footer."""

    path: str  # relative to the folder
    mtime_ns: int  # when it was scored
    rows: int = 0
    origin: Origin | None = None  # None: the file is not of `sentiment-core score`, or damaged
    counts: PassCounts | None = None  # as for `origin`
    has_other_types: bool = False  # than `read_outputs` was told
    has_text_hash: bool = False
    replaced: tuple[str, ...] = ()  # see `REPLACED_KEY`


def read_outputs(
    folder: str, since_ns: int = 0, types: Mapping[str, pa.DataType] = MappingProxyType({})
) -> Iterator[Output]:
    """Read the footers of an output folder's Parquet files written at `since_ns` or later.

    The folder is listed once, footers are read in parallel, and files come in the order of their paths. `types`: those
    that columns should have.
    """

    def read(stamp: FileStamp) -> Output | None:
        try:
            metadata = shards.read_metadata(folder, stamp.path, stamp.size)
            footer = metadata.metadata or {}
            origin = Origin.from_json(json.loads(footer[ORIGIN_KEY]))
            counts = PassCounts.from_json(json.loads(footer[COUNTS_KEY]))
            scored_ns = int(footer.get(SCORED_NS_KEY, stamp.mtime_ns))
            schema = metadata.schema.to_arrow_schema() if types else ()
            other_types = any(field.name in types and field.type != types[field.name] for field in schema)
            last_column = metadata.schema.column(metadata.num_columns - 1).path
            return Output(
                stamp.path,
                scored_ns,
                metadata.num_rows,
                origin,
                counts,
                other_types,
                last_column == origin.run.text_hash_column,  # an input's own column of that name stands before others
                tuple(json.loads(footer.get(REPLACED_KEY, b"[]"))),
            )
        except Exception as error:  # a file of others, or a damaged one, may hold anything
            # another run may have deleted it since; a link to nothing, which was listed without a time, is still there
            was_deleted = shards.is_gone(error) and stamp.mtime_ns
            return None if was_deleted else Output(stamp.path, stamp.mtime_ns)

    stamps = files.list_files(folder, SUFFIXES) if storage.exists(folder) else []
    existing = storage.map_in_threads(read, [stamp for stamp in stamps if stamp.mtime_ns >= since_ns])
    return (output for output in existing if output and output.mtime_ns >= since_ns)


def read_origin(folder: str, path: str) -> Origin | None:
    """Read what an output was made from; None if the file is gone, damaged or of others."""
    try:
        return Origin.from_json(json.loads(shards.read_metadata(folder, path).metadata[ORIGIN_KEY]))
    except Exception:  # the file may hold anything
        return None


def read_output(folder: str, path: str, names: Sequence[str] | None = None) -> pa.Table:
    """Read an output, or those columns of these names that it has. Raises one of `UNREADABLE`."""
    filesystem, inner_path = storage.locate(storage.join(folder, path))

    def read() -> pa.Table:
        with filesystem.open_input_file(inner_path) as stream:
            return pq.ParquetFile(stream).read(columns=names)

    return storage.retry_transient_errors(folder, read)


def select_columns(table: pa.Table, run: Run, model: ModelColumns) -> pa.Table:
    """Return the columns of one model and those of the rows, under the names that they have without a prefix."""
    lengths = {
        **dict.fromkeys(model.names, len(model.prefix)),
        **{run.prefix + name: len(run.prefix) for name in ROW_COLUMNS},
    }
    columns = [i for i, name in enumerate(table.column_names) if name in lengths]  # a damaged output has one twice
    names = [table.column_names[i] for i in columns]
    return table.select(columns).rename_columns([name[lengths[name] :] for name in names])
