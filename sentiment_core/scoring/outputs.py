"""Scored Parquet: the files of an output folder, their columns, and how a unit's output is written and read.

A file that exists is complete. Its footer says which bundle and settings made it, and from which rows of a
shard in which version. There is no other record of what is done.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sentiment_core.data import files, shards
from sentiment_core.data.shards import SUFFIXES, Unit
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.scoring.records import Origin, Run, RunFile, UnitOrigin
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.statistics import Counts
from sentiment_core.text.status import STATUS_NAMES

COLUMNS = ("label", "confidence", "probabilities", "status", "source", "row")
RUN_FILE, SUMMARY_FILE = "_run.json", "_summary.json"
ORIGIN_KEY, COUNTS_KEY = b"sentiment_core.origin", b"sentiment_core.counts"


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


def scored_table(unit: Unit, kept_columns: pa.Table, rows: ScoredRows, with_probabilities: bool) -> pa.Table:
    """Return the content of a unit's output: the kept columns of the input, then the scored ones."""
    scored = rows.objective.output_columns(rows.probabilities, rows.has_label, rows.labels, with_probabilities)
    scored["status"] = pa.array(np.array(STATUS_NAMES, dtype=object)[rows.status], pa.string())
    scored["source"] = pa.array([unit.source] * unit.rows, pa.string())
    scored["row"] = pa.array(np.arange(unit.start, unit.stop), pa.int64())
    # without the shard's schema metadata: what pandas or datasets noted there speaks of columns that are gone
    return pa.table({name: kept_columns[name] for name in kept_columns.column_names} | scored)


def commit(folder: str, run: Run, unit: Unit, table: pa.Table, counts: Counts) -> None:
    """Write the unit's output with its footer.

    It is built in memory, a unit being small, so that it reaches the store in one piece.
    """
    footer = {
        ORIGIN_KEY: json.dumps(Origin(run, UnitOrigin.of(unit)).to_json()).encode(),
        COUNTS_KEY: json.dumps(counts.to_json()).encode(),
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(footer), buffer, compression="zstd")
    storage.write_file(storage.join(folder, unit.output), buffer.getbuffer())


@dataclass(frozen=True)
class Output:
    """A Parquet file of an output folder, by its footer."""

    path: str  # relative to the folder
    mtime_ns: int
    rows: int = 0
    origin: Origin | None = None  # None: the file is not of `sentiment-core score`, or damaged
    counts: Counts | None = None  # as for `origin`


def read_outputs(folder: str, since_ns: int = 0) -> Iterator[Output]:
    """Read the footers of an output folder's Parquet files written at `since_ns` or later.

    The folder is listed once, footers are read in parallel, and files come in the order of their paths.
    """

    def read(stamp: FileStamp) -> Output:
        try:
            metadata = shards.read_metadata(folder, stamp.path)
            footer = metadata.metadata or {}
            origin = Origin.from_json(json.loads(footer[ORIGIN_KEY]))
            counts = Counts.from_json(json.loads(footer[COUNTS_KEY]))
            return Output(stamp.path, stamp.mtime_ns, metadata.num_rows, origin, counts)
        except Exception:  # a file of others, or a damaged one, may hold anything
            return Output(stamp.path, stamp.mtime_ns)

    stamps = files.list_files(folder, SUFFIXES) if storage.exists(folder) else []
    return storage.map_in_threads(read, [stamp for stamp in stamps if stamp.mtime_ns >= since_ns])


def read_output(folder: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read an output, or those of these columns that it has. Raises one of `UNREADABLE`."""
    filesystem, inner_path = storage.locate(storage.join(folder, path))

    def read() -> pa.Table:
        with filesystem.open_input_file(inner_path) as stream:
            return pq.ParquetFile(stream).read(columns=columns)

    return storage.retry_transient_errors(folder, read)
