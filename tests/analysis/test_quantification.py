"""Correct counts by a confusion matrix."""

import numpy as np
import pytest

from sentiment_core.analysis.quantification import correct_binary, correct_counts


def test_corrected_shares_are_those_that_explain_the_counts():
    rates = np.array([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.2, 0.1, 0.7]])
    true = np.array([0.1, 0.3, 0.6])
    confusion = (rates * np.array([[100], [200], [400]])).round().astype(int)
    assert correct_counts(true @ rates, confusion.tolist()) == pytest.approx(true, abs=1e-6)


def test_corrected_shares_stay_shares_where_counts_cannot_be_explained():
    shares = correct_counts(np.array([1.0, 0.0]), [[60, 40], [30, 70]])
    assert shares == pytest.approx([1.0, 0.0], abs=1e-3)
    assert (shares >= 0).all()


def test_a_label_without_evaluation_rows_keeps_its_count():
    shares = correct_counts(np.array([0.5, 0.3, 0.2]), [[10, 0, 0], [0, 10, 0], [0, 0, 0]])
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=1e-6)


def test_binary_correction():
    assert correct_binary(0.8 * 0.3 + 0.1 * 0.7, 0.8, 0.1) == pytest.approx(0.3)
    assert correct_binary(0.05, 0.8, 0.1) == 0.0
    assert correct_binary(0.5, 0.4, 0.4) is None
