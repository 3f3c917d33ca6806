"""Write a sample as CSV for people to label, and read it when it comes back from a spreadsheet.

The weights make estimates from a sample unbiased, so it must be the sample that was drawn. Each row's id therefore
holds checksums of the row and of the sample, the sample's size, and the start of the text's hash, by which the row is
known again in an output. Nothing of this guards against intent.
"""

import csv
import hashlib
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from sentiment_core.data import labels, sample_columns
from sentiment_core.data.labels import FileLabels, Label, LabelScheme, UnknownLabel
from sentiment_core.data.readers import CsvText, open_csv
from sentiment_core.data.sample_columns import (
    COLUMNS,
    ID,
    LABEL,
    ROW,
    SAMPLE_ID,
    SOURCE,
    STRATUM,
    TEXT_HASH_BYTES,
    WEIGHT,
)
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import UNREADABLE
from sentiment_core.text.arrow import join_fields
from sentiment_core.text.text_hash import hash_texts

WEIGHT_DIGITS = 10  # significant ones, which spreadsheets show and so save
LABEL_SEPARATOR = "|"  # of several labels in a cell, as people are asked to write them
SHOWN_ROWS = 5  # in a message


@dataclass(frozen=True)
class DrawnRow:
    """A row that was drawn, without its texts."""

    source: str  # path of its shard, relative to the input
    row: int  # number in the shard
    stratum: str = ""
    weight: float | None = None  # rows that it stands for; None in a sample for training


@dataclass(frozen=True)
class Sample:
    """A sample for shares as it came back. All arrays have one value a row of the sample, in the order of the file."""

    path: str
    ids: list[str]
    source: np.ndarray  # (n,) object, path of each row's shard
    row: np.ndarray  # (n,) int64, number in the shard
    labels: list[Label]  # cells; None where nobody has labelled the row
    stratum: np.ndarray  # (n,) object
    weight: np.ndarray  # (n,) float64, rows of the stratum by drawn rows of the stratum
    line: np.ndarray  # (n,) int64, number among the rows of the file, empty lines left out
    text_hashes: list[str]  # first `TEXT_HASH_BYTES` of the hash of each row's text as it was scored, hexadecimal

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def is_labelled(self) -> np.ndarray:
        """(n,) bool: rows that were reached."""
        return np.array([label is not None for label in self.labels], bool)

    @cached_property
    def skipped_rows(self) -> int:
        """Rows without a label before the last labelled one, by the random order in which they were drawn.

        If there are any, somebody chose what to label, and the labelled rows may be no random sample.
        """
        order = np.array([int(sample_id.partition("of")[0].removeprefix("row")) for sample_id in self.ids], np.int64)
        return int((~self.is_labelled & (order < order[self.is_labelled].max(initial=0))).sum())

    @cached_property
    def strata(self) -> tuple[np.ndarray, np.ndarray]:
        """The names of the strata (strata,), and the index of each row's stratum (n,)."""
        return np.unique(self.stratum, return_inverse=True)

    @cached_property
    def stratum_rows(self) -> np.ndarray:
        """(strata,) float64: rows of the corpus in each stratum, by the order of `strata`."""
        return np.bincount(self.strata[1], self.weight)

    def without_sources(self, gone: Collection[str]) -> "Sample":
        """Return the sample without the strata whose rows are all of shards that are `gone`.

        Raises `UserError` where other strata have rows of these, since the corpus is no longer what they stand for.
        """
        is_gone = np.array([source in gone for source in self.source], bool)
        stratum = self.strata[1]
        stays = ~np.isin(stratum, np.setdiff1d(stratum[is_gone], stratum[~is_gone]))
        if (is_gone & stays).any() or not stays.any():
            raise UserError(
                f"{self.path} has {is_gone.sum():,} of its {len(self):,} rows in input files that are gone; draw a new "
                "sample"
            )
        rows = np.flatnonzero(stays)
        chosen: dict[str, Any] = {
            field.name: value[rows] if isinstance(value, np.ndarray) else [value[i] for i in rows]
            for field in fields(self)
            if field.name != "path"
            for value in [getattr(self, field.name)]
        }
        return replace(self, **chosen)

    def spread_weights(self, used: np.ndarray) -> np.ndarray:
        """Return the weights (n,) with which the `used` rows (n,) bool stand for all rows of their strata; else 0.

        Rows come in random order, so the rows of a stratum that were reached are a random sample of it.
        """
        _, stratum = self.strata
        used_rows = np.bincount(stratum[used], minlength=len(self.stratum_rows))
        return np.where(used, self.stratum_rows[stratum] / np.maximum(1, used_rows[stratum]), 0.0)

    def uncovered_rows(self, used: np.ndarray) -> float:
        """Return how many rows of the corpus are in strata without any of the `used` rows (n,) bool."""
        covered = np.isin(np.arange(len(self.stratum_rows)), self.strata[1][used])
        return float(self.stratum_rows[~covered].sum())

    def number_labels(self, scheme: LabelScheme, separator: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Look the labels up among the classes of a model.

        Args:
            scheme: The classes, see `labels.number_labels`.
            separator: Between the labels of a cell that holds several; None: each holds one.

        Returns:
            Class numbers (n,) int64, or for several labels (n, classes) bool; and which rows are labelled, (n,) bool.

        Raises:
            UserError: A label is none of the model's.
        """
        cells = labels.split_cells(self.labels, separator)
        file_labels = FileLabels(self.path, cells, None, several=separator is not None)
        try:
            numbers = labels.number_labels([file_labels], self.path, LABEL, scheme)
        except UnknownLabel as error:
            has_label = (str(error.label) in map(str, labels.flatten([cell])) for cell in cells)
            rows = itertools.compress(self.ids, has_label)
            raise UserError(
                f"{self.path} has the label {error.label!r} in row {next(rows, '?')}; expected one of "
                f"{labels.shorten(scheme.names or [])}; correct it, or leave the cell empty"
            ) from None
        if numbers.numbered and not scheme.numbered:
            raise UserError(
                f"{self.path} has numbers as labels; expected names: {labels.shorten(scheme.names or [])}; write these"
            )
        return numbers.labels, numbers.is_labelled


def format_sample(rows: Sequence[DrawnRow], texts: Mapping[str, Sequence[str | None]]) -> bytes:
    """Return the content of a sample's CSV file, in UTF-8 with a byte-order mark, which spreadsheets look for.

    Args:
        rows: Drawn rows, in the order of the file.
        texts: Texts of the rows by text column.

    Raises:
        UserError: A text column has the name of a column of samples.
    """
    check_text_columns(list(texts))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow([SAMPLE_ID, SOURCE, ROW, *texts, LABEL, STRATUM, WEIGHT])
    weights = [None if row.weight is None else _format_weight(row.weight) for row in rows]
    hashes = hash_texts(join_fields(fields) or "" for fields in zip(*texts.values(), strict=True)).to_pylist()
    keys = [text_hash[:TEXT_HASH_BYTES].hex() for text_hash in hashes]
    drawn = [
        (row.source, row.row, row.stratum.strip(), weight, key)
        for row, weight, key in zip(rows, weights, keys, strict=True)
    ]
    design = _hash(drawn)
    for i, (source, row, stratum, weight, key) in enumerate(drawn):
        cells = [sample_columns.escape(column[i] or "") for column in texts.values()]
        number = str(i + 1).zfill(len(str(len(rows))))  # sorting by ids restores the order
        sample_id = f"row{number}of{len(rows)}-{design}-{_hash((i + 1, design, *drawn[i]))}-{key}"
        ends = ["", sample_columns.escape(stratum), weight or ""]
        writer.writerow([sample_id, sample_columns.escape(source), row, *cells, *ends])
    return buffer.getvalue().encode("utf-8-sig")


def check_text_columns(names: Sequence[str]) -> None:
    """Refuse text columns with the name of a column of samples. Raises `UserError`."""
    for name in names:
        if name in COLUMNS:
            raise UserError(
                f"the text column {name!r} has the name of a column of samples ({', '.join(COLUMNS)}); rename it "
                "in the input"
            )


def _format_weight(weight: float) -> str:
    """Write a weight, 1 or more, without an exponent and with as many digits as spreadsheets show."""
    decimals = max(0, WEIGHT_DIGITS - 1 - int(math.log10(max(1.0, weight))))
    text = f"{weight:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _hash(content: object) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=4).hexdigest()


def read_sample(path: str, separator: str | None = None, encoding: str | None = None) -> Sample:
    """Read a sample for shares that came back, and check that it is the one that was drawn.

    Args:
        path: Path or URI of the CSV file. Spreadsheets may have changed its separator, encoding, line breaks, decimal
            marks and order, and people may have added columns.
        separator: Of the file; None: it is found.
        encoding: Of the file; None: it is found.

    Raises:
        UserError: It cannot be read, is no sample for shares, or has other rows, strata or weights than were drawn.
    """
    csv_text = _open(path, separator, encoding)
    try:
        table = csv_text.read(COLUMNS, [SAMPLE_ID, SOURCE, ROW, STRATUM, WEIGHT])
        cells = {name: table[name].to_pylist() for name in COLUMNS if name != LABEL}
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as CSV: {' '.join(str(error).split())}; save it again") from None
    label_cells = [
        label.strip() if isinstance(label, str) else label for label in labels.read_labels(table[LABEL], path, LABEL)
    ]
    lines = [
        i
        for i in range(len(table))
        if label_cells[i] is not None or any((column[i] or "").strip() for column in cells.values())
    ]
    columns = {name: [column[i] or "" for i in lines] for name, column in cells.items()}
    columns |= {name: [cell.strip() for cell in columns[name]] for name in columns if name != SOURCE}
    ids = columns[SAMPLE_ID]
    _check_ids(path, ids)
    cells_of_rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if not any(columns[WEIGHT]) and not any(columns[STRATUM]):
        raise _describe_without_weights(path, cells_of_rows)
    rows = [_check_row(path, cells) for cells in cells_of_rows]
    strata = Counter(row.stratum for row in rows)
    # of rows without fractions, which the written weights may have lost
    exact = [round((row.weight or 0) * strata[row.stratum]) / strata[row.stratum] for row in rows]
    return Sample(
        path,
        ids,
        np.array([row.source for row in rows], object),
        np.array([row.row for row in rows], np.int64),
        [label_cells[i] for i in lines],
        np.array([row.stratum for row in rows], object),
        np.array(exact, np.float64),
        np.array(lines, np.int64),
        [sample_id[-2 * TEXT_HASH_BYTES :] for sample_id in ids],
    )


def _open(path: str, separator: str | None, encoding: str | None) -> CsvText:
    try:
        csv_text = open_csv(storage.read_file(path), path, COLUMNS, separator, encoding)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}; give the CSV file of sentiment-core sample") from None
    missing = [name for name in COLUMNS if name not in csv_text.header]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r}; it has {', '.join(csv_text.header)}; expected the columns that "
            "sentiment-core sample wrote; leave them all in the file"
        )
    doubled = next((name for name in COLUMNS if csv_text.header.count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"{path} has two columns {doubled!r}; rename the one that was added")
    return csv_text


def _check_ids(path: str, ids: Sequence[str]) -> None:
    """Refuse a sample with rows that were added, doubled or removed. Raises `UserError`."""
    matches = [ID.fullmatch(sample_id) for sample_id in ids]
    for sample_id, match in zip(ids, matches, strict=True):
        if match is None:
            raise UserError(
                f"{path} has the id {sample_id!r} in column {SAMPLE_ID!r}; expected ids that sentiment-core sample "
                "wrote; remove rows that were added, and restore ids that were changed"
            )
    doubled = next((sample_id for sample_id, count in Counter(ids).items() if count > 1), None)
    if doubled is not None:
        raise UserError(f"{path} has the row {doubled} more than once; remove its copies")
    samples = {(match[2], match[3]) for match in matches if match}
    if len(samples) > 1:
        raise UserError(f"{path} holds rows of {len(samples)} samples; keep each sample in a file of its own")
    size = max((int(number) for number, _ in samples), default=0)
    if len(ids) < size or not size:
        present = {int(match[1]) for match in matches if match}
        missing = itertools.islice((number for number in range(1, size + 1) if number not in present), SHOWN_ROWS)
        raise UserError(
            f"{path} has {len(ids)} of the {size} rows that were drawn (missing: {', '.join(map(str, missing))}"
            f"{' ...' * (size - len(ids) > SHOWN_ROWS)}), so its weights no longer fit; restore the rows, and leave "
            "the label of a row empty instead of deleting it"
        )


def _check_row(path: str, cells: Mapping[str, str]) -> DrawnRow:
    """Read a row's cells. Raises `UserError` if they are not those that were drawn."""
    row = _match_row(cells, _read_weight(cells[WEIGHT]))
    if row is not None:
        return row
    source, stratum = sample_columns.unescape(cells[SOURCE]), sample_columns.unescape(cells[STRATUM])
    raise UserError(
        f"{path} has other values in row {cells[SAMPLE_ID]} than were drawn ({SOURCE} {source!r}, {ROW} "
        f"{cells[ROW]!r}, {STRATUM} {stratum!r}, {WEIGHT} {cells[WEIGHT]!r}); restore them, or copy the labels into "
        "the file as it was written"
    )


def _match_row(cells: Mapping[str, str], weights: Iterable[str | None]) -> DrawnRow | None:
    """Return the drawn row that a row's cells are, with one of the weights; None if they are no drawn row."""
    match = ID.fullmatch(cells[SAMPLE_ID])
    assert match is not None, "ids were checked"
    source, stratum = sample_columns.unescape(cells[SOURCE]), sample_columns.unescape(cells[STRATUM])
    digits = re.sub(r"[\s.,'\u00a0\u202f]", "", cells[ROW])
    row = int(digits) if digits.isdecimal() else -1
    for weight in weights:
        if _hash((int(match[1]), match[3], source, row, stratum, weight, match[5])) == match[4]:
            return DrawnRow(source, row, stratum, None if weight is None else float(weight))
    return None


def _describe_without_weights(path: str, cells_of_rows: Sequence[Mapping[str, str]]) -> UserError:
    """Say why a sample has neither strata nor weights: it was drawn without, or somebody emptied the columns."""
    if any(_match_row(cells, [None]) for cells in cells_of_rows):
        return UserError(
            f"{path} is a sample for training, whose rows do not stand for the corpus; draw one with sentiment-core "
            "sample --for shares"
        )
    return UserError(
        f"{path} is a sample whose columns {STRATUM!r} and {WEIGHT!r} were emptied; restore them, or copy the labels "
        "into the file as it was written"
    )


def _read_weight(cell: str) -> list[str]:
    """Return the weights that a cell may mean: a comma or a point may be the decimal mark, or group digits."""
    compact = re.sub(r"[\s'\u00a0\u202f]", "", cell)
    readings = [
        compact.replace(",", ""),
        compact.replace(",", "."),
        compact.replace(".", "").replace(",", "."),
        compact.replace(".", ""),
    ]
    weights = []
    for reading in readings:
        try:
            weights.append(_format_weight(float(reading)))
        except (ValueError, OverflowError):
            continue
    return list(dict.fromkeys(weights))
