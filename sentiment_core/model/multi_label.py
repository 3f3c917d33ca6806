"""Metrics, calibration and thresholds of multi-label predictions, label by label.

Throughout: `probabilities` and `logits` are (n, labels) float, `targets` (n, labels) bool. Each label is a question of
its own, answered by the sigmoid of its logit. `weights` are as in `metrics`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sentiment_core.model.metrics import count_population, mean, mean_calibration_gap, reliability, risk_coverage
from sentiment_core.model.multi_label_records import LabelCalibration, LabelMetrics, MultiLabelMetrics
from sentiment_core.model.records import MultiLabelScores

if TYPE_CHECKING:  # importing torch takes seconds; reading a bundle's settings does without
    from torch import nn

METHOD = "scale and shift by label, folded into the last linear layer"
SCALE_RANGE = (0.05, 20.0)  # a separable evaluation set would ask for an infinite scale
# Priors, in rows: as much as a few rows say, and nothing beside hundreds. The logarithm of a scale has a standard
# deviation of 0.5, as that of a temperature; a shift has one of 2, which class weights may ask for.
SCALE_PRIOR, SHIFT_PRIOR = 2.0, 0.125
# Rows with the label by which a threshold is drawn towards 0.5: with as many of its own it goes half of the way.
THRESHOLD_PRIOR_ROWS = 10
THRESHOLD_RANGE = (0.01, 0.99)


def evaluate(
    probabilities: np.ndarray,
    chosen: np.ndarray,
    confidence: np.ndarray,
    targets: np.ndarray,
    label_names: Sequence[str],
    thresholds: np.ndarray,
    weights: np.ndarray | None = None,
) -> MultiLabelMetrics:
    """Compute all metrics of labelled rows.

    Args:
        probabilities: (n, labels) float.
        chosen: (n, labels) bool, the labels that each row gets.
        confidence: (n,) of each row's decision.
        targets: (n, labels) bool.
        label_names: Labels in the order of the columns.
        thresholds: (labels,) by which `chosen` was decided.
        weights: (n,) or None.
    """
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        targets, chosen, average=None, zero_division=0, sample_weight=weights
    )
    rows, predicted = (_count(labels, weights) for labels in (targets, chosen))
    by_label = {
        name: LabelMetrics(
            rows=int(rows[i]),
            predicted=int(predicted[i]),
            threshold=float(thresholds[i]),
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
            average_precision=float(average_precision_score(targets[:, i], probabilities[:, i], sample_weight=weights))
            if targets[:, i].any()
            else None,
            ece=mean_calibration_gap(probabilities[:, i], targets[:, i], weights),
            reliability=reliability(probabilities[:, i], targets[:, i], weights),
        )
        for i, name in enumerate(label_names)
    }
    correct = (chosen == targets).all(axis=1)
    precisions = [label.average_precision for label in by_label.values() if label.average_precision is not None]
    return MultiLabelMetrics(
        n=len(targets),
        labels=list(label_names),
        micro_f1=micro_f1(chosen, targets, weights),
        macro_f1=_macro_f1(f1, (targets | chosen).any(axis=0)),
        mean_average_precision=float(np.mean(precisions)) if precisions else 0.0,
        exact_match=mean(correct, weights),
        ece=float(np.mean([label.ece for label in by_label.values()])),
        brier=mean(
            (probabilities - targets) ** 2, None if weights is None else np.tile(weights, (len(label_names), 1)).T
        ),
        risk_coverage=risk_coverage(confidence, correct, weights),
        by_label=by_label,
        population_rows=count_population(weights),
    )


def _count(labels: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Count the rows that have each label, (labels,); with weights rows of the corpus."""
    return labels.sum(axis=0) if weights is None else np.rint(weights @ labels)


def score_epoch(
    logits: np.ndarray, probabilities: np.ndarray, chosen: np.ndarray, targets: np.ndarray
) -> MultiLabelScores:
    """Compute the few metrics by which epochs are compared."""
    from sklearn.metrics import f1_score

    occurring = targets.sum(axis=0) + chosen.sum(axis=0) > 0
    return MultiLabelScores(
        loss=cross_entropy(logits, targets),
        micro_f1=micro_f1(chosen, targets),
        macro_f1=_macro_f1(f1_score(targets, chosen, average=None, zero_division=0), occurring),
        exact_match=float((chosen == targets).all(axis=1).mean()),
        ece=mean_label_error(probabilities, targets),
    )


def micro_f1(chosen: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Compute the F1 of all decisions together; 0 where there is no label on either side."""
    row_weights = np.ones(len(targets)) if weights is None else weights
    hits, labels = (
        row_weights @ (chosen & targets).sum(axis=1),
        row_weights @ (chosen.sum(axis=1) + targets.sum(axis=1)),
    )
    return float(2 * hits / max(1, labels))


def _macro_f1(f1: np.ndarray, occurring: np.ndarray) -> float:
    return float(f1[occurring].mean()) if occurring.any() else 0.0


def mean_label_error(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Compute the expected calibration error of each label's probability, and return the mean."""
    return float(np.mean([mean_calibration_gap(p, t) for p, t in zip(probabilities.T, targets.T, strict=True)]))


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Compute the mean binary cross entropy over rows and labels, in nats."""
    return float(_row_entropies(logits.astype(np.float64), targets).mean())


def _row_entropies(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - logits * targets


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Turn logits into probabilities in float64."""
    from scipy import special  # a fifth of a second, which reading a bundle's settings need not spend

    return special.expit(logits.astype(np.float64))


def choose_thresholds(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
    """Choose the threshold of each label for its F1, drawn towards 0.5 where few rows have the label."""
    thresholds = []
    for p, target in zip(probabilities.T, targets.T, strict=True):
        rows = int(target.sum())
        best = _best_threshold(p, target) if rows else 0.5
        shrunk = (rows * best + THRESHOLD_PRIOR_ROWS * 0.5) / (rows + THRESHOLD_PRIOR_ROWS)
        thresholds.append(round(float(np.clip(shrunk, *THRESHOLD_RANGE)), 4))
    return tuple(thresholds)


def _best_threshold(p: np.ndarray, target: np.ndarray) -> float:
    """Return the threshold with the greatest F1, halfway between the probabilities that it divides."""
    order = np.argsort(-p, kind="stable")
    p, hits = p[order], np.cumsum(target[order])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + hits[-1])
    f1[:-1][p[1:] == p[:-1]] = -1  # equal probabilities are not divided
    best = int(f1.argmax())
    return float((p[best] + (p[best + 1] if best + 1 < len(p) else 0.0)) / 2)


def fit_calibration(logits: np.ndarray, targets: np.ndarray) -> LabelCalibration:
    """Fit scale and shift of each label, and measure what they gain.

    `targets` may be a teacher's probabilities too, (n, labels) float.
    """
    scales, shifts = fit_scales(logits, targets)
    return LabelCalibration(
        method=METHOD,
        scales=scales.tolist(),
        shifts=shifts.tolist(),
        rows=len(targets),
        ece_before=mean_label_error(sigmoid(logits), targets),
        ece_after=mean_label_error(sigmoid(logits * scales + shifts), targets),
        ece_cross_fitted=mean_label_error(sigmoid(_cross_fit(logits, targets)), targets),
    )


def fit_scales(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the scale and the shift of each label, (labels,) both, with the least cross entropy (Platt 1999).

    Without rows they are 1 and 0.
    """
    from scipy.optimize import minimize  # half a second, which processes that only compute need not spend

    if not len(targets):
        return np.ones(targets.shape[1]), np.zeros(targets.shape[1])
    fitted = []
    for z, target in zip(logits.astype(np.float64).T, targets.T, strict=True):

        def loss(x: np.ndarray, z: np.ndarray = z, target: np.ndarray = target) -> tuple[float, np.ndarray]:
            log_scale, shift = x
            scaled = z * np.exp(log_scale)
            errors = sigmoid(scaled + shift) - target
            prior = SCALE_PRIOR * log_scale**2 + SHIFT_PRIOR * shift**2
            value = float(_row_entropies(scaled + shift, target).sum()) + prior
            gradient = [(errors * scaled).sum() + 2 * SCALE_PRIOR * log_scale, errors.sum() + 2 * SHIFT_PRIOR * shift]
            return value / len(z), np.array(gradient) / len(z)

        bounds = [tuple(np.log(SCALE_RANGE)), (None, None)]
        fitted.append(minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds).x)
    log_scales, shifts = np.array(fitted).T
    return np.exp(log_scales), shifts


def _cross_fit(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the logits (n, labels), each random half of the rows calibrated by the other half."""
    halves = np.random.default_rng(0).permutation(len(targets)) % 2
    calibrated = np.empty(logits.shape)
    for half in (0, 1):
        fitting = halves != half
        scales, shifts = fit_scales(logits[fitting], targets[fitting])
        calibrated[~fitting] = logits[~fitting] * scales + shifts
    return calibrated


def fold(layer: "nn.Linear", scales: Sequence[float], shifts: Sequence[float]) -> None:
    """Scale the layer's weights and bias and shift its bias, so that its outputs are the calibrated logits."""
    import torch

    with torch.no_grad():
        scale, shift = layer.weight.new_tensor(scales), layer.weight.new_tensor(shifts)
        layer.weight.mul_(scale[:, None])
        layer.bias.mul_(scale).add_(shift)
