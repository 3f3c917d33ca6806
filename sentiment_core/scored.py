"""Scored Parquet: what a unit's output looks like, how it is committed, and what its footer says of its origin.

A file that exists is complete. Its footer tells which bundle and settings made it from which rows of which version of
its shard; there is no other record of what is done.
"""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sentiment_core import storage
from sentiment_core.corpus import FOOTER_READERS, SUFFIXES, Unit
from sentiment_core.errors import BadRequest
from sentiment_core.tokens import STATUS_NAMES

COLUMNS = ("label", "confidence", "probabilities", "status", "source", "row")
RUN_FILE, SUMMARY_FILE = "_run.json", "_summary.json"
ORIGIN_KEY, COUNTS_KEY = b"sentiment_core.origin", b"sentiment_core.counts"
HISTOGRAM_BINS = 20  # of confidence, from 0 to 1
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Run:
    """What decides the content of all outputs of a folder; pinned in `_run.json` by the first run into it."""

    input: str
    bundle: str  # digest
    text_column: str
    keep: list[str] | None  # None: all columns but the text
    probabilities: bool
    limit: int | None
    int8: bool
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Counts:
    """Sums over the rows of a unit, kept in its footer, so that a summary covers what earlier runs committed."""

    status: dict[str, int]
    labels: dict[str, int]
    confidence_histogram: list[int]
    tokens: int

    @property
    def rows(self) -> int:
        return sum(self.status.values())


def read_run(place: str) -> dict | None:
    """What `_run.json` of an output folder pins; None if it is not there or no JSON. Raises `BadRequest` if that cannot
    be told."""
    try:
        return json.loads(storage.read_file(storage.join(place, RUN_FILE)))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise BadRequest(f"{place}/{RUN_FILE} cannot be read: {error}; check the place and the credentials") from None


def origin(run: Run, unit: Unit) -> dict:
    """What the footer says: the same for each try, another one when bundle, settings or shard have changed."""
    shown = {name: value for name, value in asdict(unit).items() if name != "text_bytes"}
    return {"run": asdict(run), "unit": shown}


def make_table(
    unit: Unit, kept: pa.Table, status: np.ndarray, probabilities: np.ndarray, labels: list[str], with_all: bool
) -> pa.Table:
    """The scored rows of a unit. `status` (n,) codes, `probabilities` (n, classes), NaN where there is no score."""
    scored = ~np.isnan(probabilities).any(axis=1)
    best = np.where(scored, probabilities.argmax(axis=1), 0).astype(np.int32)
    confidence = probabilities.max(axis=1, initial=0)
    columns = {
        "label": pa.DictionaryArray.from_arrays(pa.array(best, mask=~scored), pa.array(labels, pa.string())),
        "confidence": pa.array(confidence, pa.float32(), mask=~scored),
    }
    if with_all:
        flat = pa.array(np.nan_to_num(probabilities).ravel(), pa.float32())
        kind = pa.list_(pa.float32(), len(labels))
        columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~scored))
    columns["status"] = pa.array(np.array(STATUS_NAMES, dtype=object)[status], pa.string())
    columns["source"] = pa.array([unit.source] * unit.rows, pa.string())
    columns["row"] = pa.array(np.arange(unit.start, unit.stop), pa.int64())
    # without the shard's schema metadata: what pandas or datasets noted there speaks of columns that are gone
    return pa.table({name: kept[name] for name in kept.column_names} | columns)


def count(status: np.ndarray, probabilities: np.ndarray, labels: list[str], tokens: int) -> Counts:
    scored = probabilities[~np.isnan(probabilities).any(axis=1)]
    by_label = np.bincount(scored.argmax(axis=1), minlength=len(labels))
    return Counts(
        {name: int((status == code).sum()) for code, name in enumerate(STATUS_NAMES)},
        dict(zip(labels, by_label.tolist(), strict=True)),
        np.histogram(scored.max(axis=1, initial=0), bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist(),
        tokens,
    )


def total(counts: Iterator[Counts], labels: list[str]) -> Counts:
    """Sums over units."""
    status, by_label = dict.fromkeys(STATUS_NAMES, 0), dict.fromkeys(labels, 0)
    histogram, tokens = np.zeros(HISTOGRAM_BINS, np.int64), 0
    for unit in counts:
        for sums, more in ((status, unit.status), (by_label, unit.labels)):
            for name, number in more.items():
                sums[name] += number
        histogram += unit.confidence_histogram
        tokens += unit.tokens
    return Counts(status, by_label, histogram.tolist(), tokens)


def commit(out: str, run: Run, unit: Unit, table: pa.Table, counts: Counts) -> None:
    """Write the unit's output. Built in memory (a unit is small) so that it reaches the store in one piece."""
    footer = {
        ORIGIN_KEY: json.dumps(origin(run, unit)).encode(),
        COUNTS_KEY: json.dumps(asdict(counts)).encode(),
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(footer), buffer, compression="zstd")
    storage.write_file(storage.join(out, unit.output), buffer.getbuffer())


@dataclass(frozen=True)
class Output:
    """A file found in an output folder."""

    path: str  # relative to the folder
    rows: int
    origin: dict  # empty: not written by jobs/score.py, or damaged
    counts: Counts | None


def read_outputs(out: str) -> list[Output]:
    """The Parquet files of an output folder with what their footers say. The folder is listed once."""
    if not storage.exists(out):
        return []
    paths = storage.list_folder(out, SUFFIXES)

    def read(path: str) -> Output:
        filesystem, inner = storage.locate(storage.join(out, path))
        try:
            metadata = storage.patiently(out, lambda: pq.read_metadata(inner, filesystem=filesystem))
            footer = metadata.metadata or {}
            counts = Counts(**json.loads(footer[COUNTS_KEY]))
            return Output(path, metadata.num_rows, json.loads(footer[ORIGIN_KEY]), counts)
        except (*storage.UNREADABLE, KeyError, ValueError, TypeError):
            return Output(path, 0, {}, None)

    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        return list(pool.map(read, paths))
