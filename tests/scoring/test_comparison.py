"""Comparing an output with what is computed now: equal, but for what other hardware changes."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sentiment_core.data.shards import Unit
from sentiment_core.model.objective import SingleLabel
from sentiment_core.scoring import outputs
from sentiment_core.scoring.comparison import OutputDiffers, check_same
from sentiment_core.scoring.records import Run
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.text.status import apply_min_confidence

LABELS = ["no", "yes"]
RUN = Run("in", "digest")
SCORES = np.array([[0.9, 0.1], [0.51, 0.49], [np.nan, np.nan]], np.float32)
SWAPPED = SCORES[:, ::-1]
NUMBERS = (1.0, float("nan"), None)


def scored(
    probabilities: np.ndarray, numbers=NUMBERS, min_confidence: float = 0.0
) -> tuple[pa.Table, dict[str, ScoredRows]]:
    """Return three rows with these probabilities and a kept column of these numbers, and the same as a table."""
    unit = Unit("a.parquet", 0, 3, 3, 1, 1, 1)
    kept = pa.table({"n": pa.array(numbers, pa.float64()), "nested": [[1.0], [float("nan")], None]})
    probabilities = probabilities.astype(np.float32)
    status = apply_min_confidence(np.array([0, 0, 3], np.int8), probabilities.max(axis=1), min_confidence)
    rows = {"": ScoredRows(SingleLabel(), LABELS, status, probabilities, np.array([1, 1, 0]))}
    return outputs.scored_table(unit, kept, rows, replace(RUN, probabilities=True)), rows


@pytest.mark.parametrize(
    "now",
    [
        SCORES,
        SCORES + np.float32(0.015),
        np.where([[False], [True], [False]], SWAPPED, SCORES),  # nearly a tie
    ],
)
def test_rows_are_the_same_within_the_tolerance(now):
    check_same(scored(SCORES)[0], *scored(now), RUN)


@pytest.mark.parametrize(
    ("now", "numbers", "words"),
    [
        (SWAPPED, NUMBERS, "1 of 3 rows have another score; row 0: no with 0.8"),
        (SCORES + np.array([[0], [0.03], [0]]), NUMBERS, "row 1: no with 0.5"),
        (SCORES[[0, 2, 2]], NUMBERS, "row 1: no with 0.5"),
        (SCORES[[0, 1, 1]], NUMBERS, "row 2: None with None, expected None with 0.5"),
        (SCORES, (1.0, 2.0, None), "column 'n' differs in 1 of 3 rows; row 1: nan, expected 2.0"),
    ],
)
def test_other_differences_are_found(now, numbers, words):
    with pytest.raises(OutputDiffers, match=words):
        check_same(scored(SCORES)[0], *scored(now, numbers), RUN)


def test_other_columns_are_found():
    table, rows = scored(SCORES)
    with pytest.raises(OutputDiffers, match=r"its columns are nested .*; expected n double, nested "):
        check_same(table.drop_columns(["n"]), table, rows, RUN)


def check_with_threshold(before: np.ndarray, now: np.ndarray, threshold: float) -> None:
    run = replace(RUN, min_confidence=threshold)
    check_same(scored(before, min_confidence=threshold)[0], *scored(now, min_confidence=threshold), run)


def test_whether_a_row_abstains_may_change_only_near_the_threshold():
    assert scored(SCORES, min_confidence=0.6)[0]["status"].to_pylist() == ["ok", "abstained", "null"]
    check_with_threshold(SCORES, SCORES, 0.6)
    check_with_threshold(SCORES, SCORES + np.float32(0.01), 0.515)
    with pytest.raises(OutputDiffers, match=r"1 of 3 rows have another score; row 1: None with 0\.5"):
        check_with_threshold(SCORES, SCORES + np.array([[0], [0.2], [0]]), 0.6)


def test_a_row_that_should_have_abstained_is_found():
    with pytest.raises(OutputDiffers, match=r"row 1: no with 0\.5"):
        check_same(scored(SCORES)[0], *scored(SCORES, min_confidence=0.6), replace(RUN, min_confidence=0.6))
