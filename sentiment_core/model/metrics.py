"""Metrics of single-label predictions: accuracy, F1, calibration error, Brier score, and what abstaining gains.

Throughout: `probabilities` is (n, classes) float, `targets` (n,) int with the true class.
"""

import numpy as np

BINS = 15  # of equal width, as in Guo et al. 2017
CURVE_POINTS = 100  # of a risk-coverage curve, at most


def evaluate(probabilities: np.ndarray, targets: np.ndarray, label_names: list[str], ordinal: bool = False) -> dict:
    """What a metrics file holds: n, accuracy, macro_f1, ece, brier, confusion (rows true, columns predicted), labels,
    reliability, risk_coverage.

    `macro_f1` is the mean over the classes that occur in `labels` or in the predictions. `brier` is the sum over the
    classes of squared differences, 0 to 2 (Brier 1950). Of `ordinal` labels, which are given in order, also `mae`:
    by how many labels the prediction is off, on average.
    """
    from sklearn.metrics import confusion_matrix, f1_score  # a second, which processes that only compute need not spend

    predicted = probabilities.argmax(axis=1)
    classes = np.arange(len(label_names))
    wanted = np.eye(len(label_names))[targets]
    return {
        "n": len(targets),
        "accuracy": float((predicted == targets).mean()),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
        "ece": expected_calibration_error(probabilities, targets),
        "brier": float(((probabilities - wanted) ** 2).sum(axis=1).mean()),
        "confusion": confusion_matrix(targets, predicted, labels=classes).tolist(),
        "labels": list(label_names),
        "reliability": reliability(probabilities, targets),
        "risk_coverage": risk_coverage(probabilities, targets),
    } | ({"mae": float(np.abs(predicted - targets).mean())} if ordinal else {})


def reliability(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, list[float]]:
    """Points of a reliability diagram: for each bin of confidence that is not empty its mean confidence, its accuracy
    and its number of rows."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    used = count > 0
    return {
        "confidence": (np.bincount(bins, confidence, BINS)[used] / count[used]).tolist(),
        "accuracy": (np.bincount(bins, right, BINS)[used] / count[used]).tolist(),
        "rows": count[used].tolist(),
    }


def risk_coverage(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, list[float]]:
    """Points of a risk-coverage curve (Geifman and El-Yaniv 2017): for thresholds `min_confidence`, from high to low,
    the share of rows with at least that confidence, and the accuracy on them."""
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    confidence, right = confidence[order], (probabilities.argmax(axis=1) == targets)[order]
    last = np.append(confidence[1:] < confidence[:-1], True)  # rows of the same confidence stay together
    kept = np.flatnonzero(last) + 1
    kept = kept[np.unique(np.linspace(0, len(kept) - 1, CURVE_POINTS).round().astype(int))]
    return {
        "min_confidence": confidence[kept - 1].tolist(),
        "coverage": (kept / len(targets)).tolist(),
        "accuracy": (np.cumsum(right)[kept - 1] / kept).tolist(),
    }


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over bins of confidence, weighted by rows (Guo et al. 2017)."""
    points = {name: np.array(values) for name, values in reliability(probabilities, targets).items()}
    return float((np.abs(points["confidence"] - points["accuracy"]) * points["rows"]).sum() / len(targets))


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean negative log likelihood in nats. `logits` is (n, classes)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_probability[np.arange(len(targets)), targets].mean())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Turn logits (n, classes) into probabilities in float64."""
    from scipy import special  # a fifth of a second, which reading a bundle's settings need not spend

    return special.softmax(logits.astype(np.float64), axis=1)
