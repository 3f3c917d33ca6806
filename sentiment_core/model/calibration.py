"""Temperature scaling: one number that makes a classifier's confidences mean what they say (Guo et al. 2017).

Dividing the logits by a temperature changes no label. Dividing weights and bias of the last linear layer by it gives
the same to whoever loads the model.
"""

from typing import TYPE_CHECKING

import numpy as np

from sentiment_core.model.metrics import cross_entropy, expected_calibration_error, softmax
from sentiment_core.model.records import Calibration

if TYPE_CHECKING:  # importing torch takes seconds; reading a bundle's settings does without
    from torch import nn

METHOD = "temperature scaling, folded into the last linear layer"
TEMPERATURE_RANGE = (0.05, 20.0)  # a separable evaluation set would ask for temperature 0
PRIOR_ROWS = 2.0  # weight of the prior, which draws the temperature towards 1: a standard deviation of 0.5 in its log


def fit(logits: np.ndarray, targets: np.ndarray) -> Calibration:
    """Fit the temperature on `logits` (n, classes), and measure what it gains.

    `targets` are labels (n,), or a teacher's probabilities (n, classes): then confidences come to be the teacher's.
    """
    temperature = fit_temperature(logits, targets)
    return Calibration(
        method=METHOD,
        temperature=temperature,
        rows=len(targets),
        ece_before=expected_calibration_error(softmax(logits), targets),
        ece_after=expected_calibration_error(softmax(logits / temperature), targets),
        ece_cross_fitted=expected_calibration_error(cross_fit(logits, targets), targets),
    )


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """Find the temperature with the least cross entropy; arguments as for `fit`. Without rows it is 1."""
    from scipy.optimize import minimize_scalar  # half a second, which processes that only compute need not spend

    if not len(targets):
        return 1.0
    logits = logits.astype(np.float64)
    # a normal prior of the temperature's logarithm: as much as a few rows say, and nothing beside hundreds
    minimum = minimize_scalar(
        lambda log_t: cross_entropy(logits / np.exp(log_t), targets) + PRIOR_ROWS / len(targets) * log_t**2,
        bounds=np.log(TEMPERATURE_RANGE),
        method="bounded",
    )
    return float(np.exp(minimum.x))


def cross_fit(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Scale each random half of the rows by the temperature of the other half.

    The probabilities returned, (n, classes), show how well calibrated rows are that the temperature was not fitted on.
    """
    halves = np.random.default_rng(0).permutation(len(targets)) % 2
    scaled = np.empty(logits.shape)
    for half in (0, 1):
        fitting = halves != half
        scaled[~fitting] = logits[~fitting] / fit_temperature(logits[fitting], targets[fitting])
    return softmax(scaled)


def fold_temperature(layer: "nn.Linear", temperature: float) -> None:
    """Divide the layer's weights and bias, so that its outputs are the calibrated logits."""
    import torch

    with torch.no_grad():
        layer.weight.div_(temperature)
        if layer.bias is not None:
            layer.bias.div_(temperature)
