"""Coverage of intervals on simulated corpora whose shares have shifted; estimates against hand computations."""

import numpy as np
import pytest

from sentiment_core.analysis import strata
from sentiment_core.analysis.estimation import Design, effective_rows, estimate_mean, tune_power
from sentiment_core.analysis.scored_rows import ScoredBatch

CORPORA, ROWS = 500, 4_000


def make_corpus(rng: np.random.Generator, share: float, strength: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """Return the truth of rows, and probabilities of a model that was calibrated where the share was half."""
    truth = rng.random(ROWS) < share
    evidence = np.where(truth, strength / 2, -strength / 2) + rng.normal(size=ROWS)
    return truth.astype(float), 1 / (1 + np.exp(-strength * evidence))


def draw(rng: np.random.Generator, scores: np.ndarray, rows: int) -> tuple[Design, np.ndarray]:
    """Draw a sample with the strata of `sentiment-core sample`."""
    labels, confidence = (scores >= 0.5).astype(np.int32), np.maximum(scores, 1 - scores).astype(np.float32)
    everywhere = np.zeros(len(scores), np.int64)
    batch = ScoredBatch(
        "", np.arange(len(scores)), everywhere.astype(np.int8), labels, confidence, None, [()], everywhere
    )
    designed = strata.design(strata.count_cells(batch), rows)
    stratum = strata.make_lookup(designed)(strata.find_cells(batch))
    drawn = [rng.choice(np.flatnonzero(stratum == i), part.drawn, replace=False) for i, part in enumerate(designed)]
    members = np.concatenate(drawn)
    return Design(stratum[members], np.array([part.rows for part in designed], float)), members


def estimate(design, members, truth, scores, group=None, power=None, certainty=0.95):
    """Estimate the share in a group of the corpus (bool by row), or in all of it."""
    group = np.ones(len(truth), bool) if group is None else group
    y, f = truth[members], scores[members]
    power = tune_power(design, y[:, None], f[:, None]) if power is None else power
    return estimate_mean(design, y, f, group[members], scores[group].mean(), power, certainty)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_intervals_hold_the_share_as_often_as_asked(share):
    rng = np.random.default_rng(round(100 * share))
    held, errors, widths, bare = [], [], [], []
    for _ in range(2 * CORPORA):  # with fewer a coverage of 0.975 may look like 0.985
        truth, scores = make_corpus(rng, share)
        result = estimate(*draw(rng, scores, 50), truth, scores)
        held.append(result.low <= truth.mean() <= result.high)
        errors.append(result.value - truth.mean())
        widths.append(result.high - result.low)
        bare.append((scores >= 0.5).mean() - truth.mean())
    assert 0.93 <= np.mean(held) <= 0.98
    assert abs(np.mean(errors)) < 3 * np.std(errors) / len(errors) ** 0.5 + 1e-9  # unbiased
    assert np.mean(widths) < 2 * 1.96 * np.sqrt(share * (1 - share) / 50)  # narrower than from the labels alone
    if share != 0.5:
        assert abs(np.mean(bare)) > 3 * abs(np.mean(errors))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_intervals_hold_for_groups_that_cut_strata(share):
    rng = np.random.default_rng(round(100 * share) + 1)
    held, errors = [], []
    for _ in range(CORPORA):
        truth, scores = make_corpus(rng, share)
        group = rng.random(ROWS) < 0.3 + 0.4 * truth  # has other shares than the corpus
        result = estimate(*draw(rng, scores, 150), truth, scores, group)
        held.append(result.low <= truth[group].mean() <= result.high)
        errors.append(result.value - truth[group].mean())
    assert 0.93 <= np.mean(held) <= 0.985
    assert abs(np.mean(errors)) < 0.01


def test_an_estimate_without_power_is_the_stratified_mean():
    design = Design(np.array([0, 0, 1, 1, 1]), np.array([10.0, 90.0]))
    truth, everyone = np.array([1.0, 0, 1, 1, 0]), np.ones(5, bool)
    result = estimate_mean(design, truth, np.full(5, 0.5), everyone, 0.5, 0.0, 0.95)
    assert result.value == pytest.approx(0.1 * 0.5 + 0.9 * 2 / 3)


def test_a_whole_population_leaves_no_doubt():
    truth = np.array([1.0, 0, 1, 1])
    design = Design(np.zeros(4, int), np.array([4.0]))
    result = estimate_mean(design, truth, np.full(4, 0.9), np.ones(4, bool), 0.9, 1.0, 0.95)
    assert (result.low, result.value, result.high) == pytest.approx((0.75, 0.75, 0.75))


def test_a_few_rows_without_errors_leave_doubt():
    design = Design(np.zeros(10, int), np.array([1e6]))
    scores = np.full(10, 0.9)
    result = estimate_mean(design, np.ones(10), scores, np.ones(10, bool), 0.9, 1.0, 0.95)
    assert result.value == pytest.approx(1.0)
    assert 0.8 < result.low < 0.97


def test_scores_without_information_are_not_relied_on():
    rng = np.random.default_rng(0)
    design = Design(np.zeros(200, int), np.array([1e5]))
    truth = (rng.random(200) < 0.5).astype(float)
    assert tune_power(design, truth[:, None], rng.random((200, 1))) < 0.2
    assert tune_power(design, truth[:, None], truth[:, None]) == pytest.approx(1.0)


def test_certainty_widens_the_interval():
    rng = np.random.default_rng(1)
    truth, scores = make_corpus(rng, 0.3)
    design, members = draw(rng, scores, 60)
    results = [estimate(design, members, truth, scores, certainty=certainty) for certainty in (0.8, 0.95, 0.99)]
    widths = [result.high - result.low for result in results]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


def test_a_stratum_with_one_labelled_row_keeps_its_weight():
    rng, values, held = np.random.default_rng(4), [], []
    rates, rows = np.array([0.02, 0.5]), np.array([20_000.0, 450.0])
    stratum = np.array([0] + [1] * 11)
    true = float((rates * rows).sum() / rows.sum())
    for _ in range(2_000):
        truth = (rng.random(12) < rates[stratum]).astype(float)
        result = estimate_mean(Design(stratum, rows), truth, np.zeros(12), np.ones(12, bool), 0.0, 0.0, 0.95)
        values.append(result.value)
        held.append(result.low <= true <= result.high)
    assert np.mean(values) == pytest.approx(true, abs=0.01)
    assert np.mean(held) > 0.93


def test_rows_with_very_different_weights_count_as_few():
    stratum = np.array([0] * 60 + [1] * 3)
    design, members = Design(stratum, np.array([600.0, 4_000.0])), np.ones(63, bool)
    assert effective_rows(design, members) < 5
    assert effective_rows(design, stratum == 0) == pytest.approx(60)
