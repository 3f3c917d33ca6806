"""Thresholds that promise an accuracy: known values, ties, few rows, each label, and the promise over many draws."""

import json

import numpy as np
import pytest
from scipy import stats

from sentiment_core.errors import UserError
from sentiment_core.model.binomial_bounds import lower_bound
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.guarantee import (
    COVERAGES,
    STARTS,
    check_settings,
    count_above,
    derive_threshold,
    make_grid,
    promise,
    promise_by_label,
)
from sentiment_core.model.objective import MultiLabel, SingleLabel
from sentiment_core.model.records import Guarantee, GuaranteeGrid

DRAWS = 500


def population(rows: int, seed: int, decimals: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Draw confidences from 0.5 to 1, and rows that are right a little less often than these say."""
    rng = np.random.default_rng(seed)
    confidence = (1 - 0.5 * rng.random(rows) ** 2).round(decimals).astype(np.float32)
    return confidence, rng.random(rows) < confidence - 0.02


def test_the_bound_is_the_one_of_the_beta_distribution():
    right, rows = np.array([0, 1, 50, 93, 100]), np.array([100, 100, 100, 100, 100])
    bounds = lower_bound(right, rows, 0.05)
    assert bounds[0] == 0
    np.testing.assert_allclose(bounds[1:], stats.beta.ppf(0.05, right[1:], rows[1:] - right[1:] + 1), rtol=1e-9)
    assert bounds[-1] == pytest.approx(0.05 ** (1 / 100))
    assert lower_bound(np.array([0]), np.array([0]), 0.05).tolist() == [0]


def test_the_grid_counts_the_rows_above_each_threshold():
    confidence, is_right = population(997, seed=0)
    grid = count_above(confidence, is_right, comparisons=3)
    assert (grid.rows, grid.comparisons) == (997, 3)
    assert len(grid.min_confidence) == COVERAGES
    assert grid.min_confidence == sorted(grid.min_confidence, reverse=True)
    assert (grid.min_confidence[-1], grid.rows_above[-1], grid.right_above[-1]) == (0, 997, is_right.sum())
    for i, threshold in enumerate(grid.min_confidence):
        labelled = confidence >= np.float32(threshold)  # as scoring compares
        assert grid.rows_above[i] == labelled.sum() == 997 * (i + 1) // COVERAGES
        assert grid.right_above[i] == is_right[labelled].sum()
    assert GuaranteeGrid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


def test_equal_confidences_stay_on_one_side_of_a_threshold():
    confidence = np.repeat(np.float32([0.6, 0.8, 1.0]), [30, 50, 20])
    grid = count_above(confidence, np.ones(100, bool))
    assert set(grid.rows_above) == {0, 20, 70, 100}
    # the threshold is above the statistic itself, whose row was not drawn independently of it
    assert [grid.rows_above[i] for i in (2, 3, 12, 13)] == [0, 20, 20, 70]
    assert grid.min_confidence[3] == np.nextafter(np.float32(0.8), np.float32(1))
    assert grid.rows_above[0] == 0  # a fifth of the rows has confidence 1, and no threshold is above that
    assert promise(grid, 0.5, 0.95).min_confidence == 0


def test_the_least_threshold_whose_bound_reaches_the_target_is_taken():
    confidence, is_right = population(4000, seed=1)
    grid = count_above(confidence, is_right, comparisons=3)
    bounds = stats.beta.ppf(
        0.05 / (len(STARTS) * 3), grid.right_above, np.array(grid.rows_above) - np.array(grid.right_above) + 1
    )
    promised = promise(grid, 0.9, 0.95)
    best = int(np.flatnonzero(bounds >= 0.9)[-1])
    assert 0 < best < COVERAGES - 1
    assert promised == Guarantee(
        target=0.9,
        certainty=0.95,
        min_confidence=grid.min_confidence[best],
        share_labelled=grid.rows_above[best] / 4000,
        rows=4000,
        accuracy=grid.right_above[best] / grid.rows_above[best],
    )
    assert promised.min_confidence > promise(grid, 0.8, 0.95).min_confidence
    assert promised.min_confidence <= promise(grid, 0.9, 0.9999).min_confidence
    assert "labels" in promised.describe()
    assert repr(promised.min_confidence) in promised.describe()


def test_thresholds_are_tested_from_each_start_up_to_the_first_that_fails():
    """Else one of the many that fail would be taken by chance."""
    rows = np.arange(1, COVERAGES + 1) * 500

    def least(failing: set[int]) -> float | None:
        right = [n - (n // 5 if i in failing else n // 100) for i, n in enumerate(rows)]
        grid = GuaranteeGrid(10_000, 1, (1 - np.arange(COVERAGES) / 100).tolist(), rows.tolist(), right)
        return promise(grid, 0.95, 0.95).min_confidence

    assert least(set()) == 0.81
    assert least({7}) == 0.81
    assert least({15, 19}) == 0.86  # the last before it
    assert least({7, 14, 19}) == 0.87
    assert least({6, 9, 14, 19}) == 0.95  # 7 and 8 are right, but no sequence reaches them
    assert least({0, 4, 9, 14}) == 0.81  # all rows together
    assert least({*STARTS}) is None


@pytest.mark.parametrize(("rows", "comparisons"), [(0, 1), (1, 1), (7, 1), (89, 1), (90, 1), (111, 3), (112, 3)])
def test_too_few_rows_promise_nothing_and_say_how_many_would(rows, comparisons):
    """All rows are right, so that the least number for 0.95 is the logarithm of the level over that of 0.95."""
    grid = count_above(np.linspace(0.6, 0.9, rows, dtype=np.float32), np.ones(rows, bool), comparisons)
    promised = promise(grid, 0.95, 0.95)
    least = {1: 90, 3: 112}[comparisons]
    if rows >= least:
        assert (promised.min_confidence, promised.share_labelled, promised.reason) == (0, 1, None)
    else:
        assert (promised.min_confidence, promised.share_labelled) == (None, 0)
        assert f"{rows} evaluation rows are too few" in promised.reason
        assert f"needs at least {least}" in promised.reason
        content = promised.to_json()
        assert (content["min_confidence"], content["reason"], content["rows"]) == (None, promised.reason, rows)


def test_a_target_out_of_reach_says_what_can_be_promised():
    confidence, is_right = population(2000, seed=2)
    grid = count_above(confidence, is_right & (np.arange(2000) % 10 > 0))
    promised = promise(grid, 0.95, 0.95)
    assert promised.min_confidence is None
    best = float(promised.reason.partition("at most accuracy ")[2].partition(" ")[0])
    assert 0.7 < best < 0.95
    assert promise(grid, best, 0.95).min_confidence is not None
    assert promise(grid, best + 1e-3, 0.95).min_confidence is None
    assert promised.describe().startswith("no threshold promises accuracy 0.95 with certainty 0.95: from 2,000")


@pytest.mark.parametrize("decimals", [7, 2])
@pytest.mark.parametrize(("rows", "target"), [(300, 0.8), (1000, 0.9)])
def test_the_promise_holds_over_draws_from_a_population(rows, target, decimals):
    """Where confidences are rounded to two decimals, most rows share theirs with others."""
    confidence, is_right = population(100_000, seed=3, decimals=decimals)
    rng = np.random.default_rng(4)
    accuracies = []
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(confidence), rows)
        threshold = promise(count_above(confidence[drawn], is_right[drawn]), target, 0.95).min_confidence
        if threshold is not None:
            accuracies.append(is_right[confidence >= np.float32(threshold)].mean())
    assert len(accuracies) > DRAWS / 2
    assert np.mean(np.array(accuracies) >= target) >= 0.95


def test_each_label_gets_a_threshold_for_its_precision_and_all_hold_together():
    rng = np.random.default_rng(5)
    targets = rng.choice(3, 50_000, p=[0.6, 0.35, 0.05])
    logits = rng.normal(size=(50_000, 3)) + np.array([2.5, 1.5, 0.5])[targets, None] * np.eye(3)[targets]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels, objective = ["a", "b", "c"], SingleLabel()
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1).astype(np.float32)
    broken = 0
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(targets), 800)
        promised = promise_by_label(objective, probabilities[drawn], targets[drawn], labels, 0.85, 0.95)
        thresholds = [promised[label].min_confidence for label in labels]
        broken += any(
            (targets[(predicted == i) & (confidence >= np.float32(t))] == i).mean() < 0.85
            for i, t in enumerate(thresholds)
            if t is not None
        )
    assert broken <= 0.05 * DRAWS
    assert list(promised) == labels
    assert promised["a"].min_confidence is not None
    assert promised["a"].rows == (predicted[drawn] == 0).sum()
    above = (predicted[drawn] == 0) & (confidence[drawn] >= np.float32(promised["a"].min_confidence))
    assert promised["a"].share_labelled == above.sum() / promised["a"].rows
    assert promised["a"].precision == (targets[drawn][above] == 0).mean()
    assert (promised["c"].min_confidence, promised["c"].precision) == (None, None)
    assert promised["c"].reason
    assert promised["c"].to_json()["min_confidence"] is None


def test_several_labels_a_row_are_promised_for_whole_rows_and_by_label():
    rng = np.random.default_rng(6)
    probabilities = rng.random((5000, 2)) ** np.array([0.2, 3.0])
    targets = rng.random((5000, 2)) < probabilities
    objective = MultiLabel((0.5, 0.4))
    chosen, confidence = objective.decide(probabilities.astype(np.float32))
    grid = make_grid(objective, probabilities, targets, comparisons=2)
    assert grid == count_above(confidence, (chosen == targets).all(axis=1), 2)
    promised = promise(grid, 0.8, 0.95)
    labelled = confidence >= np.float32(promised.min_confidence)
    assert promised.accuracy == (chosen == targets).all(axis=1)[labelled].mean()
    by_label = promise_by_label(objective, probabilities, targets, ["x", "y"], 0.8, 0.95)
    for i, label in enumerate(["x", "y"]):
        part, p = by_label[label], probabilities[:, i].astype(np.float32)
        above = chosen[:, i] & (p >= np.float32(part.min_confidence))
        assert part.rows == chosen[:, i].sum()
        assert part.share_labelled == above.sum() / part.rows
        assert part.precision == targets[above, i].mean() >= 0.8


def test_a_bundle_without_evaluation_rows_is_refused_with_the_remedies():
    old = BundleInfo.from_json({"format_version": 2, "head": "standard", "labels": ["a", "b"], "max_length": 8})
    assert old.guarantee == GuaranteeGrid()
    assert old.to_json()["guarantee"] == {}
    with pytest.raises(UserError, match=r"m notes no guarantee\. Run sentiment-core evaluate --target-accuracy"):
        derive_threshold("m", old, 0.95, 0.95)


def test_a_bundle_that_cannot_promise_the_target_is_refused_with_its_reason():
    grid = count_above(*population(500, seed=7))
    info = BundleInfo("standard", ["a", "b"], 8, guarantee=grid)
    assert derive_threshold("m", info, 0.8, 0.95) == promise(grid, 0.8, 0.95)
    with pytest.raises(UserError, match="cannot promise it: from 500 evaluation rows at most accuracy 0"):
        derive_threshold("m", info, 0.97, 0.95)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 95.0])
def test_targets_and_certainties_are_shares(value):
    with pytest.raises(UserError, match=r"--target-accuracy is .*; expected a share above 0 and below 1"):
        check_settings(value, 0.95)
    with pytest.raises(UserError, match=r"--certainty is .*; expected a probability above 0 and below 1"):
        check_settings(0.95, value)
