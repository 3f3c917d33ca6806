"""Read texts with someone's answers: the column `probabilities`, or labels."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from sentiment_core.data import labelled
from sentiment_core.data.column_search import find_file_with
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import LabelScheme, parse_mapping, shorten
from sentiment_core.data.origin import DataOrigin, DroppedRows
from sentiment_core.data.readers import Columns, MissingColumn
from sentiment_core.distillation.settings import DistillSettings, NothingToLearn
from sentiment_core.errors import UserError

PROBABILITIES = "probabilities"  # name of the column
SUM_TOLERANCE = 0.01  # people and programs round probabilities


def read_answers(settings: DistillSettings) -> LabelledTexts:
    """Read the texts and answers of `--texts`. Raises `UserError`."""
    columns = settings.columns
    wanted = Columns(columns.texts, PROBABILITIES, columns.csv_separator, columns.csv_encoding)
    read: list[str] = []
    try:
        return _read_probabilities(settings, wanted, read)
    except MissingColumn as missing:
        if missing.column != PROBABILITIES:
            raise
    with_probabilities = read[0] if read else find_file_with(wanted, settings.texts)
    if with_probabilities:
        raise UserError(
            f"--texts {settings.texts} has files with the column {PROBABILITIES!r}, such as {with_probabilities}, and "
            "files without it; expected it in all or none. Distill from one kind of them, or add the column."
        )
    try:
        scheme = LabelScheme(list(settings.label_names) or None, True, mapping=parse_mapping(settings.label_map))
        return labelled.read(settings.texts, columns, scheme)
    except MissingColumn as missing:
        raise UserError(
            f"--texts {settings.texts} has no answers: a file has neither the column {PROBABILITIES!r} nor "
            f"{settings.label_column!r}; it has {', '.join(missing.names)}. Give --teacher, or texts with answers."
        ) from None


def _read_probabilities(settings: DistillSettings, wanted: Columns, read: list[str]) -> LabelledTexts:
    """Read texts with probabilities; those without are counted and left out.

    Args:
        settings: The request.
        wanted: The columns.
        read: Gets the paths of the files that were read.

    Raises:
        UserError: A file lacks a column, or has other things in it.
    """
    texts: list[str | None] = []
    is_null: list[bool] = []
    parts: list[tuple[str, list[str], np.ndarray]] = []
    mapping = parse_mapping(settings.label_map)
    for path, table, own_texts in labelled.read_tables(settings.texts, wanted):
        read.append(path)
        column = table[PROBABILITIES].combine_chunks()
        names, values = _read_column(path, column, settings.label_names, mapping)
        texts += own_texts
        parts.append((path, names, values))
        is_null += column.is_null().to_pylist()
    # without --label-names in alphabetical order, as labels of rows are numbered
    label_names = list(settings.label_names) or sorted({name for _, names, _ in parts for name in names})
    if len(label_names) < 2:
        raise UserError(
            f"column {PROBABILITIES!r} of {settings.texts} has the labels {', '.join(label_names) or 'none'}; expected "
            "two or more"
        )
    probabilities = np.concatenate([_order(values, names, label_names) for _, names, values in parts])
    probabilities[np.array(is_null, bool)] = np.nan
    _check_sums([(path, len(values)) for path, _, values in parts], probabilities)
    has_answer = ~np.isnan(probabilities).any(axis=1)
    rows = [i for i, text in enumerate(texts) if text is not None and has_answer[i]]
    if not rows:
        raise NothingToLearn(settings)
    without_text = sum(text is None for text in texts)
    dropped = DroppedRows(without_text, len(texts) - without_text - len(rows))
    return LabelledTexts(
        [texts[i] or "" for i in rows],
        probabilities[rows].argmax(axis=1),
        label_names,
        DataOrigin(settings.texts, files=len(parts), rows=len(rows), dropped=dropped),
        soft_labels=probabilities[rows],
    )


def _read_column(
    path: str, column: pa.Array, label_names: Sequence[str], mapping: Mapping[str, str]
) -> tuple[list[str], np.ndarray]:
    """Return the labels of a file and their probabilities, (n, labels) float32; 0 in rows without an answer.

    A label that a row's mapping lacks has the probability 0. `mapping` says by which names labels are learned; those
    of the same name are added up. Raises `UserError`.
    """
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if pa.types.is_null(kind):
        return [], np.zeros((len(column), 0), np.float32)
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
    own_names = list(dict.fromkeys(name for row in rows if row is not None for name in row))
    names = list(dict.fromkeys(mapping.get(name, name) for name in own_names))
    unknown = [name for name in names if label_names and name not in label_names]
    if unknown:
        raise UserError(
            f"column {PROBABILITIES!r} of {path} has the label {unknown[0]!r}; expected one of --label-names: "
            f"{shorten(list(label_names))}"
        )
    try:
        cells = [[(row or {}).get(name) or 0.0 for name in own_names] for row in rows]
        own_values = np.array(cells, np.float32).reshape(len(rows), len(own_names))
    except (TypeError, ValueError):
        raise UserError(f"column {PROBABILITIES!r} of {path} holds {kind}; expected numbers for the labels") from None
    values = np.zeros((len(rows), len(names)), np.float32)
    for name, of_label in zip(own_names, own_values.T, strict=True):
        values[:, names.index(mapping.get(name, name))] += of_label
    return names, values


def _order(values: np.ndarray, names: Sequence[str], label_names: Sequence[str]) -> np.ndarray:
    """Return the probabilities in the order of `label_names`; labels that a file lacks have 0."""
    ordered = np.zeros((len(values), len(label_names)), np.float32)
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
