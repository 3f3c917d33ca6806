"""Read texts from Arrow columns."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

REPLACEMENT = "\ufffd"  # in place of bytes that are not UTF-8


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column type holds text, also as bytes or as JSON; one of nulls alone may."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return is_text(kind.storage_type)
    return _is_string(kind) or _is_binary(kind) or pa.types.is_null(kind)


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def deduplicate_texts(column: pa.Array) -> tuple[list[str | None], np.ndarray]:
    """Find the distinct texts of a column; return (texts, inverse).

    `inverse` (n,) int64: which of the texts each row holds.
    """
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.large_binary() if _is_binary(column.type) else pa.large_string()).dictionary_encode()
    used = pc.unique(column.indices)
    inverse = pc.index_in(column.indices, used).to_numpy().astype(np.int64)
    return to_texts(column.dictionary.take(used)), inverse


def join_texts(columns: Sequence[pa.Array]) -> list[str | None]:
    """Join the texts of several columns, row by row, by a line break.

    Nulls are left out; a row of nulls alone is None.
    """
    texts = [to_texts(column) for column in columns]
    if len(texts) == 1:
        return texts[0]
    return [join_fields(row) for row in zip(*texts, strict=True)]


def join_fields(fields: Iterable[str | None]) -> str | None:
    """Join the fields of one text by a line break. Nulls are left out; without a field there is no text."""
    present = [field for field in fields if field is not None]
    return "\n".join(present) if present else None


def to_texts(column: pa.Array) -> list[str | None]:
    """Convert an Arrow column to Python texts; bytes that are not UTF-8 become U+FFFD."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        values = column.cast(pa.large_binary()).to_pylist()
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]
