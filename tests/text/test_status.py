"""Status codes and abstention."""

import numpy as np

from sentiment_core.text import status
from sentiment_core.text.status import ABSTAINED, EMPTY, OK, TRUNCATED, apply_min_confidence


def test_every_code_has_a_name():
    names = {name: getattr(status, name.upper()) for name in status.STATUS_NAMES}
    assert list(names.values()) == list(range(len(names)))


def test_rows_below_the_threshold_abstain_and_rows_without_a_score_keep_their_status():
    codes = np.array([OK, TRUNCATED, OK, EMPTY], np.int8)
    confidence = np.array([0.6, 0.55, 0.9, np.nan], np.float32)
    assert apply_min_confidence(codes, confidence, 0.6).tolist() == [OK, ABSTAINED, OK, EMPTY]
    assert apply_min_confidence(codes, confidence, 0.0).tolist() == codes.tolist()
