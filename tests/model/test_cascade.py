"""The threshold of a cascade: the bound, the sequence, the promise over many draws, and how many rows it takes."""

import math

import numpy as np
import pytest
from scipy import stats

from sentiment_core.errors import UserError
from sentiment_core.model.binomial_bounds import upper_bound
from sentiment_core.model.cascade import (
    CascadeRecord,
    check_settings,
    choose_threshold,
    describe_cost,
    describe_seconds,
    list_thresholds,
    required_rows,
)

DRAWS = 500


def population(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw confidences from 0.5 to 1, and rows that only a large model gets right, the more the less confident."""
    rng = np.random.default_rng(seed)
    confidence = (1 - 0.5 * rng.random(rows)).astype(np.float32)
    return confidence, rng.random(rows) < 0.6 * (1 - confidence)


def true_loss(threshold: float) -> float:
    """Return the share of the population that is lost: the integral of 0.6 (1 - c) over c from the threshold to 1."""
    return 0.6 * (1 - min(1.0, max(0.5, threshold))) ** 2


def test_the_bound_is_the_one_of_the_beta_distribution():
    lost = np.array([0, 3, 50, 100])
    bounds = upper_bound(lost, 100, 0.95)
    np.testing.assert_allclose(bounds[:3], stats.beta.ppf(0.95, lost[:3] + 1, 100 - lost[:3]), rtol=1e-9)
    assert bounds[3] == 1
    assert bounds[0] == pytest.approx(1 - 0.05 ** (1 / 100))


def test_thresholds_begin_with_all_rows_and_end_with_none():
    thresholds = list_thresholds()
    assert (np.diff(thresholds) < 0).all()
    assert thresholds[0] > 1
    assert (thresholds[-1], thresholds.dtype) == (0, np.float32)


def test_the_chosen_threshold_is_the_last_one_whose_bound_holds():
    confidence, is_lost = population(3_000, seed=1)
    choice = choose_threshold(confidence, is_lost, 0.02, 0.95)
    thresholds = list_thresholds().tolist()
    below = np.float32(thresholds[thresholds.index(choice.threshold) + 1])

    def bound(threshold: float) -> float:
        return float(upper_bound(int((is_lost & (confidence >= np.float32(threshold))).sum()), 3_000, 0.95))

    assert bound(choice.threshold) <= 0.02 < bound(below)
    assert choice.lost_rows == (is_lost & (confidence >= np.float32(choice.threshold))).sum()
    assert choice.escalated_share == (confidence < np.float32(choice.threshold)).mean()
    assert 0.5 < choice.threshold < 1


def test_the_promise_holds_in_as_many_draws_as_it_says():
    broken = [true_loss(choose_threshold(*population(400, seed), 0.03, 0.9).threshold) > 0.03 for seed in range(DRAWS)]
    # of so many draws, by chance alone, no more than this in 999 of 1,000 cases
    assert sum(broken) <= stats.binom.ppf(0.999, DRAWS, 0.1)
    assert sum(broken) > 0  # nor is it idle


def test_the_promise_holds_for_confidences_in_steps():
    """As of texts that come many times. Just above the promise only chance tells a step from one that keeps to it."""
    confidences, shares = np.float32([0.95, 0.8, 0.6]), np.array([0.5, 0.3, 0.2])
    lost_shares = np.array([0.010, 0.0101, 0.1])  # of all rows; the first two together are a little more than 2 %
    broken = 0
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        step = rng.choice(3, 4_000, p=shares)
        choice = choose_threshold(confidences[step], rng.random(4_000) < (lost_shares / shares)[step], 0.02, 0.95)
        broken += lost_shares[confidences >= np.float32(choice.threshold)].sum() > 0.02
    assert 0 < broken <= stats.binom.ppf(0.999, DRAWS, 0.05)


@pytest.mark.parametrize(("max_loss", "certainty"), [(0.02, 0.95), (0.01, 0.95), (0.05, 0.9), (0.5, 0.5), (1e-4, 0.99)])
def test_the_number_of_rows_that_would_do_does(max_loss, certainty):
    rows = required_rows(max_loss, certainty)
    nothing_lost = np.zeros(rows, bool)
    assert choose_threshold(np.full(rows, 0.9, np.float32), nothing_lost, max_loss, certainty).threshold == 0
    fewer = rows - 1
    assert choose_threshold(np.full(fewer, 0.9, np.float32), nothing_lost[:fewer], max_loss, certainty) is None
    assert (max_loss, rows) != (0.02, 0.95) or rows == math.ceil(math.log(0.05) / math.log(0.98)) == 149


def test_rows_of_equal_confidence_stay_together():
    confidence = np.repeat(np.float32([0.6, 0.9]), [500, 500])
    is_lost = np.arange(1_000) % 500 < 20
    choice = choose_threshold(confidence, is_lost, 0.03, 0.95)
    assert (choice.lost_rows, choice.escalated_share) == (20, 0.5)
    assert 0.6 < choice.threshold <= 0.9


def test_rows_lost_at_full_confidence_are_all_handed_over():
    confidence = np.ones(1_000, np.float32)
    choice = choose_threshold(confidence, np.arange(1_000) < 100, 0.02, 0.95)
    assert choice.threshold > 1
    assert choice.escalated_share == 1


def test_wrong_settings_are_refused():
    with pytest.raises(UserError) as caught:
        check_settings(2.0, 0.95)
    assert str(caught.value) == "--max-loss is 2.0; expected a share above 0 and below 1, such as 0.02"
    with pytest.raises(UserError) as caught:
        check_settings(0.02, 1.0)
    assert str(caught.value) == "--certainty is 1.0; expected a probability above 0 and below 1, such as 0.95"


def test_the_cost_of_a_run_is_that_of_its_rows():
    speeds = {"rows_per_second": 100.0, "small_rows_per_second": 200.0, "large_rows_per_second": 50.0}
    record = CascadeRecord(rows=2_000, escalated_share=0.25, chip="a chip", threads=2, **speeds)
    assert describe_cost(record, 36_000) == (
        "cascade: about 25 % of the rows go to the large model, as of the 2,000 rows that chose its threshold; 36,000 "
        "rows like those take one worker about 6 minutes (3 minutes with the small model alone, 12 minutes with the "
        "large one), at the speeds measured on a chip with 2 threads"
    )
    assert [describe_seconds(seconds) for seconds in (3, 119, 120, 8_000, 1e6)] == [
        "3 seconds", "119 seconds", "2 minutes", "2 hours", "12 days",
    ]  # fmt: skip
