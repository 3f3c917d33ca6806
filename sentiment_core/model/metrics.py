"""Metrics of single-label predictions: accuracy, F1, calibration error, Brier score, and what abstaining gains.

Throughout: `probabilities` is (n, classes) float, `targets` (n,) int with the true class.
"""

import numpy as np

from sentiment_core.model.records import Metrics, Reliability, RiskCoverage

BINS = 15  # of equal width, as in Guo et al. 2017
CURVE_POINTS = 100  # of a risk-coverage curve, at most


def evaluate(probabilities: np.ndarray, targets: np.ndarray, label_names: list[str], ordinal: bool = False) -> Metrics:
    """Compute all metrics of labelled rows; the mean absolute error only of `ordinal` labels, given in their order.

    The Brier score is that for several classes, from 0 to 2 (Brier 1950).
    """
    from sklearn.metrics import confusion_matrix, f1_score  # a second, which processes that only compute need not spend

    predicted = probabilities.argmax(axis=1)
    confidence, correct = probabilities.max(axis=1), predicted == targets
    classes = np.arange(len(label_names))
    one_hot = np.eye(len(label_names))[targets]
    return Metrics(
        n=len(targets),
        accuracy=float(correct.mean()),
        macro_f1=float(f1_score(targets, predicted, average="macro", zero_division=0)),
        ece=mean_calibration_gap(confidence, correct),
        brier=float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
        confusion=confusion_matrix(targets, predicted, labels=classes).tolist(),
        labels=list(label_names),
        reliability=reliability(confidence, correct),
        risk_coverage=risk_coverage(confidence, correct),
        mae=float(np.abs(predicted - targets).mean()) if ordinal else None,
    )


def reliability(confidence: np.ndarray, correct: np.ndarray) -> Reliability:
    """Compute the points of a reliability diagram.

    Args:
        confidence: (n,) probability of an event, such as that the label is right.
        correct: (n,) bool, whether it came about.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    used = count > 0
    return Reliability(
        confidence=(np.bincount(bins, confidence, BINS)[used] / count[used]).tolist(),
        accuracy=(np.bincount(bins, correct, BINS)[used] / count[used]).tolist(),
        rows=count[used].tolist(),
    )


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """Compute the points of a risk-coverage curve (Geifman and El-Yaniv 2017).

    Args:
        confidence: (n,) of each row's decision.
        correct: (n,) bool, whether the decision is right.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, correct = confidence[order], correct[order]
    last_of_equals = np.append(confidence[1:] < confidence[:-1], True)  # rows of the same confidence stay together
    rows = np.flatnonzero(last_of_equals) + 1
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, CURVE_POINTS).round().astype(int))]
    return RiskCoverage(
        min_confidence=confidence[rows - 1].tolist(),
        coverage=(rows / len(correct)).tolist(),
        accuracy=(np.cumsum(correct)[rows - 1] / rows).tolist(),
    )


def mean_calibration_gap(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Compute the mean distance of confidence and accuracy over bins of confidence, weighted by their rows."""
    points = reliability(confidence, correct)
    gaps = np.abs(np.array(points.confidence) - np.array(points.accuracy))
    return float((gaps * np.array(points.rows)).sum() / len(correct))


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Compute the expected calibration error (Guo et al. 2017) of the most probable labels."""
    return mean_calibration_gap(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Compute the mean negative log likelihood in nats; `logits` is (n, classes)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_probability[np.arange(len(targets)), targets].mean())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (n, classes) into probabilities in float64."""
    from scipy import special  # a fifth of a second, which reading a bundle's settings need not spend

    return special.softmax(logits.astype(np.float64), axis=1)
