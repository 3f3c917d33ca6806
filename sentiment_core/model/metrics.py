"""Metrics of single-label predictions: accuracy, F1, calibration error, Brier score, and what abstaining gains.

Throughout: `probabilities` is (n, classes) float, `targets` (n,) int with the true class. `weights` (n,) float are the
rows of a corpus that each row stands for; without them each stands for itself. Counts are then rows of the corpus.
"""

import numpy as np

from sentiment_core.model.records import Metrics, Reliability, RiskCoverage

BINS = 15  # of equal width, as in Guo et al. 2017
CURVE_POINTS = 100  # of a risk-coverage curve, at most


def evaluate(
    probabilities: np.ndarray,
    targets: np.ndarray,
    label_names: list[str],
    ordinal: bool = False,
    weights: np.ndarray | None = None,
) -> Metrics:
    """Compute all metrics of labelled rows; the mean absolute error only of `ordinal` labels, given in their order.

    The Brier score is that for several classes, from 0 to 2 (Brier 1950).
    """
    from sklearn.metrics import confusion_matrix, f1_score  # a second, which processes that only compute need not spend

    predicted = probabilities.argmax(axis=1)
    confidence, correct = probabilities.max(axis=1), predicted == targets
    classes = np.arange(len(label_names))
    one_hot = np.eye(len(label_names))[targets]
    confusion = confusion_matrix(targets, predicted, labels=classes, sample_weight=weights)
    return Metrics(
        n=len(targets),
        accuracy=mean(correct, weights),
        macro_f1=float(f1_score(targets, predicted, average="macro", zero_division=0, sample_weight=weights)),
        ece=mean_calibration_gap(confidence, correct, weights),
        brier=mean(((probabilities - one_hot) ** 2).sum(axis=1), weights),
        confusion=np.rint(confusion).astype(int).tolist(),
        labels=list(label_names),
        reliability=reliability(confidence, correct, weights),
        risk_coverage=risk_coverage(confidence, correct, weights),
        mae=mean(np.abs(predicted - targets), weights) if ordinal else None,
        population_rows=count_population(weights),
    )


def mean(values: np.ndarray, weights: np.ndarray | None) -> float:
    """Compute the mean of values, weighted if there are weights of the same shape."""
    return float(np.average(values, weights=weights))


def count_population(weights: np.ndarray | None) -> int | None:
    """Return how many rows weighted rows stand for; None without weights."""
    return None if weights is None else round(float(weights.sum()))


def reliability(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> Reliability:
    """Compute the points of a reliability diagram.

    Args:
        confidence: (n,) probability of an event, such as that the label is right.
        correct: (n,) bool, whether it came about.
        weights: (n,) or None.
    """
    mean_confidence, accuracy, rows = _fill_bins(confidence, correct, weights)
    return Reliability(mean_confidence.tolist(), accuracy.tolist(), np.rint(rows).astype(int).tolist())


def _fill_bins(
    confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean confidence, the accuracy and the rows of each bin that is not empty, (bins,) float64 each."""
    weights = np.ones(len(correct)) if weights is None else weights
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    rows = np.bincount(bins, weights, BINS)
    used = rows > 0
    mean_confidence, accuracy = (
        np.bincount(bins, values * weights, BINS)[used] / rows[used] for values in (confidence, correct)
    )
    return mean_confidence, accuracy, rows[used]


def risk_coverage(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> RiskCoverage:
    """Compute the points of a risk-coverage curve (Geifman and El-Yaniv 2017).

    Args:
        confidence: (n,) of each row's decision.
        correct: (n,) bool, whether the decision is right.
        weights: (n,) or None.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, correct = confidence[order], correct[order]
    weights = np.ones(len(order)) if weights is None else weights[order]
    covered = np.cumsum(weights)
    last_of_equals = np.append(confidence[1:] < confidence[:-1], True)  # rows of the same confidence stay together
    rows = np.flatnonzero(last_of_equals) + 1
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, CURVE_POINTS).round().astype(int))]
    return RiskCoverage(
        min_confidence=confidence[rows - 1].tolist(),
        coverage=(covered[rows - 1] / covered[-1]).tolist(),
        accuracy=(np.cumsum(correct * weights)[rows - 1] / covered[rows - 1]).tolist(),
    )


def mean_calibration_gap(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Compute the mean distance of confidence and accuracy over bins of confidence, weighted by their rows."""
    mean_confidence, accuracy, rows = _fill_bins(confidence, correct, weights)
    return float((np.abs(mean_confidence - accuracy) * rows).sum() / rows.sum())


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Compute the expected calibration error (Guo et al. 2017) of the most probable labels.

    `targets` are as in `cross_entropy`; of probabilities those of the most probable labels count as shares of right
    ones.
    """
    best = probabilities.argmax(axis=1)
    correct = best == targets if targets.ndim == 1 else targets[np.arange(len(targets)), best]
    return mean_calibration_gap(probabilities.max(axis=1), correct)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Compute the mean negative log likelihood in nats.

    Args:
        logits: (n, classes).
        targets: (n,) int, the class of each row; or (n, classes) float, the probability of each.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    if targets.ndim == 2:
        return float(-(log_probability * targets).sum(axis=1).mean())
    return float(-log_probability[np.arange(len(targets)), targets].mean())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (n, classes) into probabilities in float64."""
    from scipy import special  # a fifth of a second, which reading a bundle's settings need not spend

    return special.softmax(logits.astype(np.float64), axis=1)
