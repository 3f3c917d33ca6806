"""Name what came of a text (the codes of the `status` column), and abstain."""

import numpy as np

OK, TRUNCATED, EMPTY, NULL, ABSTAINED = range(5)
STATUS_NAMES = ("ok", "truncated", "empty", "null", "abstained")  # by the codes above


def apply_min_confidence(status: np.ndarray, confidence: np.ndarray, min_confidence: float) -> np.ndarray:
    """Set the status of rows below the confidence threshold to `ABSTAINED`.

    This is selective prediction. `status` (n,) codes; `confidence` (n,), NaN where there is no score.
    Returns (n,) codes.
    """
    with np.errstate(invalid="ignore"):
        return np.where(confidence < np.float32(min_confidence), ABSTAINED, status)
