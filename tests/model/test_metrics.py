"""Metrics against their definitions, and calibration against a temperature that is known."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score

from sentiment_core.model import calibration, metrics, multi_label

RNG = np.random.default_rng(0)


def draw(rows: int, classes: int, temperature: float = 1.0):
    """Logits `temperature` times too large, and labels drawn from the probabilities without that."""
    logits = RNG.normal(0, 2, (rows, classes))
    labels = np.array([RNG.choice(classes, p=p) for p in metrics.softmax(logits)])
    return logits * temperature, labels


def test_metrics_are_those_of_scikit_learn():
    logits, labels = draw(500, 3)
    probabilities = metrics.softmax(logits)
    found = metrics.evaluate(probabilities, labels, ["a", "b", "c"])
    predicted = probabilities.argmax(axis=1)
    assert found.n == 500
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    one_hot = np.eye(3)[labels]
    assert found.brier == pytest.approx(sum(brier_score_loss(one_hot[:, c], probabilities[:, c]) for c in range(3)))
    assert found.confusion[0][1] == int(((labels == 0) & (predicted == 1)).sum())  # rows true, columns predicted


def test_calibration_error_of_a_known_case():
    # 10 rows of confidence 0.9 of which 6 are right, 10 of 0.6 of which 6 are right
    probabilities = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    labels = np.array(([0] * 6 + [1] * 4) * 2)
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(0.15)


def test_what_abstaining_gains_of_a_known_case():
    # confidences 0.9 (right), 0.8 (right), twice 0.7 (one right), 0.6 (wrong)
    probabilities = np.array([[0.7, 0.3], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    targets = np.array([0, 0, 1, 1, 1])
    curve = metrics.risk_coverage(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets)
    assert curve.min_confidence == [0.9, 0.8, 0.7, 0.6]
    assert curve.coverage == [0.2, 0.4, 0.8, 1.0]
    assert curve.accuracy == [1.0, 1.0, 0.75, 0.6]
    logits, labels = draw(5_000, 3)
    curve = metrics.evaluate(metrics.softmax(logits), labels, ["a", "b", "c"]).risk_coverage
    assert len(curve.coverage) == metrics.CURVE_POINTS
    assert curve.accuracy[-1] == (logits.argmax(axis=1) == labels).mean()
    assert curve.coverage[-1] == 1.0


def test_the_table_of_labels_stays_in_columns_and_short():
    """With more labels than fit on a screen it lists the pairs that are confused most often."""
    names = ["no", "disappointment"]
    table = metrics.evaluate(np.array([[0.7, 0.3], [0.4, 0.6]]), np.array([0, 0]), names).table()
    assert table == [
        "true \\ predicted        no disappointment",
        "              no         1              1",
        "  disappointment         0              0",
    ]
    labels, predicted = np.arange(1_000), np.arange(1_000)
    predicted[:3] = 7
    many = metrics.evaluate(np.eye(1_000)[predicted], labels, [f"topic {i}" for i in labels]).table()
    assert many == [
        "1 rows of topic 0 are taken for topic 7",
        "1 rows of topic 1 are taken for topic 7",
        "1 rows of topic 2 are taken for topic 7",
        "of 1,000 labels; the confusion matrix is among the metrics as JSON",
    ]


def test_a_class_that_is_missing_from_the_data_keeps_its_place():
    found = metrics.evaluate(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]), np.array([0, 2]), ["a", "b", "c"])
    assert found.confusion == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert found.macro_f1 == 1.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature):
    logits, labels = draw(20_000, 4, temperature)
    assert calibration.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_a_calibrated_model_has_little_calibration_error():
    logits, labels = draw(20_000, 3, 2.5)
    scaled = logits / calibration.fit_temperature(logits, labels)
    before, after = (metrics.expected_calibration_error(metrics.softmax(x), labels) for x in (logits, scaled))
    assert before > 0.1
    assert after < 0.02


def test_a_separable_set_gets_a_finite_temperature():
    temperature = calibration.fit_temperature(np.array([[5.0, -5.0], [-5.0, 5.0]]), np.array([0, 1]))
    assert temperature >= calibration.TEMPERATURE_RANGE[0]


def test_a_few_rows_move_the_temperature_little():
    """An untrained model: on 32 rows every temperature is a matter of chance."""
    logits, labels = draw(32, 2)
    flat = logits * 1e-3
    assert calibration.TEMPERATURE_RANGE[0] * 2 < calibration.fit_temperature(flat, labels)
    separable = np.where(np.eye(2)[labels] > 0, 3.0, -3.0)
    assert 0.2 < calibration.fit_temperature(separable, labels) < 1


def test_without_rows_nothing_is_calibrated():
    """One row has no other half to be cross-fitted by."""
    assert calibration.fit_temperature(np.zeros((0, 2)), np.zeros(0, int)) == 1
    fitted = calibration.fit(np.array([[3.0, 0.0]]), np.array([0]))
    assert fitted.rows == 1
    assert fitted.ece_cross_fitted == pytest.approx(fitted.ece_before)
    scales, shifts = multi_label.fit_scales(np.zeros((0, 3)), np.zeros((0, 3)))
    assert (scales.tolist(), shifts.tolist()) == ([1, 1, 1], [0, 0, 0])
    assert multi_label.fit_calibration(np.array([[3.0, 0.0]]), np.array([[True, False]])).rows == 1
