"""Exact one-sided bounds of a share that was counted on some rows (Clopper and Pearson 1934)."""

import numpy as np


def lower_bound(right: np.ndarray, rows: np.ndarray, level: float) -> np.ndarray:
    """Compute the exact one-sided lower bound of a share (Clopper and Pearson 1934).

    Args:
        right: Counted rows that are right, any shape.
        rows: Counted rows, same shape.
        level: Probability that the share is below the bound, at most.
    """
    from scipy import special  # a fifth of a second, which planning without a target need not spend

    right, rows = np.asarray(right, float), np.asarray(rows, float)
    return np.where(right > 0, special.betaincinv(np.maximum(right, 1), rows - right + 1, level), 0.0)


def upper_bound(lost: np.ndarray | int, rows: int, certainty: float) -> np.ndarray:
    """Compute the exact one-sided upper bound of a share (Clopper and Pearson 1934).

    Args:
        lost: Counted rows that are lost, any shape.
        rows: All counted rows.
        certainty: Probability that the share is at most the bound, at least.
    """
    from scipy import special  # a fifth of a second, which scoring need not spend

    counts = np.asarray(lost, float)
    return np.where(counts < rows, special.betaincinv(counts + 1, np.maximum(rows - counts, 1), certainty), 1.0)
