"""Probabilities of all labels as a column of scored Parquet, and back."""

import numpy as np
import pyarrow as pa


def build(probabilities: np.ndarray, has_score: np.ndarray) -> dict[str, pa.Array]:
    """Build the column `probabilities`, fixed-size lists of float32, by its name.

    Args:
        probabilities: (n, classes).
        has_score: (n,) bool; other rows become null.
    """
    flat = pa.array(np.nan_to_num(probabilities).ravel(), pa.float32())
    kind = pa.list_(pa.float32(), probabilities.shape[1])
    return {"probabilities": pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~has_score))}


def read(column: pa.Array, classes: int) -> np.ndarray:
    """Return the probabilities (n, classes) of a column, NaN where it is null."""
    return column.fill_null([np.nan] * classes).flatten().to_numpy(zero_copy_only=False).reshape(-1, classes)
