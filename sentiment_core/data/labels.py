"""Turn a label column into class numbers."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sentiment_core.errors import UserError
from sentiment_core.text.arrow import is_text, to_texts

SHOWN_LABELS = 10  # of a long list of labels in a message

Label = str | int | None  # None: the row has none


@dataclass(frozen=True)
class NumberedLabels:
    """The class number of each row, and the names of the classes."""

    label_names: list[str]  # in the order of their numbers
    labels: np.ndarray  # (n,) int64
    numbered: bool  # the values were these numbers, not names


def read_labels(column: pa.ChunkedArray, path: str, name: str) -> list[Label]:
    """Read a label column as texts or whole numbers.

    Missing and empty labels become None. Raises `UserError` for values that are neither.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    values = [v for chunk in column.chunks for v in (to_texts(chunk) if is_text(kind) else chunk.to_pylist())]
    if pa.types.is_integer(kind):
        return values
    if is_text(kind):
        return [None if value is None or not value.strip() else value for value in values]
    if pa.types.is_boolean(kind):
        return [None if value is None else str(value).lower() for value in values]
    if not pa.types.is_floating(kind):
        raise UserError(f"column {name!r} of {path} holds {kind}; expected classes: texts or whole numbers")
    # pandas writes whole numbers with gaps as floats
    values = [None if value is None or np.isnan(value) else value for value in values]
    fraction = next((value for value in values if value is not None and not float(value).is_integer()), None)
    if fraction is not None:
        raise UserError(
            f"column {name!r} of {path} holds the number {fraction}; expected classes: texts or whole numbers"
        )
    return [None if value is None else int(value) for value in values]


def number_labels(
    values: list[str | int], path: str, column: str, label_names: list[str] | None, numbered: bool
) -> NumberedLabels:
    """Give each label its class number.

    Without `label_names` the classes are the values themselves, texts in alphabetical order, numbers in their own.
    With them each value is a name, or, if all are whole numbers and not all could be names, the number of a name.
    `numbered` says that whole numbers count the names even where all could be names. Raises `UserError` for a label
    without a class.
    """
    distinct = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    index: dict[str | int, int]
    if label_names is None:
        label_names, numbered = [str(value) for value in distinct], False
        index = {value: number for number, value in enumerate(distinct)}
    else:
        numbers = {name: number for number, name in enumerate(label_names)}
        index = {value: numbers[str(value)] for value in distinct if str(value) in numbers}
        numbered = all(isinstance(value, int) for value in distinct) and (numbered or len(index) < len(distinct))
        if numbered:
            index = {number: number for number in range(len(label_names))}
    unknown = [value for value in distinct if value not in index]
    if unknown:
        shown = ", ".join(label_names[:SHOWN_LABELS]) + " ..." * (len(label_names) > SHOWN_LABELS)
        raise UserError(
            f"column {column!r} of {path} has the label {unknown[0]!r}; expected one of {shown}; "
            "remove those rows or train with data that has this label"
        )
    return NumberedLabels(label_names, np.array([index[value] for value in values], np.int64), numbered)


def label_shares(labels: np.ndarray, label_names: list[str]) -> dict[str, float]:
    """Return the class distribution: each label's share of the rows."""
    counts = np.bincount(labels, minlength=len(label_names))
    return {name: float(count) / max(1, len(labels)) for name, count in zip(label_names, counts, strict=True)}
