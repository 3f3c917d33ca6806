"""Records in a multi-label bundle and its `metrics.json`, where they differ from those of a single-label one."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from sentiment_core.model.records import LabelledRowsMetrics, Record, Reliability


@dataclass(frozen=True)
class LabelMetrics(Record):
    """Metrics of one label of a multi-label model."""

    rows: int = 0  # that have the label
    predicted: int = 0  # rows that get it
    threshold: float = 0.5
    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0
    average_precision: float | None = None  # None: no row has the label
    ece: float = 0.0  # expected calibration error of the label's probability
    reliability: Reliability = field(default_factory=Reliability)  # of that probability

    @classmethod
    def _fields_in(cls, content: dict[str, Any]) -> dict[str, Any]:
        return super()._fields_in(content) | {"reliability": Reliability.from_json(content.get("reliability", {}))}


@dataclass(frozen=True)
class MultiLabelMetrics(LabelledRowsMetrics):
    """Metrics of a multi-label model on labelled rows."""

    NUMBERS: ClassVar[dict[str, str]] = {
        "micro_f1": "micro-F1",
        "macro_f1": "macro-F1",
        "mean_average_precision": "mean average precision",
        "exact_match": "exact match",
        "ece": "calibration error",  # mean over the labels
        "brier": "Brier score",  # mean over rows and labels of squared differences, 0 to 1
    }

    micro_f1: float = 0.0
    mean_average_precision: float = 0.0  # over the labels that occur in the data
    exact_match: float = 0.0  # share of rows whose labels are all right, and none besides
    by_label: dict[str, LabelMetrics] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """The share of rows whose labels are all right."""
        return self.exact_match

    def table(self) -> list[str]:
        """Return a line for each label."""
        width = max(len(name) for name in [*self.labels, "label"])
        names = ("rows", "predicted", "threshold", "precision", "recall", "f1", "ece")
        lines = [" ".join([f"{'label':>{width}}", *(f"{name:>9}" for name in names)])]
        for label, metrics in self.by_label.items():
            values = [getattr(metrics, name) for name in names]
            shown = (f"{value:9,}" if isinstance(value, int) else f"{value:9.4f}" for value in values)
            lines.append(" ".join([f"{label:>{width}}", *shown]))
        return lines

    def find_constant_answer(self) -> str:
        """Describe the labels that have the model's micro-F1 if every row gets them; empty if there are none."""
        by_frequency = sorted(self.by_label, key=lambda label: -self.by_label[label].rows)
        total = sum(label.rows for label in self.by_label.values())
        hits, best, best_labels, rows = 0, 0.0, 0, self.population_rows or self.n
        for number, label in enumerate(by_frequency, 1):
            hits += self.by_label[label].rows
            if (f1 := 2 * hits / (number * rows + total)) > best:
                best, best_labels = f1, number
        if self.micro_f1 > best:
            return ""
        return f"always giving {', '.join(by_frequency[:best_labels]) or 'no label'} (micro-F1 {best:.4f})"

    @classmethod
    def _fields_in(cls, content: dict[str, Any]) -> dict[str, Any]:
        by_label = {name: LabelMetrics.from_json(metrics) for name, metrics in content.get("by_label", {}).items()}
        return super()._fields_in(content) | {"by_label": by_label}


@dataclass(frozen=True)
class LabelCalibration(Record):
    """A fitted calibration by label, and the mean of the labels' calibration errors (ECE) with and without it."""

    method: str = ""
    scales: list[float] = field(default_factory=list)  # of the logits, by label
    shifts: list[float] = field(default_factory=list)  # of the scaled logits, by label
    rows: int = 0  # that it was fitted on
    ece_before: float | None = None
    ece_after: float | None = None  # on the rows that it was fitted on
    ece_cross_fitted: float | None = None  # each half of the rows with the other half's scales and shifts

    @property
    def parameters(self) -> str:
        """Name what was fitted, for people."""
        return "scale and shift of each label"
