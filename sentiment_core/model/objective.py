"""Define what a model is trained for: everything between its logits and a row's label.

Training, calibration, inference and scoring ask the objective instead of calling softmax or argmax themselves, so a
second kind of objective is one more class with these methods.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from sentiment_core.model import calibration, metrics
from sentiment_core.model.records import Calibration, Metrics

if TYPE_CHECKING:  # importing torch takes seconds; reading a bundle's settings does without
    import torch
    from torch import nn


@dataclass(frozen=True)
class SingleLabel:
    """Exactly one label for each row: softmax, cross entropy, the most probable label.

    Throughout: `logits` and `probabilities` are (n, classes) in the order of the bundle's labels, `targets` is (n,)
    int with the true class. Rows without a score have NaN probabilities.
    """

    ordinal: bool = False  # the labels are the steps of a scale, in their order
    problem_type: ClassVar[str] = "single_label_classification"  # as transformers names it in a model's configuration

    def activate(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits into probabilities, float64."""
        return metrics.softmax(logits)

    def row_losses(
        self,
        logits: "torch.Tensor",
        targets: "torch.Tensor",
        class_weights: "torch.Tensor",
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
    ) -> "torch.Tensor":
        """Compute the loss of each row, (n,).

        Cross entropy with smoothed labels, times the weight of the row's class. With `focal_gamma` above 0 it is the
        focal loss (Lin et al. 2017), which counts a row less the more probable its label already is.
        """
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        if focal_gamma:
            target_probability = logits.softmax(dim=1).gather(1, targets[:, None])[:, 0]
            losses = losses * (1 - target_probability).clamp(min=1e-6) ** focal_gamma
        return losses * class_weights[targets]

    def mean_loss(self, logits: np.ndarray, targets: np.ndarray) -> float:
        """Compute the mean cross entropy in nats, without weights or smoothing: what epochs are compared by."""
        return metrics.cross_entropy(logits, targets)

    def decide(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose the most probable label of each row.

        Returns:
            Index of the label (n,), meaningless in rows without a score, and its probability (n,), NaN there.
        """
        with np.errstate(invalid="ignore"):
            return probabilities.argmax(axis=1), probabilities.max(axis=1, initial=0)

    def count_labels(self, probabilities: np.ndarray) -> np.ndarray:
        """Count how many rows get each label, (classes,) int. Every row must have a score."""
        return np.bincount(self.decide(probabilities)[0], minlength=probabilities.shape[1])

    def same_decision(self, probabilities: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Tell for each row, (n,) bool, whether two models decide alike."""
        return self.decide(probabilities)[0] == self.decide(others)[0]

    def evaluate(self, probabilities: np.ndarray, targets: np.ndarray, label_names: list[str]) -> Metrics:
        """Compute the metrics of labelled rows, each of which has a score."""
        return metrics.evaluate(probabilities, targets, label_names, self.ordinal)

    def fit_calibration(self, logits: np.ndarray, targets: np.ndarray) -> Calibration:
        """Fit the calibration on labelled rows and measure what it gains."""
        return calibration.fit(logits, targets)

    def calibrate(self, logits: np.ndarray, fitted: Calibration) -> np.ndarray:
        """Apply a calibration to logits, as `fold_calibration` makes the model do."""
        return logits / fitted.temperature

    def fold_calibration(self, layer: "nn.Linear", fitted: Calibration) -> None:
        """Change the model's last linear layer, so that its outputs are calibrated logits."""
        calibration.fold_temperature(layer, fitted.temperature)

    def output_columns(
        self, probabilities: np.ndarray, has_label: np.ndarray, label_names: list[str], with_probabilities: bool
    ) -> dict[str, pa.Array]:
        """Build the columns of scored Parquet that hold the answer.

        Args:
            probabilities: (n, classes) float32; NaN rows become null in all columns.
            has_label: (n,) bool; elsewhere the label is null although there may be a confidence (abstained rows).
            label_names: Labels in the order of the probabilities.
            with_probabilities: Whether to add the column `probabilities`.

        Returns:
            `label` (dictionary of strings), `confidence` (float32) and maybe `probabilities` (fixed-size list of
            float32), in this order.
        """
        has_score = ~np.isnan(probabilities).any(axis=1)
        labelled = has_score & has_label
        indices, confidence = self.decide(probabilities)
        codes = np.where(labelled, indices, 0).astype(np.int32)
        columns = {
            "label": pa.DictionaryArray.from_arrays(
                pa.array(codes, mask=~labelled), pa.array(label_names, pa.string())
            ),
            "confidence": pa.array(confidence, pa.float32(), mask=~has_score),
        }
        if with_probabilities:
            flat = pa.array(np.nan_to_num(probabilities).ravel(), pa.float32())
            kind = pa.list_(pa.float32(), len(label_names))
            columns["probabilities"] = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(~has_score))
        return columns


Objective = SingleLabel
