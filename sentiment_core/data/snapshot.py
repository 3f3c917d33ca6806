"""A version of a table: its data files, and its columns as they stand in these files.

`delta` and `iceberg` make it from a table's log. The files themselves are read as all Parquet is: `FileColumns` finds
the table's columns in one of them, whatever their names and types were when it was written.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import pyarrow as pa

from sentiment_core.data.types import canonical_type, to_canonical
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.text.arrow import is_text

FIELD_ID = b"PARQUET:field_id"  # key of a field's id in pyarrow's schemas
SCHEMES = {"s3a": "s3", "s3n": "s3", "file": "file"}  # of URIs that other engines write

Values = Mapping[str, str | None]  # of a file's partition columns by name, as text


@dataclass(frozen=True)
class TableColumn:
    """A column of a table."""

    field: pa.Field  # its name and type in the table; nested fields have ids where the table has
    stored_names: tuple[str, ...]  # by which files have it that have no ids
    field_id: int | None = None  # by which files have it; None: by name
    in_log: bool = False  # its values stand in the table's log alone
    default: Any = None  # value in files that were written before the column was added
    exact: bool = False  # nested fields are found by ids or other names: only files with the same ones can be read

    @property
    def name(self) -> str:
        """The column's name in the table."""
        return self.field.name

    @cached_property
    def type(self) -> pa.DataType:
        """The column's type, in the usual kind."""
        return canonical_type(self.field.type)


@dataclass(frozen=True)
class TableColumns:
    """The columns of a table, in its order."""

    columns: tuple[TableColumn, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return pa.schema([(column.name, column.type) for column in self.columns])

    @cached_property
    def by_name(self) -> dict[str, TableColumn]:
        """The columns by their names."""
        return {column.name: column for column in self.columns}

    def find_in(self, stored: pa.Schema, values: Values) -> "FileColumns":
        """Find the columns in a file with this schema; `values`: of its partition columns.

        Columns that cannot be told, or cannot be read as the table has them, are faults of the result.
        """
        by_id = {
            int(field.metadata[FIELD_ID]): field for field in stored if field.metadata and FIELD_ID in field.metadata
        }
        by_name = {field.name: field for field in stored}
        stored_names: dict[str, str] = {}
        faults: dict[str, str] = {}
        for column in self.columns:
            if column.in_log:
                continue
            if column.field_id is not None and by_id:
                field = by_id.get(column.field_id)
            else:
                field = next((by_name[name] for name in column.stored_names if name in by_name), None)
                if column.field_id is not None and not column.stored_names:
                    faults[column.name] = (
                        f"it has no field ids, by which the table finds column {column.name!r}; let the table's engine "
                        "write it again"
                    )
            if field is None:
                continue
            if column.exact and not _is_same(field, column.field):
                faults[column.name] = (
                    f"its column {field.name!r} was written before a nested field of {column.name!r} changed; let the "
                    "table's engine write it again, or leave the column out with --keep"
                )
            stored_names[column.name] = field.name
        return FileColumns(self, stored_names, values, faults)


@dataclass(frozen=True)
class FileColumns:
    """A table's columns in one of its files."""

    table: TableColumns
    stored: Mapping[str, str]  # of columns that the file has: their names there, by their names in the table
    values: Values
    faults: Mapping[str, str]  # by column, why it cannot be read

    def stored_names(self, names: Sequence[str]) -> list[str]:
        """Return the names in the file of those of the columns that it has.

        Raises `OSError` for a column that cannot be read as the table has it.
        """
        for name in names:
            if name in self.faults:
                raise OSError(self.faults[name])
        return [self.stored[name] for name in names if name in self.stored]

    def digest(self, names: Sequence[str]) -> str:
        """Return a hash of what the file holds as these columns: it changes where one is renamed, added or widened."""
        by_name = self.table.by_name
        content = [
            (name, str(by_name[name].type), self.stored.get(name) or repr(self._constant(by_name[name])))
            for name in names
        ]
        return hashlib.blake2b(repr(content).encode(), digest_size=8).hexdigest()

    def table_names(self, stored_names: Sequence[str]) -> list[str]:
        """Return the names in the table of columns of the file."""
        by_stored_name = {stored: name for name, stored in self.stored.items()}
        return [by_stored_name[name] for name in stored_names]

    def restore(self, stored: pa.Table, names: Sequence[str], rows: int) -> pa.Table:
        """Return columns as the table has them, from those that were read; `rows`: their length.

        Texts that were read as dictionaries stay so. Raises `pa.ArrowException` for values that do not fit.
        """
        restored = {}
        for name in names:
            column = self.table.by_name[name]
            if name in self.stored:
                restored[name] = _fit(stored.select([self.stored[name]]), column.type)
            else:
                restored[name] = pa.repeat(self._constant(column), rows)
        return pa.table(restored)

    def _constant(self, column: TableColumn) -> pa.Scalar:
        """Return the one value that all rows of the file have in a column that it lacks."""
        if column.name not in self.values:
            return pa.scalar(column.default, column.type)
        value = self.values[column.name]
        if value is None or pa.types.is_string(column.type):
            return pa.scalar(value, column.type)
        return pa.scalar(value).cast(column.type)


def _fit(stored: pa.Table, kind: pa.DataType) -> pa.ChunkedArray:
    """Return a table's one column in this type, which may be wider than the one that it has."""
    if pa.types.is_dictionary(stored.schema.types[0]) and is_text(kind):
        return stored.column(0)
    column = to_canonical(stored).column(0)
    return column if column.type == kind else column.cast(kind)


def _is_same(stored: pa.Field, wanted: pa.Field) -> bool:
    """Return whether nested fields have the same names, types and ids, whether or not they may be null."""
    nested = [field.type.num_fields for field in (stored, wanted)]
    if nested == [0, 0]:
        return True
    if nested[0] != nested[1] or (stored.type.id != wanted.type.id and not _are_lists(stored.type, wanted.type)):
        return False
    is_struct = pa.types.is_struct(wanted.type)
    for child, wanted_child in zip(_children(stored.type), _children(wanted.type), strict=True):
        if is_struct and child.name != wanted_child.name:
            return False
        ids = [(field.metadata or {}).get(FIELD_ID) for field in (child, wanted_child)]
        leaves = not child.type.num_fields and not wanted_child.type.num_fields
        same_type = not leaves or canonical_type(child.type) == canonical_type(wanted_child.type)
        if (None not in ids and ids[0] != ids[1]) or not same_type or not _is_same(child, wanted_child):
            return False
    return True


def _are_lists(*kinds: pa.DataType) -> bool:
    return all(pa.types.is_list(kind) or pa.types.is_large_list(kind) for kind in kinds)


def _children(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(i) for i in range(kind.num_fields)]


@dataclass(frozen=True)
class TableFile:
    """A data file of a table's version."""

    stamp: FileStamp  # its path is relative to the table's folder, or a URI where it lies elsewhere
    values: Values


@dataclass(frozen=True)
class Snapshot:
    """A version of a table."""

    kind: str  # "Delta Lake" or "Iceberg"
    root: str  # path or URI of the table's folder
    version: int  # Delta's version, or the id of Iceberg's snapshot
    files: list[TableFile]  # sorted by path
    columns: TableColumns
    order: Mapping[int, int] | None = None  # of Iceberg's snapshots, by their ids; None: versions count up
    is_pinned: bool = False  # asked for by its number, whether or not it is the current one

    def is_older_than(self, version: int) -> bool:
        """Return whether this version came before another one of the same table.

        One that the table has forgotten was before all that it knows. The version that an Iceberg table was rolled
        back to is not older: it is the current one.
        """
        if self.order is None:
            return self.version < version
        return self.is_pinned and self.order[self.version] < self.order.get(version, 0)


def describe_missing_extra(path: str, kind: str) -> UserError:
    """Return the error for a table whose library is not installed."""
    return UserError(
        f"{path} is a table of {kind}; reading it needs the extra tables: pip install '.[tables]' in the checkout"
    )


def values_to_json(values: Values) -> str:
    """Return partition values as a work unit carries them."""
    return json.dumps(values)


def values_from_json(content: str) -> dict[str, str | None]:
    """Undo `values_to_json`."""
    return json.loads(content)


def normalize(uri: str, encoded: bool) -> str:
    """Return the one spelling of a path or URI of a table's log; `encoded`: it has percent-encoded characters."""
    if encoded:
        uri = unquote(uri)
    scheme, separator, rest = uri.partition(":")
    if separator and scheme in SCHEMES and rest.startswith("/"):
        path = "/" + rest.lstrip("/")
        uri = path if scheme == "file" else f"{SCHEMES[scheme]}:/{path}"
    return uri.rstrip("/")


def relative_to(root: str, uri: str) -> str:
    """Return the path of a data file relative to the table's folder, or its URI where it lies elsewhere."""
    below = uri.removeprefix(root.rstrip("/") + "/")
    if below != uri:
        return below
    return f"file://{uri}" if storage.is_local(uri) else uri
