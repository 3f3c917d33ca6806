"""Define what a model is trained for: everything between its logits and a row's label.

Training, calibration, inference and scoring ask the objective instead of calling softmax or argmax themselves, so a
further kind of objective is one more class with these methods, and a line in `OBJECTIVES`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sentiment_core.errors import UserError
from sentiment_core.model import calibration, metrics, multi_label
from sentiment_core.model.multi_label_records import LabelCalibration, MultiLabelMetrics
from sentiment_core.model.probability_column import make_column, read_column
from sentiment_core.model.records import Calibration, EvaluationScores, Metrics, MultiLabelScores, ProblemType, Record

if TYPE_CHECKING:  # importing torch takes seconds; reading a bundle's settings does without
    import torch
    from torch import nn

LEAST_PROBABILITY = 1e-30  # below, a float32 may be 0, which has no logarithm
CONFIDENCE_ROUNDING = 1e-6  # between a confidence and that of the probabilities beside it


@dataclass(frozen=True)
class SingleLabel:
    """Exactly one label for each row: softmax, cross entropy, the most probable label.

    Throughout: `logits` and `probabilities` are (n, classes) in the order of the bundle's labels, `targets` is (n,)
    int with the true class. Rows without a score have NaN probabilities.
    """

    problem_type: ClassVar[ProblemType] = "single_label_classification"
    records: ClassVar[dict[str, type[Record]]] = {"metrics": Metrics, "calibration": Calibration}  # of its bundles
    several: ClassVar[bool] = False  # labels a row

    ordinal: bool = False  # the labels are the steps of a scale, in their order

    @classmethod
    def restore(cls, ordinal: bool, thresholds: Sequence[float]) -> "SingleLabel":
        """Make the objective of a bundle from the fields of its record."""
        return cls(ordinal)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a bundle's record that `restore` makes the same objective of."""
        return {"problem_type": self.problem_type, "ordinal": self.ordinal}

    def activate(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits into probabilities, float64."""
        return metrics.softmax(logits)

    def invert(self, probabilities: np.ndarray) -> np.ndarray:
        """Return logits, float64, that have these probabilities."""
        return np.log(np.maximum(probabilities.astype(np.float64), LEAST_PROBABILITY))

    def balance(self, counts: np.ndarray, rows: int) -> np.ndarray:
        """Return weights (classes,) with which each class counts as much as any other.

        `counts`: (classes,) rows that have each label. `rows`: all rows.
        """
        return np.divide(rows / np.count_nonzero(counts), counts, out=np.ones(len(counts)), where=counts > 0)

    def initial_bias(self, counts: np.ndarray, rows: int) -> np.ndarray:
        """Return the bias (classes,) with which the logits of a new head begin; arguments as for `balance`."""
        return np.zeros(len(counts))

    def row_losses(
        self,
        logits: "torch.Tensor",
        targets: "torch.Tensor",
        class_weights: "torch.Tensor",
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
    ) -> "torch.Tensor":
        """Compute the loss of each row, (n,); see `losses.single_label_losses`."""
        from sentiment_core.model import losses

        return losses.single_label_losses(logits, targets, class_weights, label_smoothing, focal_gamma)

    def score_epoch(self, logits: np.ndarray, targets: np.ndarray, label_names: list[str]) -> EvaluationScores:
        """Compute the metrics by which epochs are compared; the loss without weights or smoothing."""
        scores = self.evaluate(self.activate(logits), targets, label_names)
        return EvaluationScores(metrics.cross_entropy(logits, targets), scores.accuracy, scores.macro_f1, scores.ece)

    def decide(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose the most probable label of each row.

        Returns:
            Index of the label (n,), meaningless in rows without a score, and its probability (n,), NaN there.
        """
        with np.errstate(invalid="ignore"):
            return probabilities.argmax(axis=1), probabilities.max(axis=1, initial=0)

    def name_decision(self, decision: np.ndarray, label_names: Sequence[str]) -> str:
        """Name one row's decision, or what is true of it, for people."""
        return label_names[int(decision)]

    def answer(self, decision: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
        """Return one row's decision as programs get it, by its name."""
        return {"label": label_names[int(decision)]}

    def is_right(self, decisions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Tell for each row, (n,) bool, whether its decision is what is true."""
        return decisions == targets

    def count_labels(self, probabilities: np.ndarray) -> np.ndarray:
        """Count how many rows get each label, (classes,) int. Every row must have a score."""
        return np.bincount(self.decide(probabilities)[0], minlength=probabilities.shape[1])

    def same_decision(self, probabilities: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Tell for each row, (n,) bool, whether two models decide alike."""
        return self.decide(probabilities)[0] == self.decide(others)[0]

    def evaluate(
        self, probabilities: np.ndarray, targets: np.ndarray, label_names: list[str], weights: np.ndarray | None = None
    ) -> Metrics:
        """Compute the metrics of labelled rows, weighted if there are `weights` (n,). Every row must have a score."""
        return metrics.evaluate(probabilities, targets, label_names, self.ordinal, weights)

    def fit_decision(self, probabilities: np.ndarray, targets: np.ndarray) -> "SingleLabel":
        """Return the objective that decides best on labelled rows; the most probable label needs no fitting."""
        return self

    def check_last_layer(self, layer: "nn.Linear") -> None:
        """Refuse a layer that a calibration cannot be folded into. Raises `UserError`."""

    def fit_calibration(self, logits: np.ndarray, targets: np.ndarray) -> Calibration:
        """Fit the calibration on labelled rows, or on a teacher's probabilities, and measure what it gains."""
        return calibration.fit(logits, targets)

    def calibrate(self, logits: np.ndarray, fitted: Any) -> np.ndarray:
        """Apply a calibration to logits, as `fold_calibration` makes the model do."""
        return logits / fitted.temperature

    def fold_calibration(self, layer: "nn.Linear", fitted: Any) -> None:
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
        return columns | (make_column(probabilities, has_score) if with_probabilities else {})

    def contradicts(
        self,
        answer: Mapping[str, pa.Array],
        probabilities: np.ndarray,
        abstained: np.ndarray,
        label_names: list[str],
        tolerance: float,
    ) -> np.ndarray:
        """Tell for each row, (n,) bool, whether an answer in scored Parquet is not what the probabilities make.

        Args:
            answer: The columns of `output_columns`, as they stand in the file.
            probabilities: (n, classes) as computed now.
            abstained: (n,) bool, rows that have a confidence and no label.
            label_names: Labels in the order of the probabilities.
            tolerance: By how much probabilities may differ, and with them a label that is close to another one.
        """
        has_score = ~np.isnan(probabilities).any(axis=1)
        index = pc.fill_null(pc.index_in(answer["label"].cast(pa.string()), pa.array(label_names)), -1).to_numpy()
        confidence, best = answer["confidence"].to_numpy(zero_copy_only=False), self.decide(probabilities)[1]
        with np.errstate(invalid="ignore"):
            now = np.where(abstained, best, probabilities[np.arange(len(index)), index])
            wrong = ~(np.abs(confidence - now) <= tolerance) | ~(best - now <= 2 * tolerance)
            if "probabilities" in answer:
                stored = read_column(answer["probabilities"], len(label_names))
                wrong |= ~(np.abs(stored - probabilities) <= tolerance).all(axis=1)
        wrong = np.where(has_score, wrong, ~np.isnan(confidence))
        return wrong | ((~has_score | abstained) != (index < 0))


@dataclass(frozen=True)
class MultiLabel:
    """Any number of labels for each row: sigmoid, binary cross entropy, each label above its threshold.

    Throughout: `logits` and `probabilities` are (n, labels) in the order of the bundle's labels, `targets` and
    decisions (n, labels) bool. Rows without a score have NaN probabilities. What is said of a method of `SingleLabel`
    holds here too.
    """

    problem_type: ClassVar[ProblemType] = "multi_label_classification"
    records: ClassVar[dict[str, type[Record]]] = {"metrics": MultiLabelMetrics, "calibration": LabelCalibration}
    several: ClassVar[bool] = True

    thresholds: tuple[float, ...] = ()  # by label; empty: 0.5 for all

    @classmethod
    def restore(cls, ordinal: bool, thresholds: Sequence[float]) -> "MultiLabel":
        """Make the objective of a bundle from the fields of its record."""
        return cls(tuple(thresholds))

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a bundle's record that `restore` makes the same objective of."""
        return {"problem_type": self.problem_type, "thresholds": list(self.thresholds)}

    def activate(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits into probabilities, float64."""
        return multi_label.sigmoid(logits)

    def invert(self, probabilities: np.ndarray) -> np.ndarray:
        """Return logits, float64, that have these probabilities."""
        inside = np.clip(probabilities.astype(np.float64), LEAST_PROBABILITY, 1 - np.finfo(np.float32).epsneg)
        return np.log(inside) - np.log1p(-inside)

    def balance(self, counts: np.ndarray, rows: int) -> np.ndarray:
        """Return weights (labels,) of rows that have a label, with which they count as much as those without it."""
        return np.divide(rows - counts, counts, out=np.ones(len(counts)), where=(counts > 0) & (counts < rows))

    def initial_bias(self, counts: np.ndarray, rows: int) -> np.ndarray:
        """Return the bias (labels,) with which the logits of a new head begin: the log odds of the labels' shares.

        Most labels are rare. A head that begins at 0 spends its first hundreds of steps on saying no to all of them
        (Lin et al. 2017). Half a row more on each side keeps the odds finite.
        """
        return np.log((counts + 0.5) / (rows - counts + 0.5))

    def row_losses(
        self,
        logits: "torch.Tensor",
        targets: "torch.Tensor",
        class_weights: "torch.Tensor",
        label_smoothing: float = 0.0,
        focal_gamma: float = 0.0,
    ) -> "torch.Tensor":
        """Compute the loss of each row, (n,); see `losses.multi_label_losses`."""
        from sentiment_core.model import losses

        return losses.multi_label_losses(logits, targets, class_weights, label_smoothing, focal_gamma)

    def score_epoch(self, logits: np.ndarray, targets: np.ndarray, label_names: list[str]) -> MultiLabelScores:
        """Compute the metrics by which epochs are compared, with the thresholds that the bundle would have."""
        probabilities = self.activate(logits)
        chosen, _ = self.fit_decision(probabilities, targets).decide(probabilities)
        return multi_label.score_epoch(logits, probabilities, chosen, targets)

    def decide(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Choose the labels that reach their thresholds.

        Returns:
            Chosen labels (n, labels) bool, none in rows without a score; and the confidence (n,), NaN there: the least,
            over the labels, of the probability of what was decided.
        """
        with np.errstate(invalid="ignore"):
            chosen = probabilities >= self._thresholds_of(probabilities)
        return chosen, np.where(chosen, probabilities, 1 - probabilities).min(axis=1)

    def _thresholds_of(self, probabilities: np.ndarray) -> np.ndarray:
        thresholds = self.thresholds or (0.5,) * probabilities.shape[1]
        return np.array(thresholds, probabilities.dtype)

    def name_decision(self, decision: np.ndarray, label_names: Sequence[str]) -> str:
        """Name one row's decision, or what is true of it, for people."""
        return ", ".join(label_names[i] for i in np.flatnonzero(decision).tolist()) or "no label"

    def answer(self, decision: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
        """Return one row's decision as programs get it, by its name."""
        return {"labels": [label_names[i] for i in np.flatnonzero(decision).tolist()]}

    def is_right(self, decisions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Tell for each row, (n,) bool, whether it gets all of its labels and none besides."""
        return (decisions == targets).all(axis=1)

    def count_labels(self, probabilities: np.ndarray) -> np.ndarray:
        """Count how many rows get each label, (labels,) int. Every row must have a score."""
        return self.decide(probabilities)[0].sum(axis=0)

    def same_decision(self, probabilities: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Tell for each row, (n,) bool, whether two models choose the same labels."""
        return (self.decide(probabilities)[0] == self.decide(others)[0]).all(axis=1)

    def evaluate(
        self, probabilities: np.ndarray, targets: np.ndarray, label_names: list[str], weights: np.ndarray | None = None
    ) -> MultiLabelMetrics:
        """Compute the metrics of labelled rows, weighted if there are `weights` (n,). Every row must have a score."""
        chosen, confidence = self.decide(probabilities)
        thresholds = self._thresholds_of(probabilities.astype(np.float64))
        return multi_label.evaluate(probabilities, chosen, confidence, targets, label_names, thresholds, weights)

    def fit_decision(self, probabilities: np.ndarray, targets: np.ndarray) -> "MultiLabel":
        """Return the objective with the thresholds that are best on labelled rows."""
        return MultiLabel(multi_label.choose_thresholds(probabilities, targets))

    def check_last_layer(self, layer: "nn.Linear") -> None:
        """Refuse a layer that a calibration cannot be folded into. Raises `UserError`."""
        if layer.bias is None:
            raise UserError(
                "the encoder's own head has no bias, which calibration by label needs. Choose --head mlp for several "
                "labels a row."
            )

    def fit_calibration(self, logits: np.ndarray, targets: np.ndarray) -> LabelCalibration:
        """Fit the calibration on labelled rows and measure what it gains."""
        return multi_label.fit_calibration(logits, targets)

    def calibrate(self, logits: np.ndarray, fitted: Any) -> np.ndarray:
        """Apply a calibration to logits, as `fold_calibration` makes the model do."""
        return logits * np.array(fitted.scales) + np.array(fitted.shifts)

    def fold_calibration(self, layer: "nn.Linear", fitted: Any) -> None:
        """Change the model's last linear layer, so that its outputs are calibrated logits."""
        multi_label.fold(layer, fitted.scales, fitted.shifts)

    def output_columns(
        self, probabilities: np.ndarray, has_label: np.ndarray, label_names: list[str], with_probabilities: bool
    ) -> dict[str, pa.Array]:
        """Build the columns of scored Parquet that hold the answer.

        Returns:
            `labels` (list of strings), `confidence` (float32) and always `probabilities` (fixed-size list of float32).
        """
        has_score = ~np.isnan(probabilities).any(axis=1)
        chosen, confidence = self.decide(probabilities)
        chosen &= (has_score & has_label)[:, None]
        offsets = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))]).astype(np.int32)
        names = pa.array(np.array(label_names, object)[np.nonzero(chosen)[1]], pa.string())
        return {
            "labels": pa.ListArray.from_arrays(offsets, names, mask=pa.array(~(has_score & has_label))),
            "confidence": pa.array(confidence, pa.float32(), mask=~has_score),
        } | make_column(probabilities, has_score)

    def contradicts(
        self,
        answer: Mapping[str, pa.Array],
        probabilities: np.ndarray,
        abstained: np.ndarray,
        label_names: list[str],
        tolerance: float,
    ) -> np.ndarray:
        """Tell for each row, (n,) bool, whether an answer in scored Parquet is not what the probabilities make.

        The probabilities in the file may differ within the tolerance. Labels and confidence must follow from them, so
        that near a threshold either side's answer is right.
        """
        has_score = ~np.isnan(probabilities).any(axis=1)
        stored = read_column(answer["probabilities"], len(label_names))
        chosen, own_confidence = self.decide(stored)
        confidence = answer["confidence"].to_numpy(zero_copy_only=False)
        sizes = pc.fill_null(pc.list_value_length(answer["labels"]), 0).to_numpy()
        index = pc.fill_null(pc.index_in(answer["labels"].flatten(), pa.array(label_names)), -1).to_numpy()
        written = np.zeros((len(stored), len(label_names) + 1), bool)  # unknown labels go to the last column
        written[np.repeat(np.arange(len(stored)), sizes), index] = True
        differs = (written[:, :-1] != chosen).any(axis=1) | (sizes != chosen.sum(axis=1))
        with np.errstate(invalid="ignore"):
            wrong = ~(np.abs(stored - probabilities) <= tolerance).all(axis=1) | (differs & ~abstained)
            wrong |= ~(np.abs(confidence - own_confidence) <= CONFIDENCE_ROUNDING)
        wrong = np.where(has_score, wrong, ~np.isnan(confidence) | ~np.isnan(stored).all(axis=1))
        return wrong | ((~has_score | abstained) != pc.is_null(answer["labels"]).to_numpy(zero_copy_only=False))


Objective = SingleLabel | MultiLabel
OBJECTIVES: dict[ProblemType, type[Objective]] = {kind.problem_type: kind for kind in (SingleLabel, MultiLabel)}
