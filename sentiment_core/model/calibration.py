"""Temperature scaling: one number that makes a classifier's confidences mean what they say (Guo et al. 2017).

Dividing the logits by a temperature changes no label. Dividing weights and bias of the last linear layer by it does the
same for whoever loads the model.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from sentiment_core.model.metrics import cross_entropy, probabilities_of

RANGE = (0.05, 20.0)  # a separable evaluation set would ask for temperature 0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least cross entropy on `logits` (n, classes) and `labels` (n,)."""
    logits = logits.astype(np.float64)
    found = minimize_scalar(
        lambda log_t: cross_entropy(logits / np.exp(log_t), labels), bounds=np.log(RANGE), method="bounded"
    )
    return float(np.exp(found.x))


def cross_fitted(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes) in which each half of the rows, parted at random, is scaled by the temperature of the
    other half: they show how well calibrated rows are that the temperature was not fitted on."""
    half = np.random.default_rng(0).permutation(len(labels)) % 2
    scaled = np.empty(logits.shape)
    for own in (0, 1):
        others = half != own
        scaled[~others] = logits[~others] / fit_temperature(logits[others], labels[others])
    return probabilities_of(scaled)


def fold_temperature(layer: nn.Linear, temperature: float) -> None:
    """Divide the layer's weights and bias, so that its outputs are the calibrated logits."""
    with torch.no_grad():
        layer.weight.div_(temperature)
        if layer.bias is not None:
            layer.bias.div_(temperature)
