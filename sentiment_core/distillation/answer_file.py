"""Read texts with someone's answers: the column `probabilities`, or labels."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import LabelScheme, parse_mapping, shorten
from sentiment_core.data.origin import DataOrigin, DroppedRows
from sentiment_core.data.readers import Columns, MissingColumn
from sentiment_core.distillation.settings import DistillSettings
from sentiment_core.errors import UserError

PROBABILITIES = "probabilities"  # name of the column
SUM_TOLERANCE = 0.01  # people and programs round probabilities


def read_answers(settings: DistillSettings) -> LabelledTexts:
    """Read the texts and answers of `--texts`. Raises `UserError`."""
    columns = settings.columns
    try:
        return _read_probabilities(settings, columns)
    except MissingColumn as missing:
        if missing.column != PROBABILITIES:
            raise
    try:
        scheme = LabelScheme(list(settings.label_names) or None, True, mapping=parse_mapping(settings.label_map))
        return labelled.read(settings.texts, columns, scheme)
    except MissingColumn as missing:
        raise UserError(
            f"--texts {settings.texts} has no answers: a file has neither the column {PROBABILITIES!r} nor "
            f"{settings.label_column!r}; it has {', '.join(missing.names)}. Give --teacher, or texts with answers."
        ) from None


def describe_no_text(settings: DistillSettings) -> str:
    """Return the sentence about texts that hold none."""
    columns = ", ".join(map(repr, settings.text_column))
    return f"--texts {settings.texts} has no row with text and an answer in {columns}. Give texts to learn from."


def _read_probabilities(settings: DistillSettings, columns: Columns) -> LabelledTexts:
    """Read texts with probabilities; those without are counted and left out."""
    wanted = Columns(columns.texts, PROBABILITIES, columns.csv_separator, columns.csv_encoding)
    texts: list[str | None] = []
    parts: list[tuple[str, list[str], np.ndarray]] = []
    for path, table, own_texts in labelled.read_tables(settings.texts, wanted):
        names, values = _read_column(path, table[PROBABILITIES].combine_chunks(), settings.label_names)
        texts += own_texts
        parts.append((path, names, values))
    label_names = list(settings.label_names) or list(dict.fromkeys(name for _, names, _ in parts for name in names))
    if len(label_names) < 2:
        raise UserError(
            f"column {PROBABILITIES!r} of {settings.texts} has the labels {', '.join(label_names) or 'none'}; expected "
            "two or more"
        )
    probabilities = np.concatenate([_order(values, names, label_names) for _, names, values in parts])
    _check_sums([(path, len(values)) for path, _, values in parts], probabilities)
    has_answer = ~np.isnan(probabilities).any(axis=1)
    rows = [i for i, text in enumerate(texts) if text is not None and has_answer[i]]
    if not rows:
        raise UserError(describe_no_text(settings))
    without_text = sum(text is None for text in texts)
    dropped = DroppedRows(without_text, len(texts) - without_text - len(rows))
    return LabelledTexts(
        [texts[i] or "" for i in rows],
        probabilities[rows].argmax(axis=1),
        label_names,
        DataOrigin(settings.texts, files=len(parts), rows=len(rows), dropped=dropped),
        soft_labels=probabilities[rows],
    )


def _read_column(path: str, column: pa.Array, label_names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the labels of a file and their probabilities, (n, labels) float32; NaN in rows without an answer.

    A label that a row's mapping lacks has the probability 0. Raises `UserError`.
    """
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not (is_list or pa.types.is_struct(kind) or pa.types.is_map(kind)):
        raise UserError(
            f"column {PROBABILITIES!r} of {path} holds {kind}; expected a mapping from labels to numbers, or a list of "
            "numbers with --label-names"
        )
    if is_list and not label_names:
        raise UserError(
            f"column {PROBABILITIES!r} of {path} has lists, which do not say whose probabilities they are. Name their "
            "labels in order: --label-names A,B,..."
        )
    rows = [dict(row) if pa.types.is_map(kind) and row is not None else row for row in column.to_pylist()]
    if is_list:
        wrong = next((row for row in rows if row is not None and len(row) != len(label_names)), None)
        if wrong is not None:
            raise UserError(
                f"column {PROBABILITIES!r} of {path} has a list of {len(wrong)}; expected {len(label_names)} numbers, "
                "one for each of --label-names"
            )
        rows = [row if row is None else dict(zip(label_names, row, strict=True)) for row in rows]
    names = list(dict.fromkeys(name for row in rows if row is not None for name in row))
    unknown = [name for name in names if label_names and name not in label_names]
    if unknown:
        raise UserError(
            f"column {PROBABILITIES!r} of {path} has the label {unknown[0]!r}; expected one of --label-names: "
            f"{shorten(list(label_names))}"
        )
    try:
        cells = [[np.nan] * len(names) if row is None else [row.get(name) or 0.0 for name in names] for row in rows]
        return names, np.array(cells, np.float32).reshape(len(rows), len(names))
    except (TypeError, ValueError):
        raise UserError(f"column {PROBABILITIES!r} of {path} holds {kind}; expected numbers for the labels") from None


def _order(values: np.ndarray, names: Sequence[str], label_names: Sequence[str]) -> np.ndarray:
    """Return the probabilities in the order of `label_names`; labels that a file lacks have 0."""
    ordered = np.zeros((len(values), len(label_names)), np.float32)
    ordered[np.isnan(values).any(axis=1)] = np.nan
    ordered[:, [label_names.index(name) for name in names]] = values
    return ordered


def _check_sums(files: Sequence[tuple[str, int]], probabilities: np.ndarray) -> None:
    """Refuse rows whose numbers are not the probabilities of exactly one label. Raises `UserError`."""
    sums = probabilities.sum(axis=1)
    with np.errstate(invalid="ignore"):
        is_wrong = (np.abs(sums - 1) > SUM_TOLERANCE) | (probabilities < 0).any(axis=1)
    wrong = np.flatnonzero(is_wrong)
    if not len(wrong):
        return
    starts = np.cumsum([0, *(rows for _, rows in files)])
    file = int(np.searchsorted(starts, wrong[0], side="right")) - 1
    path, row = files[file][0], int(wrong[0] - starts[file])
    raise UserError(
        f"column {PROBABILITIES!r} of {path} has numbers in row {row + 1} that sum to {sums[wrong[0]]:.3g}, the least "
        f"{probabilities[wrong[0]].min():.3g}; expected probabilities of one label a row, which sum to 1"
    )
