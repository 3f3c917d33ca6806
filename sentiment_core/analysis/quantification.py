"""Correct counted labels by the errors that a model made on its evaluation rows.

This is adjusted counting (Forman 2008, "Quantifying counts and costs via classification"; Firat 2016, "Unified
framework for quantification", for several classes). It assumes that the model errs in the corpus as it did on the
evaluation rows: a label is taken for another one as often, however the shares have shifted.
"""

from collections.abc import Sequence

import numpy as np

SUM_WEIGHT = 1e3  # by which least squares hold the shares to the sum of 1


def correct_counts(counted: np.ndarray, confusion: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the shares of labels (classes,) under which the counted ones would be expected.

    Solved by least squares, with shares of 0 or more whose sum is 1. A label that no evaluation row has is taken to be
    recognized always.

    Args:
        counted: (classes,) share of the rows that the model gave each label; their sum is 1.
        confusion: Evaluation rows by their true label (rows) and the predicted one (columns).
    """
    from scipy.optimize import nnls  # a second, which nights without corrections need not spend

    table = np.array(confusion, float)
    rows = table.sum(axis=1, keepdims=True)
    rates = np.where(rows > 0, table / np.maximum(rows, 1), np.eye(len(table)))  # of predictions, by the true label
    system = np.vstack([rates.T, np.full(len(table), SUM_WEIGHT)])
    shares, _ = nnls(system, np.append(counted, SUM_WEIGHT))
    return shares / shares.sum()


def correct_binary(counted: float, true_positive_rate: float, false_positive_rate: float) -> float | None:
    """Return the share of a label under which the counted one would be expected; None where rates are equal."""
    difference = true_positive_rate - false_positive_rate
    return float(np.clip((counted - false_positive_rate) / difference, 0, 1)) if difference > 0 else None
