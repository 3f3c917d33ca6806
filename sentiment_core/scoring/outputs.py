"""Scored Parquet: what a unit's output looks like, how it is committed, and what its footer says of its origin.

A file that exists is complete. Its footer tells which bundle and settings made it from which rows of which version of
its shard; there is no other record of what is done.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sentiment_core.data import files, shards
from sentiment_core.data.shards import SUFFIXES, Unit
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.text import distinct_sketch
from sentiment_core.text.status import ABSTAINED, OK, STATUS_NAMES, TRUNCATED
from sentiment_core.text.token_lists import LENGTH_BINS, length_histogram

COLUMNS = ("label", "confidence", "probabilities", "status", "source", "row")
RUN_FILE, SUMMARY_FILE = "_run.json", "_summary.json"
ORIGIN_KEY, COUNTS_KEY = b"sentiment_core.origin", b"sentiment_core.counts"
HISTOGRAM_BINS = 20  # of confidence, from 0 to 1
FORMAT_VERSION = 5
LABELLED = (OK, TRUNCATED)  # what has a label
# By how much a probability may differ that other hardware, or other batches, computed.
BF16_TOLERANCE, INT8_TOLERANCE = 0.02, 0.12


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
    min_confidence: float
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Counts:
    """Sums over the rows of a unit, kept in its footer, so that a summary covers what earlier runs committed; or of
    many units."""

    units: int
    status: dict[str, int]
    labels: dict[str, int]
    confidence_histogram: list[int]
    length_histogram: list[int]  # of tokens, see `token_lists.length_histogram`
    tokens: int
    unknown_tokens: int
    texts: list[int]  # a sketch of those that have tokens: how many are different

    @classmethod
    def none(cls, labels: list[str]) -> "Counts":
        statuses, shares = dict.fromkeys(STATUS_NAMES, 0), dict.fromkeys(labels, 0)
        return cls(0, statuses, shares, [0] * HISTOGRAM_BINS, [0] * LENGTH_BINS, 0, 0, [])

    @property
    def rows(self) -> int:
        return sum(self.status.values())

    def __add__(self, more: "Counts") -> "Counts":
        return Counts(
            self.units + more.units,
            {name: number + more.status[name] for name, number in self.status.items()},
            {name: number + more.labels[name] for name, number in self.labels.items()},
            [a + b for a, b in zip(self.confidence_histogram, more.confidence_histogram, strict=True)],
            [a + b for a, b in zip(self.length_histogram, more.length_histogram, strict=True)],
            self.tokens + more.tokens,
            self.unknown_tokens + more.unknown_tokens,
            distinct_sketch.merge_sketches(self.texts, more.texts),
        )


def place_of(out: str, limit: int | None) -> str:
    """The folder that the output goes to: another one for a first look than for all."""
    return storage.absolute(out) + (f"-limit-{limit}" if limit else "")


def pin(place: str, run: Run, model: str, earlier: list[str]) -> None:
    """Write `_run.json`: the run, where its bundle was found the last time, and the digests of earlier bundles whose
    outputs are to stay."""
    content = asdict(run) | {"model": model, "earlier_bundles": earlier}
    storage.write_file(storage.join(place, RUN_FILE), json.dumps(content, indent=2).encode())


def read_run(place: str) -> dict | None:
    """What `_run.json` of an output folder tells; None if it is not there or no JSON. Raises `UserError` if nobody
    knows."""
    try:
        found = json.loads(storage.read_file(storage.join(place, RUN_FILE)))
        found.setdefault("earlier_bundles", [])
        return found if {"text_column", "keep", "bundle", "format_version"} <= set(found) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
        return None
    except OSError as error:
        raise UserError(f"{place}/{RUN_FILE} cannot be read: {error}; check the place and the credentials") from None


def belongs(made: dict, pinned: dict) -> bool:
    """Whether what a run like `made` wrote may stand in a folder whose `_run.json` is `pinned`."""
    bundles = (pinned["bundle"], *pinned["earlier_bundles"])
    return made.get("bundle") in bundles and all(
        pinned.get(name) == value for name, value in made.items() if name != "bundle"
    )


def origin(run: Run, unit: Unit) -> dict:
    """What the footer says: the same for each try, another one when bundle, settings or shard have changed."""
    shown = {name: value for name, value in asdict(unit).items() if name != "text_bytes"}
    return {"run": asdict(run), "unit": shown}


def is_of(origin_found: dict, run: Run, unit: Unit, earlier: list[str]) -> bool:
    """Whether this is the origin of what `run`, or the same with one of the `earlier` bundles, makes of the unit."""
    made = origin_found.get("run", {})
    return made.get("bundle") in (run.bundle, *earlier) and origin_found == origin(
        replace(run, bundle=made["bundle"]), unit
    )


def make_table(
    unit: Unit, kept: pa.Table, status: np.ndarray, probabilities: np.ndarray, labels: list[str], with_all: bool
) -> pa.Table:
    """The scored rows of a unit. `status` (n,) codes, `probabilities` (n, classes), NaN where there is no score."""
    scored = ~np.isnan(probabilities).any(axis=1)
    labelled = scored & np.isin(status, LABELLED)
    best = np.where(labelled, probabilities.argmax(axis=1), 0).astype(np.int32)
    confidence = probabilities.max(axis=1, initial=0)
    columns = {
        "label": pa.DictionaryArray.from_arrays(pa.array(best, mask=~labelled), pa.array(labels, pa.string())),
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


def count(
    status: np.ndarray,
    probabilities: np.ndarray,
    labels: list[str],
    lengths: np.ndarray,
    unknown_tokens: int,
    texts: list[int],
) -> Counts:
    """Of a unit: `status` (n,) codes, `probabilities` (n, classes), NaN where there is no score, `lengths` (n,) tokens,
    a sketch of its `texts`."""
    scored = probabilities[~np.isnan(probabilities).any(axis=1)]
    by_label = np.bincount(probabilities[np.isin(status, LABELLED)].argmax(axis=1), minlength=len(labels))
    return Counts(
        1,
        {name: int((status == code).sum()) for code, name in enumerate(STATUS_NAMES)},
        dict(zip(labels, by_label.tolist(), strict=True)),
        np.histogram(scored.max(axis=1, initial=0), bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist(),
        length_histogram(lengths),
        int(lengths.sum()),
        unknown_tokens,
        texts,
    )


def commit(out: str, run: Run, unit: Unit, table: pa.Table, counts: Counts) -> None:
    """Write the unit's output. Built in memory (a unit is small) so that it reaches the store in one piece."""
    footer = {
        ORIGIN_KEY: json.dumps(origin(run, unit)).encode(),
        COUNTS_KEY: json.dumps(asdict(counts)).encode(),
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(footer), buffer, compression="zstd")
    storage.write_file(storage.join(out, unit.output), buffer.getbuffer())


# what outputs before format 5 do not tell
UNTOLD = {"length_histogram": [0] * LENGTH_BINS, "unknown_tokens": 0, "texts": []}


@dataclass(frozen=True)
class Output:
    """A file found in an output folder."""

    path: str  # relative to the folder
    rows: int
    origin: dict  # empty: not written by jobs/score.py, or damaged
    counts: Counts | None
    mtime_ns: int


def read_outputs(out: str, since_ns: int = 0) -> Iterator[Output]:
    """The Parquet files of an output folder, written at `since_ns` or later, with what their footers say. The folder is
    listed once."""

    def read(stamp: FileStamp) -> Output:
        path = stamp.path
        try:
            metadata = shards.read_metadata(out, path)
            footer = metadata.metadata or {}
            counts = Counts(**(UNTOLD | json.loads(footer[COUNTS_KEY])))
            origin = json.loads(footer[ORIGIN_KEY])
            if {type(origin["unit"][name]) for name in ("start", "stop", "size", "mtime_ns")} != {int}:
                raise ValueError("no rows")
            if not isinstance(origin["unit"]["source"], str):
                raise ValueError("no shard")
            known = {"run": dict(origin["run"]), "unit": dict(origin["unit"])}
            return Output(path, metadata.num_rows, known, counts, stamp.mtime_ns)
        except Exception:  # a file of others, or a damaged one, may hold anything
            return Output(path, 0, {}, None, stamp.mtime_ns)

    found = files.list_files(out, SUFFIXES) if storage.exists(out) else []
    return storage.map_in_threads(read, [stamp for stamp in found if stamp.mtime_ns >= since_ns])


def read(out: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """An output, or those of its columns that it has. Raises one of `failures.UNREADABLE`."""
    filesystem, inner = storage.locate(storage.join(out, path))

    def read() -> pa.Table:
        with filesystem.open_input_file(inner) as stream:
            return pq.ParquetFile(stream).read(columns=columns)

    return storage.retry_transient_errors(out, read)


class Different(OSError):
    """An output is not what its input, its bundle and its settings make."""


def check_same(found: pa.Table, expected: pa.Table, probabilities: np.ndarray, labels: list[str], run: Run) -> None:
    """Raise `Different` unless `found` holds the rows of `expected`, which `make_table` made of `probabilities`: the
    same to the bit, but that what was computed may differ a little, and with it a label that is close to another, or
    whether there is one."""
    if found.schema != expected.schema:
        raise Different(f"its columns are {_columns(found)}; expected {_columns(expected)}")
    unscored = np.isnan(probabilities).any(axis=1)
    abstained, now_abstained = (
        pc.fill_null(pc.equal(table["status"], STATUS_NAMES[ABSTAINED]), False).to_numpy()
        for table in (found, expected)
    )
    for name in expected.column_names:
        if name in ("label", "confidence", "probabilities") or found[name].equals(expected[name]):
            continue
        pairs = zip(found[name].to_pylist(), expected[name].to_pylist(), strict=True)
        # no number is as another
        unlike = np.array([repr(one) != repr(other) for one, other in pairs], bool)
        excused = (abstained | now_abstained) & ~unscored  # looked at below
        rows = np.flatnonzero(unlike & ~excused if name == "status" else unlike)
        if len(rows):
            row = int(rows[0])
            raise Different(
                f"{name} differs in {len(rows):,} of {len(found):,} rows; row {expected['row'][row]}: "
                f"{found[name][row]!s:.60}, expected {expected[name][row]!s:.60}"
            )
    near = INT8_TOLERANCE if run.int8 else BF16_TOLERANCE
    code = pc.fill_null(pc.index_in(found["label"].cast(pa.string()), pa.array(labels)), -1).to_numpy()
    confidence = found["confidence"].to_numpy()
    with np.errstate(invalid="ignore"):
        now = np.where(abstained, probabilities.max(axis=1), probabilities[np.arange(len(found)), code])
        wrong = ~(np.abs(confidence - now) <= near) | ~(probabilities.max(axis=1) - now <= 2 * near)
        wrong |= abstained != (confidence < np.float32(run.min_confidence))
        wrong = np.where(unscored, ~np.isnan(confidence), wrong) | ((unscored | abstained) != (code < 0))
        if "probabilities" in found.column_names:
            flat = found["probabilities"].combine_chunks().fill_null([np.nan] * len(labels)).flatten().to_numpy()
            wrong |= ~unscored & ~(np.abs(flat.reshape(probabilities.shape) - probabilities) <= near).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise Different(
            f"{int(wrong.sum()):,} of {len(found):,} rows are scored otherwise; row {expected['row'][row]}: "
            f"{found['label'][row]} with {found['confidence'][row]}, expected {expected['label'][row]} with "
            f"{expected['confidence'][row]}"
        )


def _columns(table: pa.Table) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in table.schema)
