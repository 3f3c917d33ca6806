"""Read texts from Arrow columns."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column type holds text; one of nulls alone may."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind in (pa.string_view(), pa.null())


def deduplicate_texts(column: pa.Array) -> tuple[list[str | None], np.ndarray]:
    """Find the distinct texts of a column; return (texts, inverse).

    `inverse` (n,) int64: which of the texts each row holds.
    """
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.large_string()).dictionary_encode()
    used = pc.unique(column.indices)
    inverse = pc.index_in(column.indices, used).to_numpy().astype(np.int64)
    return to_texts(column.dictionary.take(used)), inverse


def to_texts(column: pa.Array) -> list[str | None]:
    """Convert an Arrow column to Python texts; bytes that are not UTF-8 become U+FFFD."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        encoded = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "replace") for text in encoded]
