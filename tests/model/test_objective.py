"""The single-label objective against its definitions."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import cross_entropy

from sentiment_core.model import calibration, metrics, multi_label
from sentiment_core.model.objective import MultiLabel, SingleLabel

PROBABILITIES = np.array([[0.2, 0.8], [np.nan, np.nan], [0.6, 0.4], [0.5, 0.5]], np.float32)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


TARGETS = torch.tensor([0, 1, 2, 2, 1, 0])
EQUAL = torch.ones(3)


def test_probabilities_are_in_float64_and_sum_to_one(logits):
    probabilities = SingleLabel().activate(logits.numpy())
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_allclose(probabilities, logits.softmax(dim=1).numpy(), rtol=1e-5)


def test_row_losses_are_smoothed_and_weighted_cross_entropies(logits):
    weights = torch.tensor([1.0, 2.0, 0.5])
    expected = cross_entropy(logits, TARGETS, reduction="none", label_smoothing=0.1) * weights[TARGETS]
    assert torch.equal(SingleLabel().row_losses(logits, TARGETS, weights, 0.1), expected)


def test_focal_loss_weighs_a_row_by_what_its_label_lacks(logits):
    plain = SingleLabel().row_losses(logits, TARGETS, EQUAL)
    focal = SingleLabel().row_losses(logits, TARGETS, EQUAL, focal_gamma=2.0)
    target_probability = logits.softmax(dim=1)[torch.arange(6), TARGETS]
    torch.testing.assert_close(focal, plain * (1 - target_probability) ** 2)


def test_focal_loss_has_finite_gradients_where_the_label_is_certain():
    logits = torch.tensor([[100.0, -100.0]], requires_grad=True)
    SingleLabel().row_losses(logits, torch.tensor([0]), torch.ones(2), focal_gamma=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_the_decision_is_the_most_probable_label_and_the_first_of_equal_ones():
    indices, confidence = SingleLabel().decide(PROBABILITIES)
    assert indices[[0, 2, 3]].tolist() == [1, 0, 0]
    np.testing.assert_array_equal(confidence, np.array([0.8, np.nan, 0.6, 0.5], np.float32))


def test_labels_are_counted_in_their_order_with_zeros():
    assert SingleLabel().count_labels(np.array([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])).tolist() == [0, 2, 0]
    assert SingleLabel().count_labels(np.empty((0, 3))).tolist() == [0, 0, 0]


def test_two_models_decide_alike_where_their_labels_are_the_same():
    others = np.array([[0.4, 0.6], [0.3, 0.7]])
    assert SingleLabel().same_decision(np.array([[0.1, 0.9], [0.9, 0.1]]), others).tolist() == [True, False]


def test_columns_have_null_where_there_is_no_score_and_no_label_where_the_model_abstained():
    has_label = np.array([True, True, True, False])
    columns = SingleLabel().output_columns(PROBABILITIES, has_label, ["no", "yes"], with_probabilities=True)
    assert list(columns) == ["label", "confidence", "probabilities"]
    assert columns["label"].type == pa.dictionary(pa.int32(), pa.string())
    assert columns["label"].to_pylist() == ["yes", None, "no", None]
    assert columns["confidence"].type == pa.float32()
    assert columns["confidence"].to_pylist() == [np.float32(0.8), None, np.float32(0.6), 0.5]
    assert columns["probabilities"].type == pa.list_(pa.float32(), 2)
    assert columns["probabilities"].to_pylist()[1:] == [None, [np.float32(0.6), np.float32(0.4)], [0.5, 0.5]]
    assert list(SingleLabel().output_columns(PROBABILITIES, has_label, ["no", "yes"], False)) == ["label", "confidence"]


def test_ordinal_labels_also_get_a_mean_absolute_error():
    probabilities, targets = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]), np.array([2, 2])
    assert SingleLabel().evaluate(probabilities, targets, ["a", "b", "c"]).mae is None
    assert SingleLabel(ordinal=True).evaluate(probabilities, targets, ["a", "b", "c"]).mae == 1.0


def test_a_folded_calibration_gives_the_calibrated_logits():
    rng = np.random.default_rng(0)
    states = rng.normal(0, 3, (400, 4)).astype(np.float32)
    layer = torch.nn.Linear(4, 3)
    with torch.inference_mode():
        logits = layer(torch.from_numpy(states)).numpy() * 4
    targets = np.array([rng.choice(3, p=p) for p in metrics.softmax(logits / 4)])
    objective = SingleLabel()
    fitted = objective.fit_calibration(logits, targets)
    assert fitted.temperature == calibration.fit_temperature(logits, targets) == pytest.approx(4, rel=0.3)
    assert fitted.rows == 400
    assert fitted.ece_after < fitted.ece_before
    after = objective.activate(objective.calibrate(logits, fitted))
    assert fitted.ece_after == objective.evaluate(after, targets, ["a", "b", "c"]).ece
    with torch.no_grad():
        layer.weight.mul_(4)
        layer.bias.mul_(4)
        objective.fold_calibration(layer, fitted)
        folded = layer(torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(folded, objective.calibrate(logits, fitted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0}])
def test_certain_probabilities_lose_what_labels_lose(logits, settings):
    weights = torch.tensor([1.0, 2.0, 0.5])
    certain = torch.nn.functional.one_hot(TARGETS, 3).float()
    losses = SingleLabel().row_losses(logits, TARGETS, weights, **settings)
    torch.testing.assert_close(SingleLabel().row_losses(logits, certain, weights, **settings), losses)
    several = MultiLabel().row_losses(logits, certain.bool(), weights, **settings)
    torch.testing.assert_close(MultiLabel().row_losses(logits, certain, weights, **settings), several)


def test_the_loss_of_probabilities_is_least_where_the_model_has_them(logits):
    soft = logits.softmax(dim=1)
    least = SingleLabel().row_losses(logits, soft, EQUAL)
    torch.testing.assert_close(least, -(soft * soft.log()).sum(dim=1))
    assert (SingleLabel().row_losses(logits + torch.randn(6, 3), soft, EQUAL) > least).all()
    wanted = logits.sigmoid()
    assert (MultiLabel().row_losses(logits + 1, wanted, EQUAL) > MultiLabel().row_losses(logits, wanted, EQUAL)).all()


@pytest.mark.parametrize(
    ("weights", "settings", "expected"),
    [
        # -(0.7 ln 0.75 + 0.3 ln 0.25); smoothed the targets are 0.68 and 0.32; the mean weight is 0.7 * 1 + 0.3 * 3;
        # the targets' mean probability is 0.7 * 0.75 + 0.3 * 0.25 = 0.6
        ([1.0, 1.0], {}, 0.617266),
        ([1.0, 1.0], {"label_smoothing": 0.1}, 0.639238),
        ([1.0, 3.0], {}, 0.617266 * 1.6),
        ([1.0, 1.0], {"focal_gamma": 2.0}, 0.617266 * 0.16),
    ],
)
def test_the_loss_of_probabilities_is_the_one_computed_by_hand(weights, settings, expected):
    logits, targets = torch.tensor([[np.log(3), 0.0]]).float(), torch.tensor([[0.7, 0.3]])
    loss = SingleLabel().row_losses(logits, targets, torch.tensor(weights), **settings)
    assert loss.tolist() == pytest.approx([expected], rel=1e-5)


def test_calibration_on_probabilities_gives_a_student_its_teachers_confidences():
    sure = np.random.default_rng(0).normal(0, 3, (500, 3))  # logits of the student
    teacher = metrics.softmax(sure / 4).astype(np.float32)
    fitted = SingleLabel().fit_calibration(sure, teacher)
    assert fitted.temperature == pytest.approx(4, rel=0.06)  # which the prior draws towards 1
    assert fitted.ece_after < 0.01 < 0.2 < fitted.ece_before
    assert SingleLabel().fit_calibration(sure, teacher.argmax(axis=1)).temperature < 0.1  # what labels ask for
    several = MultiLabel().fit_calibration(sure, multi_label.sigmoid(sure / 4 + 1).astype(np.float32))
    np.testing.assert_allclose(several.scales, [0.25] * 3, rtol=0.15)
    np.testing.assert_allclose(several.shifts, [1] * 3, rtol=0.15)
    assert several.ece_after < 0.02 < several.ece_before
