"""Turn a label column into class numbers: one rule for training, evaluation and promotion.

Labels meet classes by their names. Numbers are named first, by each file's own declaration if it has one. A row has one
label, or where the column holds lists of them, any number.
"""

import decimal
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sentiment_core.errors import UserError
from sentiment_core.text.arrow import REPLACEMENT, is_text, to_texts

WHOLE_NUMBER = re.compile(r"0|-?[1-9]\d*")
SHOWN_LABELS = 10  # of a long list of labels in a message

Label = str | int | bool | None  # None: the row has none
Cell = Label | tuple[Label, ...]  # of a label column; None: the row is not labelled


class UnknownLabel(UserError):
    """A label without a class."""

    def __init__(self, message: str, label: Label = None) -> None:
        super().__init__(message)
        self.label = label


@dataclass(frozen=True)
class LabelScheme:
    """The classes that labels are looked up in, and how."""

    names: list[str] | None = None  # of the classes, in order; None: the data's own labels, in order
    by_user: bool = False  # the user named the numbers 0, 1, ... so; else the names are those of a trained model
    numbered: bool = False  # the model was trained on whole numbers, which count `names`
    mapping: dict[str, str] = field(default_factory=dict)  # labels of the data -> names of classes
    several: bool | None = None  # whether rows have lists of labels; None: as the data has it


@dataclass(frozen=True)
class FileLabels:
    """The label column of one file."""

    path: str
    cells: Sequence[Cell]  # of each row
    declared: list[str] | None  # names that the file gives the numbers 0, 1, ...
    several: bool = False  # cells are tuples of labels

    @property
    def values(self) -> list[Label]:
        """All labels, row by row."""
        return flatten(self.cells)

    def named(self) -> list[Cell]:
        """Return the cells with declared names in place of numbers; a number without a name is no label."""
        if self.declared is None:
            return list(self.cells)
        names = dict(enumerate(self.declared))  # unlabelled rows have the number -1

        def name(value: Label) -> Label:
            return value if value is None or isinstance(value, str) else names.get(value)

        return [tuple(map(name, cell)) if isinstance(cell, tuple) else name(cell) for cell in self.cells]


@dataclass(frozen=True)
class NumberedLabels:
    """The class number of each row, and the names of the classes."""

    label_names: list[str]  # in the order of their numbers
    labels: np.ndarray  # (n,) int64 class numbers; or (n, classes) bool, whether a row has each label
    is_labelled: np.ndarray  # (n,) bool; the labels of other rows mean nothing
    numbered: bool = False  # the labels were these numbers, not names
    mapping: dict[str, str] = field(default_factory=dict)  # labels of the data -> names, where they differ


def flatten(cells: Sequence[Cell]) -> list[Label]:
    """Return the labels of all cells, one after another; None where a row is not labelled."""
    return [label for cell in cells for label in (cell if isinstance(cell, tuple) else (cell,))]


def read_file_labels(
    column: pa.ChunkedArray, path: str, name: str, separator: str | None, declared: list[str] | None
) -> FileLabels:
    """Read a label column: one label a row, a list of them, or a text of several between separators.

    Raises `UserError` for other values.
    """
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return FileLabels(path, _read_lists(column, path, name), declared, several=True)
    labels = read_labels(column, path, name)
    if separator is None:
        return FileLabels(path, labels, declared)
    return FileLabels(path, split_cells(labels, separator), declared, several=True)


def split_cells(labels: Sequence[Label], separator: str | None) -> list[Cell]:
    """Split texts that hold several labels; if all of these are whole numbers, they become numbers.

    Without a separator each cell stays one label.
    """
    if separator is None:
        return list(labels)
    cells = [None if label is None else _split(str(label), separator) for label in labels]
    if all(WHOLE_NUMBER.fullmatch(str(label)) for label in flatten(cells) if label is not None):
        return [cell if cell is None else tuple(int(str(label)) for label in cell) for cell in cells]
    return list(cells)


def _read_lists(column: pa.ChunkedArray, path: str, name: str) -> list[Cell]:
    """Read a column of lists of texts or whole numbers; a list with a missing label counts as not labelled."""
    kind = column.type.value_type
    if pa.types.is_boolean(kind) or pa.types.is_nested(kind):
        raise UserError(f"column {name!r} of {path} holds lists of {kind}; expected lists of label names or numbers")
    cells: list[Cell] = []
    for chunk in column.chunks:
        values = chunk.flatten()  # without those of null lists
        labels = [None] * len(values) if pa.types.is_null(kind) else read_labels(pa.chunked_array([values]), path, name)
        start = 0
        for size in pc.list_value_length(chunk).to_pylist():
            cell = None if size is None else tuple(labels[start : start + size])
            cells.append(None if cell and None in cell else cell)
            start += size or 0
    return cells


def _split(text: str, separator: str) -> tuple[Label, ...]:
    return tuple(part for part in map(str.strip, text.split(separator)) if part)


def read_labels(column: pa.ChunkedArray, path: str, name: str) -> list[Label]:
    """Read a label column as texts, whole numbers or truth values.

    Missing and empty labels become None. Raises `UserError` for values that are none of these.
    """
    kind = column.type
    values: list[Any] = [
        v for chunk in column.chunks for v in (to_texts(chunk) if is_text(kind) else chunk.to_pylist())
    ]
    if is_text(kind):
        damaged = next((value for value in values if value is not None and REPLACEMENT in value), None)
        if damaged is not None:
            raise UserError(
                f"column {name!r} of {path} has the label {damaged!r} with bytes that are not UTF-8; give the file's "
                "encoding with --csv-encoding, or write it as UTF-8"
            )
        return [None if value is None or not value.strip() else value for value in values]
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return values
    if not (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UserError(f"column {name!r} of {path} holds {kind}; expected classes: texts or whole numbers")
    # pandas writes whole numbers with gaps as floats, databases write them as decimals
    values = [None if value is None or np.isnan(float(value)) else value for value in values]
    fraction = next((value for value in values if value is not None and not _is_whole(value)), None)
    if fraction is not None:
        raise UserError(
            f"column {name!r} of {path} holds the number {fraction}; expected classes: texts or whole numbers"
        )
    return [None if value is None else int(value) for value in values]


def read_folder_label(value: str | None) -> Label:
    """Read a label that stands in the name of a partition folder: a whole number or a text."""
    return int(value) if value and WHOLE_NUMBER.fullmatch(value) else value or None


def _is_whole(value: float | decimal.Decimal) -> bool:
    return np.isfinite(float(value)) and value == int(value)


def number_labels(files: Sequence[FileLabels], path: str, column: str, scheme: LabelScheme) -> NumberedLabels:
    """Give each label of all files its class number.

    Without names in the scheme the classes are the labels themselves, texts in alphabetical order, numbers in their
    own. With them each label is a name, or, if all labels are whole numbers that cannot be names, the number of a name.
    Raises `UserError` for a label without a class, for files that number their labels in several ways, and where rows
    have one label in place of several, or several in place of one.
    """
    several = _check_number_of_labels(files, column, scheme)
    _check_numbering(files, column)
    cells = [cell for file in files for cell in file.named()]
    values = flatten(cells)
    mapping = dict(scheme.mapping)
    if scheme.names and (scheme.by_user or (scheme.numbered and not mapping)):
        mapping |= _map_declared(files, scheme.names)
    if any(isinstance(value, bool) for value in values):
        values = _read_truth_values(values, scheme, mapping)
    if mapping:
        values = [value if value is None else mapping.get(str(value), value) for value in values]
    if any(isinstance(value, str) for value in values):
        values = [str(value) if isinstance(value, int) else value for value in values]
    distinct = sorted(
        {value for value in values if value is not None}, key=lambda value: (isinstance(value, str), value)
    )
    index: dict[Label, int]
    numbered = False
    if scheme.names is None:
        names = [str(value) for value in distinct]
        index = {value: number for number, value in enumerate(distinct)}
    else:
        names = scheme.names
        numbers = {name: number for number, name in enumerate(names)}
        index = {value: numbers[str(value)] for value in distinct if str(value) in numbers}
        numbered = all(isinstance(value, int) for value in distinct) and _may_count(scheme, index, distinct)
        if numbered:
            index = {number: number for number in range(len(names))}
    unknown = [value for value in distinct if value not in index]
    if unknown:
        raise UnknownLabel(_describe_unknown(unknown[0], files, path, column, names), unknown[0])
    index[None] = -1
    used = {label: name for label, name in mapping.items() if label != name}
    classes = np.array([index[value] for value in values], np.int64)
    if not several:
        return NumberedLabels(names, classes, classes >= 0, numbered, used)
    labels = np.zeros((len(cells), len(names)), bool)
    rows = np.repeat(np.arange(len(cells)), [len(cell) if isinstance(cell, tuple) else 1 for cell in cells])
    labels[rows[classes >= 0], classes[classes >= 0]] = True
    is_labelled = np.ones(len(cells), bool)
    is_labelled[rows[classes < 0]] = False
    return NumberedLabels(names, labels, is_labelled, numbered, used)


def _check_number_of_labels(files: Sequence[FileLabels], column: str, scheme: LabelScheme) -> bool:
    """Return whether rows have lists of labels. Raises `UserError` where files, or data and model, differ in that."""
    first = files[0]
    for file in files:
        if file.several != first.several:
            lists, single = (file, first) if file.several else (first, file)
            raise UserError(
                f"column {column!r} has lists of labels in {lists.path} and one label a row in {single.path}; read "
                "them apart, or write lists into both"
            )
    if scheme.several is False and first.several:
        raise UserError(
            f"column {column!r} of {first.path} has lists of labels; expected one label a row, as the model gives it"
        )
    if scheme.several and not first.several:
        raise UserError(
            f"column {column!r} of {first.path} has one label a row; expected lists of labels, as the model gives "
            "them; give --label-separator where a text holds several"
        )
    if first.several and scheme.names is None:
        for file in files:
            if file.declared is None and any(type(value) is int for value in file.values):
                raise UserError(
                    f"column {column!r} of {file.path} has lists of numbers without names; name the numbers 0, 1, ... "
                    "with --label-names"
                )
    return first.several


def _may_count(scheme: LabelScheme, index: dict[Label, int], distinct: Sequence[Label]) -> bool:
    """Return whether whole numbers may be counted as the positions of names; `index` has those that are names."""
    if scheme.numbered:
        return True
    if scheme.by_user:
        return len(index) < len(distinct)
    # a trained model's names: only where a number cannot be meant as one of them
    names_are_numbers = all(WHOLE_NUMBER.fullmatch(name) for name in scheme.names or [])
    return not (index or scheme.mapping or names_are_numbers) and bool(distinct)


def _check_numbering(files: Sequence[FileLabels], column: str) -> None:
    """Refuse numbers in one file beside names that another declares for numbers. Raises `UserError`."""
    declaring = next((file for file in files if file.declared), None)
    for file in files:
        number = next((value for value in file.values if type(value) is int), None)
        if declaring and number is not None and not file.declared:
            raise UserError(
                f"column {column!r} of {file.path} has the number {number} without a name, and {declaring.path} names "
                f"its numbers {shorten(declaring.declared or [])}; read them apart, or write names into both"
            )


def _map_declared(files: Sequence[FileLabels], names: list[str]) -> dict[str, str]:
    """Map the names that the files declare for the numbers 0, 1, ... to other names of these numbers.

    Other names are as many, and none of them is a declared one. Raises `UserError` if the files number their labels in
    different orders.
    """
    declarations = {
        file.path: file.declared
        for file in files
        if file.declared and len(file.declared) == len(names) and not set(file.declared) & set(names)
    }
    if not declarations:
        return {}
    first_path, first = next(iter(declarations.items()))
    for path, declared in declarations.items():
        if declared != first:
            raise UserError(
                f"{first_path} names the labels 0, 1, ... {shorten(first)}, and {path} names them "
                f"{shorten(declared)}; give --label-map {first[0]}={names[0]},... instead of --label-names"
            )
    return dict(zip(first, names, strict=False))


def _read_truth_values(values: list[Label], scheme: LabelScheme, mapping: dict[str, str]) -> list[Label]:
    """Read truth values as the names true and false or, where two classes have other names, as their numbers."""
    as_numbers = (
        scheme.names is not None and len(scheme.names) == 2 and not {"true", "false"} & {*scheme.names, *mapping}
    )
    return [
        (int(value) if as_numbers else str(value).lower()) if isinstance(value, bool) else value for value in values
    ]


def _describe_unknown(value: Label, files: Sequence[FileLabels], path: str, column: str, names: list[str]) -> str:
    """Return the message about a label without a class."""
    declared = next((file.declared for file in files if file.declared and value in file.declared), None)
    expected = f"expected one of {shorten(names)}"
    if declared:
        return (
            f"column {column!r} of {path} has the labels {shorten(declared)}, as the data names its numbers; "
            f"{expected}; map them with --label-map {value}={names[0]},..."
        )
    return (
        f"column {column!r} of {path} has the label {value!r}; {expected}; leave those cells empty, train with "
        f"data that has this label, or map it with --label-map {value}={names[0]}"
    )


def parse_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """Parse `--label-map`: `label=name` each. Raises `UserError`."""
    mapping: dict[str, str] = {}
    for pair in pairs:
        label, separator, name = pair.partition("=")
        if not (separator and label and name) or label in mapping:
            raise UserError(f"--label-map has the part {pair!r}; expected label=name, each label once")
        mapping[label] = name
    return mapping


def shorten(names: Sequence[str]) -> str:
    """Return a list of labels as it stands in a message, cut after `SHOWN_LABELS`."""
    return ", ".join(names[:SHOWN_LABELS]) + " ..." * (len(names) > SHOWN_LABELS)


def count_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Count the rows that have each label, (classes,) int; `labels` are those of `NumberedLabels`."""
    return labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=classes)


def renumber(labels: np.ndarray, names: Sequence[str], own_names: Sequence[str]) -> np.ndarray:
    """Return labels of these names by the numbers of `own_names`; what is not among them is -1, or no label."""
    own_numbers = {name: number for number, name in enumerate(own_names)}
    numbers = np.array([own_numbers.get(name, -1) for name in names])
    if labels.ndim == 1:
        return numbers[labels]
    own_labels = np.zeros((len(labels), len(own_names)), bool)
    own_labels[:, numbers[numbers >= 0]] = labels[:, numbers >= 0]
    return own_labels


def label_shares(labels: np.ndarray, label_names: list[str]) -> dict[str, float]:
    """Return the class distribution: each label's share of the rows."""
    counts = count_labels(labels, len(label_names))
    return {name: float(count) / max(1, len(labels)) for name, count in zip(label_names, counts, strict=True)}
