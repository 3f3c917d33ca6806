"""The multi-label objective against its definitions, scikit-learn, and a calibration that is known."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch.nn.functional import binary_cross_entropy_with_logits

from sentiment_core.errors import UserError
from sentiment_core.model import multi_label
from sentiment_core.model.multi_label_records import MultiLabelMetrics
from sentiment_core.model.objective import MultiLabel, SingleLabel
from sentiment_core.model.records import EpochRecord, MultiLabelScores

NAMES = ["anger", "joy", "love"]
PROBABILITIES = np.array([[0.2, 0.9, 0.6], [np.nan] * 3, [0.1, 0.3, 0.2], [0.8, 0.7, 0.05]], np.float32)


def draw(rows: int, scales=(1.0, 1.0, 1.0), shifts=(0.0, 0.0, 0.0), means=(-2.0, 0.0, 1.0), seed: int = 0):
    """Logits that need these scales and shifts, and labels drawn from the probabilities with them."""
    rng = np.random.default_rng(seed)
    right = rng.normal(0, 2, (rows, 3)) + np.array(means)
    targets = rng.random((rows, 3)) < multi_label.sigmoid(right)
    return (right - np.array(shifts)) / np.array(scales), targets


def test_probabilities_are_sigmoids_in_float64():
    probabilities = MultiLabel().activate(np.array([[0.0, 2.0]], np.float32))
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities, [[0.5, 1 / (1 + np.exp(-2))]])


def test_the_loss_is_transformers_own_and_weights_smoothing_and_focus_change_it():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) < 0.5
    plain = MultiLabel().row_losses(logits, targets, torch.ones(3))
    torch.testing.assert_close(plain.mean(), binary_cross_entropy_with_logits(logits, targets.float()))
    log_p = torch.where(targets, logits, -logits).sigmoid().log()
    weights = torch.tensor([3.0, 1.0, 1.0])
    weighted = MultiLabel().row_losses(logits, targets, weights)
    torch.testing.assert_close(weighted, -(log_p * torch.where(targets, weights, torch.ones(3))).mean(dim=1))
    focal = MultiLabel().row_losses(logits, targets, torch.ones(3), focal_gamma=2.0)
    torch.testing.assert_close(focal, -((1 - log_p.exp()) ** 2 * log_p).mean(dim=1))
    smoothed = MultiLabel().row_losses(logits, targets, torch.ones(3), label_smoothing=0.2)
    expected = binary_cross_entropy_with_logits(logits, targets * 0.8 + 0.1, reduction="none").mean(dim=1)
    torch.testing.assert_close(smoothed, expected)


def test_focal_loss_has_finite_gradients_where_the_answer_is_certain():
    logits = torch.tensor([[100.0, -100.0]], requires_grad=True)
    targets = torch.tensor([[True, False]])
    MultiLabel().row_losses(logits, targets, torch.ones(2), focal_gamma=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_balanced_rows_with_a_label_count_as_much_as_those_without():
    assert MultiLabel().balance(np.array([20, 50, 0, 100]), 100).tolist() == [4.0, 1.0, 1.0, 1.0]


def test_a_new_head_begins_with_the_shares_of_the_labels():
    probabilities = MultiLabel().activate(MultiLabel().initial_bias(np.array([10, 500, 0]), 1000))
    np.testing.assert_allclose(probabilities, [0.01, 0.5, 0.0], atol=1e-3)
    assert probabilities[2] > 0
    assert not SingleLabel().initial_bias(np.array([1, 2]), 3).any()


def test_labels_above_their_thresholds_are_chosen_and_the_least_certain_decision_is_the_confidence():
    chosen, confidence = MultiLabel((0.5, 0.75, 0.55)).decide(PROBABILITIES)
    assert chosen.tolist() == [[False, True, True], [False] * 3, [False] * 3, [True, False, False]]
    np.testing.assert_allclose(confidence, [0.6, np.nan, 0.7, 0.3], rtol=1e-6)
    assert confidence.dtype == np.float32
    assert MultiLabel().decide(np.array([[0.5, 0.49]]))[0].tolist() == [[True, False]]  # 0.5 without thresholds


def test_rows_are_right_and_decided_alike_only_with_all_labels():
    objective = MultiLabel()
    decisions = np.array([[True, False], [True, True]])
    assert objective.is_right(decisions, np.array([[True, False], [True, False]])).tolist() == [True, False]
    others = np.array([[0.6, 0.4], [0.6, 0.4]])
    assert objective.same_decision(np.array([[0.9, 0.1], [0.9, 0.9]]), others).tolist() == [True, False]
    assert objective.count_labels(np.array([[0.9, 0.1], [0.9, 0.9]])).tolist() == [2, 1]
    assert objective.name_decision(decisions[1], ["a", "b"]) == "a, b"
    assert objective.name_decision(np.array([False, False]), ["a", "b"]) == "no label"


def test_columns_have_empty_lists_where_no_label_applies_and_null_where_there_is_no_answer():
    has_label = np.array([True, True, True, False])
    columns = MultiLabel().output_columns(PROBABILITIES, has_label, NAMES, with_probabilities=False)
    assert list(columns) == ["labels", "confidence", "probabilities"]
    assert columns["labels"].type == pa.list_(pa.string())
    assert columns["labels"].to_pylist() == [["joy", "love"], None, [], None]
    assert columns["confidence"].to_pylist() == pytest.approx([0.6, None, 0.7, 0.7])
    assert columns["probabilities"].type == pa.list_(pa.float32(), 3)
    assert columns["probabilities"].null_count == 1
    for column in columns.values():
        column.validate(full=True)


def test_metrics_are_those_of_scikit_learn():
    logits, targets = draw(600)
    objective = MultiLabel((0.3, 0.5, 0.6))
    probabilities = objective.activate(logits)
    chosen, confidence = objective.decide(probabilities)
    result = objective.evaluate(probabilities, targets, NAMES)
    assert (result.n, result.labels) == (600, NAMES)
    assert result.micro_f1 == pytest.approx(sklearn_metrics.f1_score(targets, chosen, average="micro"))
    assert result.macro_f1 == pytest.approx(sklearn_metrics.f1_score(targets, chosen, average="macro"))
    assert result.accuracy == result.exact_match == pytest.approx(sklearn_metrics.accuracy_score(targets, chosen))
    precision = sklearn_metrics.average_precision_score(targets, probabilities, average="macro")
    assert result.mean_average_precision == pytest.approx(precision)
    assert result.brier == pytest.approx(np.mean((probabilities - targets) ** 2))
    joy = result.by_label["joy"]
    assert (joy.rows, joy.predicted, joy.threshold) == (targets[:, 1].sum(), chosen[:, 1].sum(), 0.5)
    assert joy.recall == pytest.approx(sklearn_metrics.recall_score(targets[:, 1], chosen[:, 1]))
    assert joy.precision == pytest.approx(sklearn_metrics.precision_score(targets[:, 1], chosen[:, 1]))
    assert result.ece == pytest.approx(np.mean([label.ece for label in result.by_label.values()]))
    assert result.ece < 0.05  # the labels were drawn from these probabilities
    right = (chosen == targets).all(axis=1)
    assert result.risk_coverage.accuracy[-1] == pytest.approx(right.mean())
    assert result.risk_coverage.min_confidence[0] == confidence.max()


def test_a_label_that_is_missing_from_the_data_counts_in_no_mean():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.3]])
    result = MultiLabel().evaluate(probabilities, np.array([[True, False], [False, False]]), ["a", "b"])
    assert result.by_label["b"].average_precision is None
    assert (result.mean_average_precision, result.macro_f1, result.micro_f1) == (1.0, 1.0, 1.0)


def test_a_calibration_is_folded_wherever_the_layer_is():
    layer = torch.nn.Linear(3, 2, device="meta")
    multi_label.fold(layer, [2.0, 0.5], [1.0, -1.0])
    assert layer.weight.device.type == "meta"


def test_a_known_scale_and_shift_are_recovered_and_folded():
    scales, shifts = (0.5, 2.0, 1.0), (1.5, 0.0, -1.0)
    logits, targets = draw(20_000, scales, shifts)
    objective = MultiLabel()
    fitted = objective.fit_calibration(logits, targets)
    np.testing.assert_allclose(fitted.scales, scales, rtol=0.05)
    np.testing.assert_allclose(fitted.shifts, shifts, atol=0.1)
    assert fitted.ece_before > 0.05
    assert max(fitted.ece_after, fitted.ece_cross_fitted) < 0.015
    layer = torch.nn.Linear(4, 3)
    states = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = layer(states).numpy()
        objective.fold_calibration(layer, fitted)
        np.testing.assert_allclose(layer(states).numpy(), objective.calibrate(before, fitted), rtol=1e-5, atol=1e-5)


def test_few_or_separable_rows_move_a_calibration_little():
    logits, targets = np.array([[5.0], [-5.0]]), np.array([[True], [False]])
    fitted = MultiLabel().fit_calibration(logits, targets)
    assert 0.5 < fitted.scales[0] < 2
    assert abs(fitted.shifts[0]) < 0.1
    never = MultiLabel().fit_calibration(logits, np.zeros((2, 1), bool))
    assert np.isfinite([*never.scales, *never.shifts]).all()


def test_a_layer_without_bias_is_refused():
    with pytest.raises(UserError, match="--head mlp"):
        MultiLabel().check_last_layer(torch.nn.Linear(4, 3, bias=False))


def test_thresholds_have_the_best_f1_where_a_label_is_frequent_and_stay_near_a_half_where_it_is_rare():
    logits, targets = draw(20_000, means=(-4.0, -4.0, 0.0))
    targets[50:, 1] = False  # a handful of rows have it
    probabilities = multi_label.sigmoid(logits)
    thresholds = MultiLabel().fit_decision(probabilities, targets).thresholds
    grid = np.linspace(0.02, 0.98, 97)
    scores = [sklearn_metrics.f1_score(targets[:, 0], probabilities[:, 0] >= threshold) for threshold in grid]
    own = sklearn_metrics.f1_score(targets[:, 0], probabilities[:, 0] >= thresholds[0])
    assert own >= max(scores) - 0.005
    assert thresholds[0] < 0.45
    rows = int(targets[:, 1].sum())
    best = multi_label._best_threshold(probabilities[:, 1], targets[:, 1])
    shrunk = (rows * best + multi_label.THRESHOLD_PRIOR_ROWS * 0.5) / (rows + multi_label.THRESHOLD_PRIOR_ROWS)
    assert rows < 10
    assert thresholds[1] == pytest.approx(shrunk, abs=1e-4)
    assert MultiLabel().fit_decision(np.array([[0.1], [0.2]]), np.zeros((2, 1), bool)).thresholds == (0.5,)


def test_equal_probabilities_are_not_divided_by_a_threshold():
    p, target = np.array([0.3, 0.3, 0.3, 0.1]), np.array([True, False, False, False])
    assert multi_label._best_threshold(p, target) == pytest.approx(0.2)


def test_records_are_read_as_they_were_written():
    logits, targets = draw(100)
    objective = MultiLabel()
    result = objective.evaluate(objective.activate(logits), targets, NAMES)
    assert MultiLabelMetrics.from_json(json.loads(json.dumps(result.to_json()))) == result
    scores = objective.score_epoch(logits, targets, NAMES)
    assert scores.loss == pytest.approx(sklearn_metrics.log_loss(targets.ravel(), objective.activate(logits).ravel()))
    assert scores.micro_f1 >= result.micro_f1 - 0.02  # by thresholds that suit these rows
    record = EpochRecord(1, [1.0], 1.0, 100, scores, scores.value_of("accuracy"), "cpu", "float32")
    assert EpochRecord.from_json(record.to_json()) == record
    assert isinstance(EpochRecord.from_json(record.to_json()).eval, MultiLabelScores)
    assert record.selected_by == scores.micro_f1
    assert scores.value_of("loss") == -scores.loss


def test_a_model_that_gives_every_row_the_same_labels_is_said_to():
    targets = np.array([[True, True], [True, False], [True, True], [False, True]])
    constant = np.tile([0.9, 0.8], (4, 1))
    result = MultiLabel().evaluate(constant, targets, ["a", "b"])
    assert result.find_constant_answer() == f"always giving a, b (micro-F1 {result.micro_f1:.4f})"
    right = MultiLabel().evaluate(np.where(targets, 0.9, 0.1), targets, ["a", "b"])
    assert right.find_constant_answer() == ""
