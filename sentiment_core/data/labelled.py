"""Labelled text: read from files or the Hugging Face hub, cleaned, split, its labels numbered."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from sklearn.model_selection import train_test_split

from sentiment_core.data import files
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import UNREADABLE
from sentiment_core.text.arrow import is_text, to_texts

SUFFIXES = (".parquet", ".pq", ".parq", ".csv", ".jsonl", ".ndjson", ".json")
BLOCK_BYTES = 64 << 20  # read at once from CSV and JSON Lines: no row may be longer
HUB_NAME = re.compile(r"^[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+){0,2}$")
SHOWN_LABELS = 10  # of a long list of labels in a message


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the number of their label in `label_names`; rows that cannot be used are gone and counted."""

    texts: list[str]
    labels: np.ndarray  # (n,) int64
    label_names: list[str]
    origin: dict = field(default_factory=dict)  # where it came from: files or hub revision, rows, dropped rows

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: np.ndarray) -> "LabelledTexts":
        return LabelledTexts([self.texts[i] for i in rows], self.labels[rows], self.label_names, self.origin)

    def fingerprint(self) -> str:
        """sha256 over texts and label names, in order."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            content = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d:%s:%d," % (len(content), content, label))
        digest.update(json.dumps(self.label_names).encode())
        return digest.hexdigest()


def read(
    place: str, text_column: str, label_column: str, label_names: list[str] | None = None, numbered: bool = False
) -> LabelledTexts:
    """Labelled text from a file, folder, glob, URI (Parquet, CSV, JSON Lines) or hub data set.

    A hub data set is `owner/name[:config][:split]`, the split `train` unless named. String labels are numbered in
    alphabetical order, whole numbers in their own; `label_names` (of a trained model, or the user's names for the
    numbers 0, 1, ...) fixes them instead, and another label is refused. Whole numbers that could all be names are,
    unless `numbered` says that they count the names; the `origin` of data read before tells. Raises `UserError`.
    """
    table, named, origin = _read_table(place, text_column, label_column)
    texts = _decode(table[text_column], place, text_column)
    values = _label_values(table[label_column], place, label_column)
    if named:  # hub data marks unlabelled rows with -1
        values = [v if isinstance(v, int) and 0 <= v < len(named) else None for v in values]
        if label_names and len(label_names) == len(named) and not set(named) <= set(label_names):
            numbered = True  # the same classes, called otherwise
        else:
            values = [None if v is None else named[v] for v in values]
    has_text = np.array([text is not None and not text.isspace() and text != "" for text in texts], bool)
    has_label = np.array([value is not None for value in values], bool)
    rows = np.flatnonzero(has_text & has_label)
    dropped = {"without_text": int((~has_text).sum()), "without_label": int((has_text & ~has_label).sum())}
    if not len(rows):
        raise UserError(
            f"{place} has no row with both a text in {text_column!r} and a label in {label_column!r} "
            f"({len(texts)} rows, {dropped['without_text']} without text); expected labelled rows"
        )
    names, labels, numbered = _number([values[i] for i in rows], place, label_column, label_names, numbered)
    origin |= {"rows": len(rows), "dropped": dropped, "numbered": numbered}
    return LabelledTexts([texts[i] or "" for i in rows], labels, names, origin)


def split(data: LabelledTexts, fraction: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """A training and an evaluation part, the latter `fraction` of the different texts, each label in proportion. All
    rows of a text are in the same part: one that was trained on would tell nothing."""
    number: dict[str, int] = {}
    texts = np.array([number.setdefault(text, len(number)) for text in data.texts])
    labels = data.labels[np.unique(texts, return_index=True)[1]]  # of each text's first row
    counts = Counter(labels.tolist())
    rare = [data.label_names[label] for label, count in counts.items() if count < 2]
    classes, held_out = len(counts), round(fraction * len(labels))
    if rare or held_out < classes or len(labels) - held_out < classes:
        reason = f"label {rare[0]!r} has only one row" if rare else f"{len(labels)} rows are too few"
        reason += " (of different texts)" * (len(labels) < len(data))
        raise UserError(
            f"the data cannot be split into a training and an evaluation part: {reason}; add rows or give --eval-data"
        )
    train, held = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=seed)
    return data.take(np.flatnonzero(np.isin(texts, train))), data.take(np.flatnonzero(np.isin(texts, held)))


def _read_table(place: str, text_column: str, label_column: str) -> tuple[pa.Table, list[str] | None, dict]:
    """The two columns, the names the data gives to numbered labels, and where it came from."""
    looks_like_file = "://" in place or place.lower().endswith(SUFFIXES) or place.startswith((".", "/", "~"))
    if not looks_like_file and not any(c in place for c in "*?[") and not storage.exists(place):
        if HUB_NAME.match(place):
            return _read_hub(place, text_column, label_column)
        raise UserError(f"{place} is neither a file or folder here nor the name of a hub data set")
    root, stamps = files.find_files(place, SUFFIXES)
    tables, names = [], None
    for stamp in stamps:
        table = _read_one(storage.join(root, stamp.path), text_column, label_column)
        names = names or _hub_names(table.schema, label_column)
        tables.append(table.replace_schema_metadata(None))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(f"the files of {place} do not fit together: {error}") from None
    return table, names, {"place": place, "files": len(stamps)}


def _read_one(place: str, text_column: str, label_column: str) -> pa.Table:
    filesystem, path = storage.locate(place)
    columns = list(dict.fromkeys([text_column, label_column]))
    kind = path.lower().rpartition(".")[2]
    try:
        with filesystem.open_input_file(path) as stream:
            if kind in ("parquet", "pq", "parq"):
                file = pq.ParquetFile(stream)
                _require(columns, file.schema_arrow.names, place)
                return file.read(columns=columns)
            if kind == "csv":
                options = pa.csv.ConvertOptions(
                    column_types={text_column: pa.string()}, strings_can_be_null=True, null_values=[""]
                )
                parse = pa.csv.ParseOptions(newlines_in_values=True)
                read = pa.csv.ReadOptions(block_size=BLOCK_BYTES)
                table = pa.csv.read_csv(stream, read_options=read, parse_options=parse, convert_options=options)
            elif kind in ("jsonl", "ndjson", "json"):
                parse = pa.json.ParseOptions(newlines_in_values=False)
                table = pa.json.read_json(stream, pa.json.ReadOptions(block_size=BLOCK_BYTES), parse)
            else:
                raise UserError(f"{place} is of no known kind; expected {', '.join(SUFFIXES)}")
            _require(columns, table.column_names, place)
            return table.select(columns)
    except UNREADABLE as error:
        raise UserError(f"{place} cannot be read as {kind}: {' '.join(str(error).split())}") from None


def _require(columns: list[str], present: list[str], place: str) -> None:
    for column, flag in zip(columns, ("--text-column", "--label-column"), strict=False):
        if column not in present:
            raise UserError(f"{place} has no column {column!r}; it has {', '.join(present)}; choose with {flag}")
        if present.count(column) > 1:
            raise UserError(f"{place} has {present.count(column)} columns {column!r}; expected one; rename the others")


def _read_hub(name: str, text_column: str, label_column: str) -> tuple[pa.Table, list[str] | None, dict]:
    import datasets
    from huggingface_hub import HfApi

    repo, *rest = name.split(":")
    config, part = rest if len(rest) == 2 else (None, rest[0] if rest else "train")
    try:
        revision = HfApi().dataset_info(repo, timeout=20).sha
        data = datasets.load_dataset(repo, config, split=part, revision=revision)
    except Exception as error:  # the hub's client raises dozens of kinds, all of them about this name or the network
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name} is no file or folder here and cannot be fetched as a hub data set: {reason}; "
            "check the name and the network, or give a local file"
        ) from None
    _require([text_column, label_column], data.column_names, name)
    data = data.select_columns(list(dict.fromkeys([text_column, label_column]))).with_format("arrow")
    table = data[:]
    return table, _hub_names(table.schema, label_column, data.features), {"place": name, "revision": revision}


def _hub_names(schema: pa.Schema, column: str, features: dict | None = None) -> list[str] | None:
    """The names of numbered labels: the `datasets` library leaves them in a Parquet file's metadata."""
    if features is not None:
        return getattr(features[column], "names", None)
    metadata = (schema.metadata or {}).get(b"huggingface")
    try:
        return json.loads(metadata)["info"]["features"][column].get("names") if metadata else None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None


def _decode(column: pa.ChunkedArray, place: str, name: str) -> list[str | None]:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(kind):
        raise UserError(f"column {name!r} of {place} holds {kind}; expected text; choose with --text-column")
    return [text for chunk in column.chunks for text in to_texts(chunk)]


def _label_values(column: pa.ChunkedArray, place: str, name: str) -> list:
    """Labels as texts or whole numbers, None where there is none."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    values = [v for chunk in column.chunks for v in (to_texts(chunk) if is_text(kind) else chunk.to_pylist())]
    if pa.types.is_floating(kind):  # whole numbers with gaps, as pandas writes them
        values = [None if v is None or np.isnan(v) else v for v in values]
        broken = next((v for v in values if v is not None and not float(v).is_integer()), None)
        if broken is not None:
            raise UserError(
                f"column {name!r} of {place} holds the number {broken}; expected classes: texts or whole numbers"
            )
        values = [None if v is None else int(v) for v in values]
    elif pa.types.is_boolean(kind):
        values = [None if v is None else str(v).lower() for v in values]
    elif is_text(kind):
        values = [None if v is None or not v.strip() else v for v in values]
    elif not pa.types.is_integer(kind):
        raise UserError(f"column {name!r} of {place} holds {kind}; expected classes: texts or whole numbers")
    return values


def _number(
    values: list, place: str, column: str, names: list[str] | None, numbered: bool
) -> tuple[list[str], np.ndarray, bool]:
    """Label names in order, each row's number among them, and whether the values were such numbers."""
    found = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    if names is None:
        names = [str(v) for v in found]
        index, numbered = {v: i for i, v in enumerate(found)}, False
    else:
        index = {name: i for i, name in enumerate(names)}
        named = {v: index[str(v)] for v in found if str(v) in index}
        numbered = all(isinstance(v, int) for v in found) and (numbered or len(named) < len(found))
        index = {number: number for number in range(len(names))} if numbered else named
    unknown = [v for v in found if v not in index]
    if unknown:
        raise UserError(
            f"column {column!r} of {place} has the label {unknown[0]!r}, which is none of "
            f"{', '.join(names[:SHOWN_LABELS])}{' ...' if len(names) > SHOWN_LABELS else ''}; "
            "remove those rows or train with data that has this label"
        )
    return names, np.array([index[v] for v in values], np.int64), numbered


def label_shares(labels: np.ndarray, names: list[str]) -> dict[str, float]:
    counts = np.bincount(labels, minlength=len(names))
    return {name: float(count) / max(1, len(labels)) for name, count in zip(names, counts, strict=True)}
