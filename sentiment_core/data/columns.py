"""Check the columns of shards and choose those that go into the output."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from sentiment_core.data.types import canonical_type
from sentiment_core.errors import UserError
from sentiment_core.text.arrow import is_text

MISSING = "missing"  # in place of the type of a column that a shard does not have


def kept_columns(schema: pa.Schema, text_column: str, keep: Sequence[str] | None) -> list[str]:
    """List the shard's columns that go into the output, in the shard's order.

    They are those in `keep`, or all but the text where `keep` is None.
    """
    return [name for name in schema.names if (name != text_column if keep is None else name in keep)]


def check_columns(schema: pa.Schema, path: str, text_column: str, keep: Sequence[str] | None) -> None:
    """Refuse a shard that lacks the text column or a column to keep, or has one twice.

    Raises `UserError`.
    """
    names = schema.names
    for name in (text_column, *kept_columns(schema, text_column, keep)):
        if names.count(name) > 1:
            raise UserError(f"{path} has {names.count(name)} columns {name!r}; expected one; rename the others")
    if text_column not in names:
        raise UserError(f"{path} has no column {text_column!r}; it has {', '.join(names)}; choose with --text-column")
    kind = schema.field(text_column).type
    if not is_text(kind):
        raise UserError(f"column {text_column!r} of {path} holds {kind}; expected text; choose with --text-column")
    for name in keep or ():
        if name not in names and name not in _partition_keys(path):
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(names)}; choose with --keep")


def check_clash(
    schema: pa.Schema, path: str, text_column: str, keep: Sequence[str] | None, reserved: Sequence[str]
) -> None:
    """Refuse a shard that would bring a column of a `reserved` name into the output.

    Raises `UserError`.
    """
    names = kept_columns(schema, text_column, keep)
    for name in names:
        if name.lower() in reserved:  # DuckDB and Spark do not tell Label from label
            allowed = ",".join(name for name in names if name.lower() not in reserved)
            raise UserError(
                f"column {name!r} of {path} has the name of a scored column; name the columns to keep "
                f"without it: --keep {allowed or repr('')}"
            )
    for key in _partition_keys(path):
        if key.lower() in reserved:
            raise UserError(
                f"the partition folders {key}=... of {path} have the name of a scored column; rename them, "
                "or score one of them at a time with --input"
            )


def _partition_keys(path: str) -> list[str]:
    return [part.split("=", 1)[0] for part in path.split("/")[:-1] if "=" in part]


@dataclass
class _SchemaVariant:
    """Shards that bring the same columns into the output."""

    types: dict[str, str]  # by column
    first_shard: str
    shards: int = 0


class SchemaDifferences:
    """Differences between shards in the columns to keep.

    Each output has the columns of its own shard, with the types they have there.
    """

    def __init__(self) -> None:
        self._variants: dict[str, _SchemaVariant] = {}

    def note(self, schema: pa.Schema, path: str, names: list[str]) -> None:
        """Take account of a shard and its columns to keep."""
        types = {name: str(canonical_type(schema.field(name).type)) for name in names}
        self._variants.setdefault(str(types), _SchemaVariant(types, path)).shards += 1

    def describe(self) -> list[str]:
        """Describe each column that differs between shards.

        A line gives its types, in how many shards each, and the first of these.
        """
        lines = []
        for name in dict.fromkeys(name for variant in self._variants.values() for name in variant.types):
            by_type: dict[str, list[_SchemaVariant]] = defaultdict(list)
            for variant in self._variants.values():
                by_type[variant.types.get(name, MISSING)].append(variant)
            if len(by_type) > 1:
                counts = (
                    f"{kind} in {sum(variant.shards for variant in variants):,} ({variants[0].first_shard})"
                    for kind, variants in by_type.items()
                )
                lines.append(f"{name!r} is {', '.join(counts)}")
        return lines
