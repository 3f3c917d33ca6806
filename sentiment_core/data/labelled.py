"""Read labelled text from files or the Hugging Face hub.

`readers` knows the file formats, `hub` fetches data sets, `labels` numbers the classes, `splits` divides the rows.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from sentiment_core.data import files, hub, labels, unit_reader
from sentiment_core.data.labels import SHOWN_LABELS, FileLabels, LabelScheme, NumberedLabels
from sentiment_core.data.origin import DataOrigin, DroppedRows
from sentiment_core.data.partitions import partition_values
from sentiment_core.data.readers import COMPRESSIONS, READERS, SAMPLE_KEY, SUFFIXES, Columns
from sentiment_core.data.snapshot import Snapshot
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import UNREADABLE, describe_error
from sentiment_core.text.arrow import REPLACEMENT, is_text, join_texts


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the numbers of their labels.

    Rows that cannot be used are left out and counted.
    """

    texts: list[str]
    labels: np.ndarray  # (n,) int64, indices into label_names; or (n, labels) bool, whether a row has each label
    label_names: list[str]
    origin: DataOrigin = field(default_factory=DataOrigin)
    groups: list[str] = field(default_factory=list)  # of each row, if `Columns.group` names a column
    positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # (n,) int64, among all rows read
    file_rows: list[tuple[str, int]] = field(default_factory=list)  # paths of the files, and how many rows each has
    samples: list[str] = field(default_factory=list)  # paths of the files that `sentiment-core sample` wrote
    soft_labels: np.ndarray | None = None  # (n, classes) float32: a teacher's probabilities, to learn instead of labels

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def targets(self) -> np.ndarray:
        """The labels to learn: `soft_labels` if there are any, else `labels`."""
        return self.labels if self.soft_labels is None else self.soft_labels

    @property
    def scheme(self) -> LabelScheme:
        """The scheme by which further data meets the same classes."""
        return LabelScheme(
            self.label_names, numbered=self.origin.numbered, mapping=self.origin.label_map, several=self.several
        )

    @property
    def several(self) -> bool:
        """True if a row may have several labels, or none."""
        return self.labels.ndim == 2

    def take(self, rows: np.ndarray) -> "LabelledTexts":
        """Select rows."""
        texts, groups = ([values[i] for i in rows] if values else [] for values in (self.texts, self.groups))
        positions = self.positions[rows] if len(self.positions) else self.positions
        soft_labels = None if self.soft_labels is None else self.soft_labels[rows]
        return replace(
            self, texts=texts, labels=self.labels[rows], groups=groups, positions=positions, soft_labels=soft_labels
        )

    def locate(self, row: int) -> tuple[str, int]:
        """Return the file of a row, and the row's number there from 0 on."""
        number = int(self.positions[row])
        file = int(np.searchsorted(self._file_ends, number, side="right"))
        path, rows = self.file_rows[file]
        return path, number - int(self._file_ends[file]) + rows

    @cached_property
    def _file_ends(self) -> np.ndarray:
        """(files,) int64: how many rows each file and those before it have."""
        return np.cumsum([rows for _, rows in self.file_rows], dtype=np.int64)

    def fingerprint(self) -> str:
        """Return the sha256 over texts, labels and label names, in order."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            content = text.encode("utf-8", "surrogatepass")
            numbers = "+".join(map(str, np.flatnonzero(label))) if self.several else str(label)
            digest.update(b"%d:%s:%s," % (len(content), content, numbers.encode()))
        digest.update(json.dumps(self.label_names).encode())
        if self.soft_labels is not None:
            digest.update(self.soft_labels.tobytes())
        return digest.hexdigest()


def read(path: str, columns: Columns = Columns(), scheme: LabelScheme = LabelScheme()) -> LabelledTexts:  # noqa: B008 (frozen)
    """Read labelled text from a file, folder, glob, URI or hub data set.

    A hub data set is `owner/name[:config][:split]`, the split `train` unless named. `scheme` says which classes there
    are; see `labels.number_labels`. The `origin` of the data tells how labels and classes met. Raises `UserError`.
    """
    tables, origin = _read_files(path, columns)
    files_read = [_take_columns(file, columns) for file in tables]
    texts = [text for file in files_read for text in file.texts]
    numbers = labels.number_labels([file.labels for file in files_read], path, columns.label, scheme)
    has_text = np.array([_is_usable(text) for text in texts], bool)
    rows = np.flatnonzero(has_text & numbers.is_labelled)
    dropped = DroppedRows(int((~has_text).sum()), int((has_text & ~numbers.is_labelled).sum()))
    if not len(rows):
        text_columns = ", ".join(map(repr, columns.texts))
        raise UserError(
            f"{path} has no row with both a text in {text_columns} and a label in {columns.label!r} "
            f"({len(texts)} rows, {dropped.without_text} without text); expected labelled rows"
        )
    chosen = [texts[i] or "" for i in rows]
    remarks = [*origin.remarks, *_describe_replaced(chosen), *_describe_numbers(numbers, scheme)]
    remarks += _describe_unreached(files_read)
    origin = replace(
        origin,
        rows=len(rows),
        dropped=dropped,
        numbered=numbers.numbered,
        label_map=numbers.mapping,
        remarks=remarks,
    )
    groups = [group for file in files_read for group in file.groups]
    chosen_groups = [groups[i] for i in rows] if groups else []
    file_rows = [(file.labels.path, len(file.texts)) for file in files_read]
    samples = [file.labels.path for file in files_read if file.is_sample]
    return LabelledTexts(
        chosen, numbers.labels[rows], numbers.label_names, origin, chosen_groups, rows, file_rows, samples
    )


def read_texts(path: str, columns: Columns) -> list[str]:
    """Read the texts of labelled data at a path, whether or not they have labels. Raises `UserError`."""
    files_read, _ = _read_files(path, replace(columns, label=columns.texts[0]))
    texts = (text for file in files_read for text in _join_texts(file.table, file.path, columns))
    return [text for text in texts if text is not None and _is_usable(text)]


def read_tables(path: str, columns: Columns) -> Iterator[tuple[str, pa.Table, list[str | None]]]:
    """Yield of each file at a path its path, the columns as they stand in it, and the joined texts of its rows.

    Texts that cannot be used are None. Raises `UserError`.
    """
    for file in _read_files(path, columns)[0]:
        texts = _join_texts(file.table, file.path, columns)
        yield file.path, file.table, [text if _is_usable(text) else None for text in texts]


def _is_usable(text: str | None) -> bool:
    return text is not None and text != "" and not text.isspace()


def _describe_replaced(texts: list[str]) -> list[str]:
    damaged = sum(REPLACEMENT in text for text in texts)
    return [f"{damaged:,} texts hold U+FFFD, which stands for bytes that are not UTF-8"] * (damaged > 0)


def _describe_unreached(files_read: Sequence["_LabelledFile"]) -> list[str]:
    """Say how many rows of samples nobody has labelled yet."""
    samples = [file for file in files_read if file.is_sample]
    cells = [
        cell for file in samples for cell, text in zip(file.labels.cells, file.texts, strict=True) if _is_usable(text)
    ]
    unreached = sum(cell is None for cell in cells)
    return [f"{unreached:,} of {len(cells):,} rows of samples have no label yet and were left out"] * (unreached > 0)


def _describe_numbers(numbers: NumberedLabels, scheme: LabelScheme) -> list[str]:
    """Say that numbers were taken for the classes of a trained model by their order."""
    if scheme.by_user or not (numbers.numbered or (scheme.numbered and numbers.mapping and not scheme.mapping)):
        return []
    if numbers.numbered and scheme.numbered:
        return []
    return [f"the labels 0, 1, ... of the data are taken for {', '.join(numbers.label_names[:SHOWN_LABELS])}"]


def find_frequent_labels(data: LabelledTexts, min_rows: int) -> list[str]:
    """Return the labels that have at least `min_rows` rows, or none at all. Raises `UserError` if none has so many."""
    counts = labels.count_labels(data.labels, len(data.label_names))
    if min_rows > counts.max(initial=1):
        raise UserError(
            f"--min-label-rows is {min_rows}; no label has so many rows: the most frequent has {counts.max(initial=0)}"
        )
    return [name for name, count in zip(data.label_names, counts, strict=True) if not 0 < count < min_rows]


def restrict_labels(data: LabelledTexts, names: list[str]) -> LabelledTexts:
    """Leave out all labels but these, and say which.

    Where a row has one label, the rows of the others are left out too; where it may have several, only these labels.
    Numbers that counted the labels are noted by their names, so that they still mean the same.
    """
    left_out = [name for name in data.label_names if name not in names]
    if not left_out:
        return data
    columns = [data.label_names.index(name) for name in names]
    if data.several:
        rows, labels_of_rows = np.arange(len(data)), data.labels[:, columns]
    else:
        rows = np.flatnonzero(np.isin(data.labels, columns))
        numbers = {name: number for number, name in enumerate(names)}
        labels_of_rows = np.array([numbers[data.label_names[i]] for i in data.labels[rows]], np.int64)
    rows_left_out = "" if data.several else f" ({len(data) - len(rows):,} rows)"
    remark = f"left out, with fewer rows than --min-label-rows: {', '.join(left_out[:SHOWN_LABELS])}{rows_left_out}"
    counted = {str(number): name for number, name in enumerate(data.label_names)} if data.origin.numbered else {}
    origin = replace(
        data.origin,
        rows=len(rows),
        numbered=False,
        label_map=data.origin.label_map | counted,
        remarks=[*data.origin.remarks, remark],
    )
    return replace(data.take(rows), labels=labels_of_rows, label_names=names, origin=origin)


@dataclass(frozen=True)
class _FileTable:
    """The columns of one file, as they stand in it."""

    table: pa.Table
    path: str
    folder: dict[str, str | None] = field(default_factory=dict)  # values of its partition folders, by key
    declared: list[str] | None = None  # names that the file gives the numbers 0, 1, ...


@dataclass(frozen=True)
class _LabelledFile:
    """The rows of one file, also of those that cannot be used."""

    texts: list[str | None]
    labels: FileLabels
    groups: list[str]
    is_sample: bool  # `sentiment-core sample` wrote the file


def _read_files(path: str, columns: Columns) -> tuple[Iterator[_FileTable], DataOrigin]:
    """Read the columns of all files at a path, each with its own types and names of labels."""
    looks_like_file = "://" in path or path.lower().endswith(SUFFIXES) or path.startswith((".", "/", "~"))
    if not looks_like_file and not files.is_glob(path) and not storage.exists(path):
        if not hub.is_hub_name(path):
            raise UserError(f"{path} is neither a local file or folder nor the name of a hub data set")
        data = hub.fetch(path)
        columns.present(data.column_names, path)
        table, declared = data.read(columns.names), data.class_names(columns.label)
        return iter([_FileTable(table, path, declared=declared)]), DataOrigin(path, revision=data.revision)
    data_files = files.find_files(path, SUFFIXES)
    if data_files.table:
        table_origin = DataOrigin(path, files=len(data_files.table.files), version=data_files.table.version)
        return _read_table(data_files.table, path, columns), table_origin
    _check_not_twice(path, [stamp.path for stamp in data_files.stamps])
    read = (_read_file(data_files.root, stamp.path, columns) for stamp in data_files.stamps)
    remarks = [f"{path}: {line}" for line in data_files.describe_unread()]
    return read, DataOrigin(path, files=len(data_files.stamps), remarks=remarks)


def _read_table(table: Snapshot, path: str, columns: Columns) -> Iterator[_FileTable]:
    """Read the columns of all data files of a table's version."""
    names = columns.present(table.columns.schema.names, path)
    for file in table.files:
        try:
            rows = unit_reader.read_table_file(table.root, file, names, table.columns)
        except UNREADABLE as error:
            raise UserError(f"{file.stamp.path} of {path} cannot be read: {describe_error(error)}") from None
        yield _FileTable(rows, path)


def _check_not_twice(path: str, names: list[str]) -> None:
    """Refuse a file beside its compressed copy. Raises `UserError`."""
    by_lower = {name.lower(): name for name in names}
    for lower, name in by_lower.items():
        original = next((by_lower.get(lower.removesuffix(end)) for end in COMPRESSIONS if lower.endswith(end)), None)
        if original:
            raise UserError(f"{path} holds {original} and {name}, the same file twice; remove one of them")


def _read_file(root: str, relative_path: str, columns: Columns) -> _FileTable:
    path = storage.join(root, relative_path)
    filesystem, inner_path = storage.locate(path)
    suffix = max((suffix for suffix in READERS if inner_path.lower().endswith(suffix)), key=len, default=None)
    if suffix is None:
        raise UserError(f"{path} has an unknown suffix; expected one of {', '.join(SUFFIXES)}")
    reader, compression = READERS[suffix]
    folder = partition_values(relative_path)
    try:
        with (
            filesystem.open_input_stream(inner_path, compression=compression)
            if compression
            else filesystem.open_input_file(inner_path)
        ) as stream:
            table = reader(stream, path, replace(columns, folder_keys=tuple(folder)))
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as {suffix[1:]}: {reason}; repair it or leave it out") from None
    return _FileTable(table, path, folder, hub.class_names_in(table.schema, columns.label))


def _join_texts(table: pa.Table, path: str, columns: Columns) -> list[str | None]:
    """Return the joined texts of a file's rows. Raises `UserError` for a column that holds no texts."""
    for name in columns.texts:
        if not is_text(kind := table.schema.field(name).type):
            raise UserError(f"column {name!r} of {path} holds {kind}; expected text; choose with --text-column")
    return [text for batch in table.select(list(columns.texts)).to_batches() for text in join_texts(batch.columns)]


def _take_columns(file: _FileTable, columns: Columns) -> _LabelledFile:
    """Return the texts and labels of a file's columns; a label that is none of them stands in the folder's name."""
    table, folder = file.table, file.folder
    texts = _join_texts(table, file.path, columns)
    if columns.label in table.column_names:
        file_labels = labels.read_file_labels(
            table[columns.label], file.path, columns.label, columns.label_separator, file.declared
        )
    else:
        cells = [labels.read_folder_label(folder[columns.label])] * len(texts)
        file_labels = FileLabels(file.path, cells, file.declared)
    groups: list[str] = []
    if columns.group:
        stands_in_file = columns.group in table.column_names
        values_of_rows = table[columns.group].to_pylist() if stands_in_file else [folder[columns.group]] * len(texts)
        groups = [str(value) for value in values_of_rows]
    usable_cells = [cell if _is_usable(text) else None for cell, text in zip(file_labels.cells, texts, strict=True)]
    is_sample = SAMPLE_KEY in (table.schema.metadata or {})
    return _LabelledFile(texts, replace(file_labels, cells=usable_cells), groups, is_sample)
