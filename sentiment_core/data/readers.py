"""Read the text and the label column of one labelled file, with a reader for each format.

A file format is one reader function and one line in `READERS`.
"""

import codecs
import contextlib
import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from sentiment_core.data import sample_columns
from sentiment_core.errors import UserError

BLOCK_BYTES = 64 << 20  # of CSV read at once: no row may be longer
HEADER_CHARACTERS = 1 << 20  # at most, of the first row of a CSV file
LEADING_ZERO = r"^\s*[-+]?0[0-9]"  # of a code, such as 0110
CSV_SEPARATORS = (",", ";", "\t", "|")
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
SAMPLE_KEY = b"sentiment_core.sample"  # in the metadata of a table that was read from a sample
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}  # endings that may follow those of text formats


class MissingColumn(UserError):
    """A file lacks one of the columns to read."""

    def __init__(self, message: str, column: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.column, self.names = column, list(names)  # of the file's columns


@dataclass(frozen=True)
class Columns:
    """The columns to read, and how CSV files write them."""

    texts: tuple[str, ...] = ("text",)  # columns, or fields of structs by their dotted paths, to be joined
    label: str = "label"
    csv_separator: str | None = None  # None: the one with which the first line has these columns
    csv_encoding: str | None = None  # None: by the byte-order mark, else UTF-8
    group: str | None = None  # column by whose values metrics are given
    folder_keys: tuple[str, ...] = ()  # of the file's partition folders: label and group may be among them
    label_separator: str | None = None  # between the labels of a text that holds several

    @property
    def separator(self) -> str | None:
        """The separator of CSV files, if the user gave one."""
        return "\t" if self.csv_separator in ("\\t", "tab") else self.csv_separator

    def __post_init__(self) -> None:
        """Check the names of the text columns and the separator. Raises `UserError`."""
        if len(set(self.texts)) < len(self.texts):
            raise UserError(f"--text-column is {','.join(self.texts)!r}; expected different names")
        if self.separator is not None and len(self.separator) != 1:
            raise UserError(f"--csv-separator is {self.csv_separator!r}; expected one character, or tab")
        if self.label_separator is not None and not self.label_separator.strip():
            raise UserError(f"--label-separator is {self.label_separator!r}; expected a character that labels lack")

    @property
    def flags(self) -> dict[str, str]:
        """The flag that chooses each column, by the column's name."""
        flags: dict[str, str] = {}
        texts = [(name, "--text-column") for name in self.texts]
        for name, flag in (*texts, (self.label, "--label-column"), (self.group, "--by")):
            if name is not None:
                flags.setdefault(name, flag)
        return flags

    @property
    def names(self) -> list[str]:
        """The columns' names, each once."""
        return list(self.flags)

    @property
    def in_file(self) -> list[str]:
        """Names of the columns that the file itself must have."""
        return [name for name in self.names if name in self.texts or name not in self.folder_keys]

    def present(self, names: Sequence[str], path: str) -> list[str]:
        """Return those of the columns that a file with these `names` has itself.

        Raises `UserError` for a file that lacks one, or has one twice.
        """
        for column, flag in self.flags.items():
            if column not in names and column in self.in_file:
                sentence = f"{path} has no column {column!r}; it has {', '.join(names)}; choose with {flag}"
                raise MissingColumn(sentence, column, names)
            if names.count(column) > 1:
                raise UserError(f"{path} has {names.count(column)} columns {column!r}; expected one; rename the others")
        return [column for column in self.names if column in names]


def read_parquet(stream: pa.NativeFile, path: str, columns: Columns) -> pa.Table:
    """Read the columns of a Parquet file. The table keeps the file's metadata."""
    file = pq.ParquetFile(stream)
    schema = file.schema_arrow
    fields = [name for name in columns.names if name not in schema.names and _has_field(schema, name.split("."))]
    names = columns.present([*schema.names, *fields], path)
    table = file.read(columns=names)
    taken = [
        pc.struct_field(table[name.split(".")[0]], name.split(".")[1:]) if name in fields else table[name]
        for name in names
    ]
    return pa.table(taken, names).replace_schema_metadata(schema.metadata)


def _has_field(schema: pa.Schema, parts: list[str]) -> bool:
    """Return whether a schema has the nested field of this path."""
    kind: Any = pa.struct(list(schema)) if len(set(schema.names)) == len(schema.names) else None
    for part in parts:
        if not (isinstance(kind, pa.StructType) and kind.get_field_index(part) >= 0):
            return False
        kind = kind.field(part).type
    return True


def read_csv(stream: pa.NativeFile, path: str, columns: Columns) -> pa.Table:
    """Read the columns of a CSV file with a header; quotes may hold line breaks."""
    csv_text = open_csv(stream.read(), path, columns.in_file, columns.separator, columns.csv_encoding)
    table = csv_text.read(columns.present(csv_text.header, path), columns.texts)
    if not csv_text.is_sample:
        return table
    for i, name in enumerate(table.column_names):
        if name in columns.texts:
            texts = [cell if cell is None else sample_columns.unescape(cell) for cell in table[name].to_pylist()]
            table = table.set_column(i, name, pa.array(texts, pa.string()))
        elif name == columns.label and pa.types.is_string(table[name].type):  # as people type them
            table = table.set_column(i, name, pc.utf8_trim_whitespace(table[name]))
    return table.replace_schema_metadata({SAMPLE_KEY: b""})


@dataclass(frozen=True)
class CsvText:
    """The decoded content of a CSV file."""

    text: str
    separator: str
    header: list[str]  # names of its columns

    @property
    def is_sample(self) -> bool:
        """True if `sentiment-core sample` wrote the file."""
        return sample_columns.is_sample(self.header, self.text[:HEADER_CHARACTERS])

    def read(self, names: Sequence[str], texts: Sequence[str]) -> pa.Table:
        """Read the columns of these names, those of `texts` as texts. An empty cell is null; empty lines are no rows.

        Arrow recognizes numbers, truth values and the like in other columns. One with a code such as 0110 stays text,
        since Arrow would read 110; so does one that it cannot read.

        Raises one of `failures.UNREADABLE`.
        """
        table = self._parse(names, names)
        for i, name in enumerate(names):
            if name not in texts and not pc.any(pc.match_substring_regex(table[name], LEADING_ZERO)).as_py():
                with contextlib.suppress(pa.ArrowInvalid):  # its first block decides the type
                    table = table.set_column(i, name, self._parse([name], [])[name])
        return table

    def _parse(self, names: Sequence[str], texts: Sequence[str]) -> pa.Table:
        return pa.csv.read_csv(
            pa.BufferReader(self.text.encode()),
            pa.csv.ReadOptions(block_size=BLOCK_BYTES),
            pa.csv.ParseOptions(delimiter=self.separator, newlines_in_values=True),
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(texts, pa.string()),
                strings_can_be_null=True,
                null_values=[""],
                include_columns=list(names),
            ),
        )


def open_csv(
    content: bytes, path: str, needed: Sequence[str], separator: str | None = None, encoding: str | None = None
) -> CsvText:
    """Decode a CSV file and find its separator.

    Args:
        content: Of the file.
        path: Of the file, for its suffix.
        needed: Names of columns; the separator is the first with which the header has most of them.
        separator: One character; None: it is to be found.
        encoding: Name of the encoding; None: by the byte-order mark, else UTF-8, or cp1252 for a sample that is not.

    Raises:
        OSError: The file is empty.
        UserError: There is no such encoding.
    """
    text = _decode(content, encoding or _find_encoding(content)).lstrip("\r\n")
    if not text.strip():
        raise OSError("it is empty")
    by_suffix = "\t" if ".tsv" in path.lower() else ","
    separators = [separator] if separator else [by_suffix, *CSV_SEPARATORS]
    start = text[:HEADER_CHARACTERS]
    headers = {candidate: _read_header(start, candidate) for candidate in separators}
    chosen = max(separators, key=lambda candidate: len({*needed} & {*headers[candidate]}))
    return CsvText(text, chosen, headers[chosen])


def _find_encoding(content: bytes) -> str:
    """Return the encoding of a CSV file by its byte-order mark; of a sample also by what it holds."""
    for mark, name in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return name
    if sample_columns.ID.search(content[:HEADER_CHARACTERS].decode("ascii", "replace")):
        try:
            content.decode()
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8"


def _read_header(text: str, separator: str) -> list[str]:
    """Return the names in the first row of a CSV file; none if it cannot be parsed."""
    try:
        return next(csv.reader(io.StringIO(text), delimiter=separator), [])
    except csv.Error:
        return []


def _decode(content: bytes, encoding: str) -> str:
    """Decode bytes; those that mean nothing in this encoding become U+FFFD. Raises `UserError`."""
    try:
        return content.decode(encoding, "replace")
    except LookupError:
        raise UserError(f"--csv-encoding is {encoding!r}; expected the name of an encoding, such as cp1252") from None


def read_json(stream: pa.NativeFile, path: str, columns: Columns) -> pa.Table:
    """Read the columns of a file with one JSON object a line, or with one array of objects."""
    text = _decode(stream.read(), "utf-8-sig")
    if text.lstrip()[:1] == "[":
        rows = _parse_json(text, "it")
    else:
        rows = [_parse_json(line, f"line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise OSError(f"row {i} is no JSON object")
    values = {name: [_take(row, name) for row in rows] for name in columns.names}
    has_column = [name for name in columns.names if any(_has(row, name) for row in rows)]
    names = dict.fromkeys([*(name for row in rows[:100] for name in row), *has_column])
    return pa.table({name: _to_column(values[name], name) for name in columns.present(list(names), path)})


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OSError(f"{where} is no JSON: {error}") from None


def _has(row: dict[str, Any], name: str) -> bool:
    """Return whether a JSON object has a field of this name, or of this dotted path."""
    first, separator, rest = name.partition(".")
    return name in row or bool(separator and isinstance(row.get(first), dict) and _has(row[first], rest))


def _take(row: dict[str, Any], name: str) -> Any:
    """Return a JSON object's field by its name or dotted path; None if it has none."""
    first, separator, rest = name.partition(".")
    if name in row or not separator:
        return _replace_surrogates(row.get(name))
    return _take(row[first], rest) if isinstance(row.get(first), dict) else None


def _replace_surrogates(value: Any) -> Any:
    """Replace lone surrogates, which are not UTF-8, in a text or a list of texts."""
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    return value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if isinstance(value, str) else value


def _to_column(values: list[Any], name: str) -> pa.Array:
    """Make a column of JSON values; where texts stand beside numbers, all become texts."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        if any(isinstance(value, dict | list) for value in values):
            raise OSError(f"column {name!r} holds objects or lists beside other values") from None
        return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])


# A reader takes the open file, its path for messages, and the columns, and returns a table of just these columns: those
# that `columns.present` names. For a damaged file it raises one of `failures.UNREADABLE`, whatever its library raises;
# where its library is missing, a `UserError` that names the extra of `pyproject.toml`.
Reader = Callable[[pa.NativeFile, str, Columns], pa.Table]
PARQUET_READERS: dict[str, Reader] = {".parquet": read_parquet, ".pq": read_parquet, ".parq": read_parquet}
TEXT_READERS: dict[str, Reader] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
}
READERS: dict[str, tuple[Reader, str | None]] = {  # by suffix: the reader, and how the file is compressed
    **{suffix: (reader, None) for suffix, reader in (PARQUET_READERS | TEXT_READERS).items()},
    **{
        suffix + ending: (reader, compression)
        for suffix, reader in TEXT_READERS.items()
        for ending, compression in COMPRESSIONS.items()
    },
}
SUFFIXES = tuple(READERS)
