"""Texts as Arrow columns hold them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind in (pa.string_view(), pa.null())


def distinct_texts(column: pa.Array) -> tuple[list[str | None], np.ndarray]:
    """The column's texts, each once, and for every row which of them it holds, (n,) int64."""
    if not pa.types.is_dictionary(column.type):
        column = column.cast(pa.large_string()).dictionary_encode()
    used = pc.unique(column.indices)
    which = pc.index_in(column.indices, used).to_numpy().astype(np.int64)
    return to_texts(column.dictionary.take(used)), which


def to_texts(column: pa.Array) -> list[str | None]:
    """Python texts of an Arrow column; bytes that are not UTF-8 become U+FFFD."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "replace") for text in raw]
