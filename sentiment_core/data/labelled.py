"""Read labelled text from files or the Hugging Face hub, and split it.

A file format is one reader function and one line in `READERS`. `hub` fetches data sets, `labels` numbers the classes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from sklearn.model_selection import train_test_split

from sentiment_core.data import files, hub, labels
from sentiment_core.data.origin import DataOrigin, DroppedRows
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import UNREADABLE
from sentiment_core.text.arrow import is_text, to_texts

BLOCK_BYTES = 64 << 20  # read at once from CSV and JSON Lines: no row may be longer


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the numbers of their labels.

    Rows that cannot be used are left out and counted.
    """

    texts: list[str]
    labels: np.ndarray  # (n,) int64, indices into label_names
    label_names: list[str]
    origin: DataOrigin = field(default_factory=DataOrigin)

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> "LabelledTexts":
        """Select rows."""
        return LabelledTexts([self.texts[i] for i in rows], self.labels[rows], self.label_names, self.origin)

    def fingerprint(self) -> str:
        """Return the sha256 over texts and label names, in order."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            content = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:%s:%d," % (len(content), content, label))
        digest.update(json.dumps(self.label_names).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Columns:
    """The columns to read: text and label."""

    text: str
    label: str

    @property
    def names(self) -> list[str]:
        """The columns' names; one if both are the same."""
        return list(dict.fromkeys([self.text, self.label]))

    def check(self, present: list[str], path: str) -> None:
        """Refuse data that lacks one of the columns or has it twice. Raises `UserError`."""
        for column, flag in zip(self.names, ("--text-column", "--label-column"), strict=False):
            if column not in present:
                raise UserError(f"{path} has no column {column!r}; it has {', '.join(present)}; choose with {flag}")
            if present.count(column) > 1:
                raise UserError(
                    f"{path} has {present.count(column)} columns {column!r}; expected one; rename the others"
                )


def read_parquet(stream: pa.NativeFile, path: str, columns: Columns) -> pa.Table:
    """Read the columns of a Parquet file."""
    file = pq.ParquetFile(stream)
    columns.check(file.schema_arrow.names, path)
    return file.read(columns=columns.names)


def read_csv(stream: pa.NativeFile, path: str, columns: Columns) -> pa.Table:
    """Read the columns of a CSV file with a header; quotes may hold line breaks."""
    table = pa.csv.read_csv(
        stream,
        pa.csv.ReadOptions(block_size=BLOCK_BYTES),
        pa.csv.ParseOptions(newlines_in_values=True),
        pa.csv.ConvertOptions(column_types={columns.text: pa.string()}, strings_can_be_null=True, null_values=[""]),
    )
    columns.check(table.column_names, path)
    return table.select(columns.names)


def read_json_lines(stream: pa.NativeFile, path: str, columns: Columns) -> pa.Table:
    """Read the columns of a file with one JSON object a line."""
    parse = pa.json.ParseOptions(newlines_in_values=False)
    table = pa.json.read_json(stream, pa.json.ReadOptions(block_size=BLOCK_BYTES), parse)
    columns.check(table.column_names, path)
    return table.select(columns.names)


# A reader takes the open file, its path for messages, and the columns, and returns a table of just these columns. It
# calls `columns.check`. For a damaged file it raises one of `failures.UNREADABLE`, whatever its library raises;
# where its library is missing, a `UserError` that names the extra of `pyproject.toml`.
READERS: dict[str, Callable[[pa.NativeFile, str, Columns], pa.Table]] = {
    ".parquet": read_parquet,
    ".pq": read_parquet,
    ".parq": read_parquet,
    ".csv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_lines,
}
SUFFIXES = tuple(READERS)


def read(
    path: str, text_column: str, label_column: str, label_names: list[str] | None = None, numbered: bool = False
) -> LabelledTexts:
    """Read labelled text from a file, folder, glob, URI or hub data set.

    A hub data set is `owner/name[:config][:split]`, the split `train` unless named. String labels are numbered in
    alphabetical order, whole numbers in their own. `label_names` (of a trained model, or the user's names for the
    numbers 0, 1, ...) fixes the classes instead, and another label is refused. Whole numbers that could all be names
    are taken as names, unless `numbered` says that they count the names; the `origin` of data read before tells.
    Raises `UserError`.
    """
    table, class_names, origin = _read_table(path, Columns(text_column, label_column))
    texts = _read_texts(table[text_column], path, text_column)
    values = labels.read_labels(table[label_column], path, label_column)
    if class_names:  # hub data marks unlabelled rows with -1
        values = [v if isinstance(v, int) and 0 <= v < len(class_names) else None for v in values]
        if label_names and len(label_names) == len(class_names) and not set(class_names) <= set(label_names):
            numbered = True  # the same classes by other names
        else:
            values = [None if v is None else class_names[v] for v in values]  # type: ignore[index]
    has_text = np.array([text is not None and not text.isspace() and text != "" for text in texts], bool)
    has_label = np.array([value is not None for value in values], bool)
    rows = np.flatnonzero(has_text & has_label)
    dropped = DroppedRows(int((~has_text).sum()), int((has_text & ~has_label).sum()))
    if not len(rows):
        raise UserError(
            f"{path} has no row with both a text in {text_column!r} and a label in {label_column!r} "
            f"({len(texts)} rows, {dropped.without_text} without text); expected labelled rows"
        )
    numbers = labels.number_labels(
        [value for i in rows if (value := values[i]) is not None], path, label_column, label_names, numbered
    )
    origin = replace(origin, rows=len(rows), dropped=dropped, numbered=numbers.numbered)
    return LabelledTexts([texts[i] or "" for i in rows], numbers.labels, numbers.label_names, origin)


def split(data: LabelledTexts, fraction: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Split into a training and an evaluation part, each label in proportion.

    The evaluation part holds `fraction` of the distinct texts. All rows of a text are in the same part: one that was
    trained on would prove nothing. Raises `UserError` for too few rows.
    """
    numbers: dict[str, int] = {}
    text_numbers = np.array([numbers.setdefault(text, len(numbers)) for text in data.texts])
    text_labels = data.labels[np.unique(text_numbers, return_index=True)[1]]  # of each text's first row
    counts = Counter(text_labels.tolist())
    rare = [data.label_names[label] for label, count in counts.items() if count < 2]
    classes, held_out = len(counts), round(fraction * len(text_labels))
    if rare or held_out < classes or len(text_labels) - held_out < classes:
        reason = f"label {rare[0]!r} has only one row" if rare else f"{len(text_labels)} rows are too few"
        reason += " (of distinct texts)" * (len(text_labels) < len(data))
        raise UserError(
            f"the data cannot be split into a training and an evaluation part: {reason}; add rows or give --eval-data"
        )
    training, evaluation = train_test_split(
        np.arange(len(text_labels)), test_size=held_out, stratify=text_labels, random_state=seed
    )
    training_rows, evaluation_rows = (np.flatnonzero(np.isin(text_numbers, part)) for part in (training, evaluation))
    return data.take(training_rows), data.take(evaluation_rows)


def _read_table(path: str, columns: Columns) -> tuple[pa.Table, list[str] | None, DataOrigin]:
    """Read the columns, the names of numbered labels if any, and the origin."""
    looks_like_file = "://" in path or path.lower().endswith(SUFFIXES) or path.startswith((".", "/", "~"))
    if not looks_like_file and not files.is_glob(path) and not storage.exists(path):
        if not hub.is_hub_name(path):
            raise UserError(f"{path} is neither a local file or folder nor the name of a hub data set")
        data = hub.fetch(path)
        columns.check(data.column_names, path)
        origin = DataOrigin(path, revision=data.revision)
        return data.read(columns.names), data.class_names(columns.label), origin
    root, stamps = files.find_files(path, SUFFIXES)
    tables, class_names = [], None
    for stamp in stamps:
        table = _read_file(storage.join(root, stamp.path), columns)
        class_names = class_names or hub.class_names_in(table.schema, columns.label)
        tables.append(table.replace_schema_metadata(None))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(f"the files of {path} do not fit together: {error}; give each column one type") from None
    return table, class_names, DataOrigin(path, files=len(stamps))


def _read_file(path: str, columns: Columns) -> pa.Table:
    filesystem, inner_path = storage.locate(path)
    suffix = next((suffix for suffix in READERS if inner_path.lower().endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path} has an unknown suffix; expected one of {', '.join(SUFFIXES)}")
    try:
        with filesystem.open_input_file(inner_path) as stream:
            return READERS[suffix](stream, path, columns)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as {suffix[1:]}: {reason}; repair it or leave it out") from None


def _read_texts(column: pa.ChunkedArray, path: str, name: str) -> list[str | None]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(kind):
        raise UserError(f"column {name!r} of {path} holds {kind}; expected text; choose with --text-column")
    return [text for chunk in column.chunks for text in to_texts(chunk)]
