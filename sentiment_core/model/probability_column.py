"""Write and read the column `probabilities` of scored Parquet."""

import numpy as np
import pyarrow as pa


def make_column(probabilities: np.ndarray, has_score: np.ndarray) -> dict[str, pa.Array]:
    """Make the column, by its name, of probabilities (n, classes); null where a row has no score."""
    flat = pa.array(np.nan_to_num(probabilities).ravel(), pa.float32())
    kind = pa.list_(pa.float32(), probabilities.shape[1])
    return {"probabilities": pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~has_score))}


def read_column(column: pa.Array, classes: int) -> np.ndarray:
    """Return the probabilities (n, classes) of a column, NaN where it is null."""
    return column.fill_null([np.nan] * classes).flatten().to_numpy(zero_copy_only=False).reshape(-1, classes)
