"""Check the columns of shards and choose those that go into the output."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from sentiment_core.data.types import canonical_type
from sentiment_core.errors import UserError
from sentiment_core.text.arrow import is_text

MISSING = "missing"  # in place of the type of a column that a shard does not have


class ColumnClash(UserError):
    """A column of the input has the name of a scored column."""

    def __init__(self, message: str, column: str) -> None:
        super().__init__(message)
        self.column = column


def kept_columns(schema: pa.Schema, text_columns: Sequence[str], keep: Sequence[str] | None) -> list[str]:
    """List the shard's columns that go into the output, in the shard's order.

    They are those in `keep`, or all but the text where `keep` is None.
    """
    return [name for name in schema.names if (name not in text_columns if keep is None else name in keep)]


def check_columns(
    schema: pa.Schema,
    path: str,
    text_columns: Sequence[str],
    keep: Sequence[str] | None,
    folder_keys: Sequence[str],
) -> None:
    """Refuse a shard that lacks a text column or a column to keep, or has one twice.

    `folder_keys`: of the partition folders on its path. Raises `UserError`.
    """
    names = schema.names
    for name in (*text_columns, *kept_columns(schema, text_columns, keep)):
        if names.count(name) > 1:
            raise UserError(f"{path} has {names.count(name)} columns {name!r}; expected one; rename the others")
    for name in text_columns:
        if name not in names:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(names)}; choose with --text-column")
        kind = schema.field(name).type
        if not is_text(kind):
            raise UserError(f"column {name!r} of {path} holds {kind}; expected text; choose with --text-column")
    for name in keep or ():
        if name not in names and name not in folder_keys:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(names)}; choose with --keep")


def check_clash(
    schema: pa.Schema,
    path: str,
    text_columns: Sequence[str],
    keep: Sequence[str] | None,
    reserved: Sequence[str],
    folder_keys: Sequence[str],
) -> None:
    """Refuse a shard that would bring a column of a `reserved` name into the output.

    `folder_keys`: of the partition folders on its path. Raises `UserError`.
    """
    names = kept_columns(schema, text_columns, keep)
    reserved = [name.lower() for name in reserved]
    for name in names:
        if name.lower() in reserved:  # DuckDB and Spark do not tell Label from label
            allowed = ",".join(name for name in names if name.lower() not in reserved)
            raise ColumnClash(
                f"column {name!r} of {path} has the name of a scored column; begin those with --prefix, or name the "
                f"columns to keep without it: --keep {allowed or repr('')}",
                name,
            )
    for key in folder_keys:
        if key.lower() in reserved:
            raise UserError(
                f"the partition folders {key}=... of {path} have the name of a scored column; begin those with "
                "--prefix, rename the folders, or score one of them at a time with --input"
            )


@dataclass
class _SchemaVariant:
    """Shards that bring the same columns into the output."""

    types: dict[str, pa.DataType]  # by column
    shards: list[str] = field(default_factory=list)  # paths


class SchemaDifferences:
    """Differences between shards in the columns to keep.

    Each output has the columns of its own shard, with the types they have there.
    """

    def __init__(self) -> None:
        self._variants: dict[str, _SchemaVariant] = {}  # by the types of their columns

    def note(self, schema: pa.Schema, path: str, names: list[str]) -> None:
        """Take account of a shard and its columns to keep."""
        types = {name: canonical_type(schema.field(name).type) for name in names}
        self._variants.setdefault(str(types), _SchemaVariant(types)).shards.append(path)

    def unify_nulls(self, has_only_nulls: Callable[[str, list[str]], bool]) -> dict[str, pa.DataType]:
        """Give a column that has only nulls in some shards the type it has in the others; return these types by name.

        Such a column has the type null, or double where pandas wrote it: `has_only_nulls` is then asked, for a column
        and the shards with that type.
        """
        unified: dict[str, pa.DataType] = {}
        for name in self._names():
            variants = [variant for variant in self._variants.values() if name in variant.types]
            kinds = {variant.types[name] for variant in variants}
            if len(kinds) == 1:
                continue
            doubles = [path for variant in variants if variant.types[name] == pa.float64() for path in variant.shards]
            if len(kinds - {pa.null()}) == 2 and doubles and has_only_nulls(name, doubles):
                kinds.discard(pa.float64())
                kinds.add(pa.null())
            kind = _unify(kinds)
            if kind is None:
                continue
            unified[name] = kind
            for variant in variants:
                variant.types[name] = kind
        return unified

    def describe(self) -> list[str]:
        """Describe each column that differs between shards.

        A line gives its types, in how many shards each, and the first of these.
        """
        lines = []
        for name in self._names():
            by_type: dict[str, list[str]] = defaultdict(list)
            for variant in self._variants.values():
                by_type[str(variant.types.get(name, MISSING))] += variant.shards
            if len(by_type) > 1:
                counts = (f"{kind} in {len(shards):,} ({shards[0]})" for kind, shards in by_type.items())
                lines.append(f"{name!r} is {', '.join(counts)}")
        return lines

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for variant in self._variants.values() for name in variant.types))


def _unify(kinds: set[pa.DataType]) -> pa.DataType | None:
    """Return the type that differs from others of a column only where these are null; None if there is none."""
    try:
        schemas = [pa.schema([("", kind)]) for kind in kinds]
        unified = pa.unify_schemas(schemas, promote_options="default").field(0).type
        for kind in kinds:
            pa.array([], kind).cast(unified)
    except pa.ArrowException:
        return None
    return unified
