"""Records in a bundle and in `metrics.json`: what its model can do, and how it was made.

Each `Record` has `from_json`, which ignores keys that it does not know and gives missing ones their default, so that
bundles of other versions load; and `to_json`, which leaves out what is not known. An empty record is `{}`.
An `EpochRecord` is read again only from the checkpoints of an unfinished training, and has all its keys.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

from sentiment_core.data.origin import DataOrigin, DroppedRows
from sentiment_core.model.confusion import describe_confusion

Head = Literal["standard", "mlp"]  # see `classifier`
BundleHead = Literal[Head, "cascade"]  # the models of a cascade have heads of their own
LEAST_INT8_AGREEMENT = 0.995  # of the labels of 8 bits with those of float32
ProblemType = Literal["single_label_classification", "multi_label_classification"]  # as transformers names them


@dataclass(frozen=True)
class Record:
    """Base of the records: reading and writing JSON."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read the record from parsed JSON."""
        return cls(**cls._fields_in(content))

    @classmethod
    def _fields_in(cls, content: dict[str, Any]) -> dict[str, Any]:
        return {name: content[name] for name in cls.__dataclass_fields__ if name in content}

    def to_json(self) -> dict[str, Any]:
        """Return the record for `json.dumps`."""
        if self == type(self)():
            return {}
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Reliability(Record):
    """Points of a reliability diagram: one for each bin of confidence that is not empty."""

    confidence: list[float] = field(default_factory=list)  # mean of the bin's rows
    accuracy: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class RiskCoverage(Record):
    """Points of a risk-coverage curve, thresholds from high to low."""

    min_confidence: list[float] = field(default_factory=list)
    coverage: list[float] = field(default_factory=list)  # share of rows with at least that confidence
    accuracy: list[float] = field(default_factory=list)  # on them


@dataclass(frozen=True)
class LabelledRowsMetrics(Record):
    """Base of the metrics on labelled rows: what those of all objectives have in common."""

    NUMBERS: ClassVar[dict[str, str]] = {}  # single numbers, the most important first: names for people

    n: int = 0  # rows
    labels: list[str] = field(default_factory=list)
    macro_f1: float = 0.0  # mean over the labels that occur in the data or in the predictions
    ece: float = 0.0  # expected calibration error
    brier: float = 0.0
    risk_coverage: RiskCoverage = field(default_factory=RiskCoverage)
    population_rows: int | None = None  # of a weighted sample: rows of the corpus that it stands for, as all counts do

    @property
    def accuracy(self) -> float:
        """The share of rows whose decision is right, which abstaining raises."""
        raise NotImplementedError

    @property
    def numbers(self) -> dict[str, float]:
        """The single numbers by their keys in `metrics.json`."""
        return {"n": self.n} | {name: getattr(self, name) for name in self.NUMBERS if getattr(self, name) is not None}

    @property
    def named_numbers(self) -> dict[str, float]:
        """The single numbers by the names that people read."""
        return {self.NUMBERS[name]: value for name, value in self.numbers.items() if name != "n"}

    def table(self) -> list[str]:
        """Return lines of a table for the terminal that shows the labels apart."""
        raise NotImplementedError

    def find_constant_answer(self) -> str:
        """Describe the constant answer that is as good as the model; empty if the model is better than all of them."""
        raise NotImplementedError

    @classmethod
    def _fields_in(cls, content: dict[str, Any]) -> dict[str, Any]:
        return super()._fields_in(content) | {
            "risk_coverage": RiskCoverage.from_json(content.get("risk_coverage", {})),
        }


@dataclass(frozen=True)
class Metrics(LabelledRowsMetrics):
    """Metrics of a single-label model on labelled rows."""

    NUMBERS: ClassVar[dict[str, str]] = {
        "accuracy": "accuracy",
        "macro_f1": "macro-F1",
        "ece": "calibration error",
        "brier": "Brier score",  # sum over the classes of squared differences, 0 to 2
        "mae": "mean absolute error, in labels",
    }

    accuracy: float = 0.0
    confusion: list[list[int]] = field(default_factory=list)  # rows true, columns predicted
    reliability: Reliability = field(default_factory=Reliability)
    mae: float | None = None  # of ordinal labels: by how many labels the prediction is off, on average

    def table(self) -> list[str]:
        """Return the lines of the confusion matrix."""
        return describe_confusion(self.labels, self.confusion)

    def find_constant_answer(self) -> str:
        """Describe the label that is right as often as the model; empty if there is none."""
        rows = [sum(counts) for counts in self.confusion]
        share = max(rows) / sum(rows)
        label = self.labels[rows.index(max(rows))]
        return "" if self.accuracy > share else f"always giving {label!r} ({share:.4f})"

    @classmethod
    def _fields_in(cls, content: dict[str, Any]) -> dict[str, Any]:
        return super()._fields_in(content) | {"reliability": Reliability.from_json(content.get("reliability", {}))}


@dataclass(frozen=True)
class GuaranteeGrid(Record):
    """Counts of evaluation rows above thresholds, from which the one for any target accuracy follows.

    Bundles of old versions lack it. The lists go from 5 % of the rows to all of them.
    """

    rows: int = 0  # evaluation rows
    comparisons: int = 1  # models compared on these rows: epochs, in a search those of all trials
    min_confidence: list[float] = field(default_factory=list)
    rows_above: list[int] = field(default_factory=list)  # with at least that confidence
    right_above: list[int] = field(default_factory=list)  # of these, rows that are labelled right


@dataclass(frozen=True)
class LabelGuarantee(Record):
    """The least threshold that promises the target precision of one label, and the rows that get the label."""

    min_confidence: float | None = None  # None: no threshold promises it
    share_labelled: float = 0.0  # of these rows
    rows: int = 0  # evaluation rows that get the label
    precision: float | None = None  # observed at the threshold
    reason: str | None = None  # why there is no threshold

    def to_json(self) -> dict[str, Any]:
        """Return the record for `json.dumps`; a threshold that does not exist is null."""
        return {"min_confidence": self.min_confidence} | super().to_json()


@dataclass(frozen=True)
class Guarantee(Record):
    """The least threshold that promises the target accuracy of labelled rows, or the reason why none does."""

    target: float = 0.0  # accuracy
    certainty: float = 0.0  # with which it holds
    min_confidence: float | None = None  # None: no threshold promises it
    share_labelled: float = 0.0  # of the evaluation rows
    rows: int = 0  # evaluation rows
    accuracy: float | None = None  # observed at the threshold
    reason: str | None = None  # why there is no threshold
    by_label: dict[str, LabelGuarantee] | None = None  # precision of each label; all of them hold together

    def to_json(self) -> dict[str, Any]:
        """Return the record for `json.dumps`; a threshold that does not exist is null."""
        by_label = {label: part.to_json() for label, part in (self.by_label or {}).items()}
        content = super().to_json() | {"min_confidence": self.min_confidence}
        return content | ({"by_label": by_label} if by_label else {})

    def describe(self) -> str:
        """Say what is promised, or why nothing is, for the terminal."""
        if self.min_confidence is None:
            return f"no threshold promises accuracy {self.target:g} with certainty {self.certainty:g}: {self.reason}"
        return (
            f"--min-confidence {self.min_confidence!r} labels {100 * self.share_labelled:.0f} % of rows like the "
            f"{self.rows:,} evaluation rows; with certainty {self.certainty:g} at least {100 * self.target:g} % of "
            "those labels are right"
        )


@dataclass(frozen=True)
class Evaluation(Record):
    """Content of `metrics.json`: the metrics, the rows that could not be used, and the bundle's digest."""

    metrics: LabelledRowsMetrics = field(default_factory=Metrics)
    dropped: DroppedRows = field(default_factory=DroppedRows)
    bundle: str = ""
    by: dict[str, dict[str, float]] = field(default_factory=dict)  # metrics by the values of a column
    remarks: list[str] = field(default_factory=list)  # sentences about the data that its user should read
    guarantee: Guarantee | None = None  # with --target-accuracy

    def to_json(self) -> dict[str, Any]:
        """Return the content for `json.dumps`: the metrics and the rest side by side."""
        content = self.metrics.to_json() | {"dropped": self.dropped.to_json(), "bundle": self.bundle}
        content |= {"guarantee": self.guarantee.to_json()} if self.guarantee else {}
        return content | {name: value for name in ("by", "remarks") if (value := getattr(self, name))}


@dataclass(frozen=True)
class Calibration(Record):
    """A fitted calibration, and the expected calibration error (ECE) with and without it."""

    method: str = ""
    temperature: float = 1.0
    rows: int = 0  # that it was fitted on
    ece_before: float | None = None
    ece_after: float | None = None  # on the rows that it was fitted on
    ece_cross_fitted: float | None = None  # each half of the rows with the other half's temperature

    @property
    def parameters(self) -> str:
        """Name what was fitted, for people."""
        return f"temperature {self.temperature:.2f}"


@dataclass(frozen=True)
class EncoderOrigin(Record):
    """The pretrained model that training started from."""

    name: str = ""  # folder or hub name, as the user gave it
    revision: str | None = None  # of the hub; None for a folder

    def to_json(self) -> dict[str, Any]:
        """Return the record for `json.dumps`."""
        return asdict(self)


@dataclass(frozen=True)
class TrainingRows(DataOrigin):
    """The rows that a model was trained on."""

    train_rows: int = 0
    fingerprint: str = ""  # sha256 of texts and labels


@dataclass(frozen=True)
class EvaluationRows(DataOrigin):
    """The rows that chose the best epoch and fitted the calibration."""

    eval_rows: int = 0
    folds: int = 0  # of cross-validation on the training rows; 0: training did not see these rows
    fingerprint: str = ""  # sha256 of texts and labels


@dataclass(frozen=True)
class TrainingRecord(Record):
    """Settings, data and course of a training."""

    settings: dict[str, Any] = field(default_factory=dict)  # of the command, by their names
    encoder: EncoderOrigin = field(default_factory=EncoderOrigin)
    data: TrainingRows = field(default_factory=TrainingRows)
    eval_data: EvaluationRows = field(default_factory=EvaluationRows)
    label_shares: dict[str, float] = field(default_factory=dict)  # of the training rows
    best_epoch: int = 0  # counted from 1
    epochs: int = 0  # that were trained
    device: str = ""
    dtype: str = ""
    rows_per_second: float = 0.0
    seconds: float = 0.0

    @classmethod
    def _fields_in(cls, content: dict[str, Any]) -> dict[str, Any]:
        return super()._fields_in(content) | {
            "encoder": EncoderOrigin.from_json(content.get("encoder", {})),
            "data": TrainingRows.from_json(content.get("data", {})),
            "eval_data": EvaluationRows.from_json(content.get("eval_data", {})),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the record for `json.dumps`."""
        parts = {name: getattr(self, name).to_json() for name in ("encoder", "data", "eval_data")}
        return content | parts if (content := super().to_json()) else {}


@dataclass(frozen=True)
class ReferenceStatistics(Record):
    """Statistics of the evaluation rows, which drift is measured from. Bundles of old versions lack the later ones."""

    rows: int = 0
    predicted_shares: dict[str, float] = field(default_factory=dict)
    confidence_histogram: list[int] = field(default_factory=list)  # equal bins from 0 to 1
    length_histogram: list[int] | None = None  # see `text.token_lists.length_histogram`
    tokens: int | None = None
    tokens_quantiles: dict[str, float] = field(default_factory=dict)  # of the tokens of a text, by the share below
    unknown_token_share: float | None = None


@dataclass(frozen=True)
class Int8Check(Record):
    """Agreement of labels in 8-bit numbers, or the reason why it is not known.

    Bundles of old versions lack the last five.
    """

    agreement: float | None = None  # share of rows with the same label as in float32
    rows: int | None = None
    reason: str | None = None
    accuracy: float | None = None  # in 8 bits, on those of the rows that are evaluation rows
    float32_accuracy: float | None = None  # on the same ones
    accuracy_rows: int | None = None
    layers: int | None = None  # linear layers in 8 bits
    all_layers: int | None = None  # that could be

    @property
    def is_allowed(self) -> bool:
        """True if enough labels stay for `--int8`."""
        return self.agreement is not None and self.agreement >= LEAST_INT8_AGREEMENT


@dataclass(frozen=True)
class EvaluationScores:
    """Metrics of an epoch's weights on the evaluation rows, before calibration."""

    loss: float  # mean cross entropy in nats
    accuracy: float
    macro_f1: float
    ece: float  # expected calibration error

    @property
    def shown(self) -> dict[str, float]:
        """The two that people look at first, by the names that they read."""
        return {"accuracy": self.accuracy, "macro-F1": self.macro_f1}

    def value_of(self, select_by: str) -> float:
        """Return the value by which `--select-by` compares epochs; more is better."""
        return -self.loss if select_by == "loss" else getattr(self, select_by)


@dataclass(frozen=True)
class MultiLabelScores:
    """Metrics of an epoch's weights on the evaluation rows, before calibration, with thresholds chosen there."""

    loss: float  # mean over labels of the binary cross entropy in nats
    micro_f1: float
    macro_f1: float
    exact_match: float
    ece: float  # expected calibration error, mean over labels

    @property
    def shown(self) -> dict[str, float]:
        """The two that people look at first, by the names that they read."""
        return {"micro-F1": self.micro_f1, "macro-F1": self.macro_f1}

    def value_of(self, select_by: str) -> float:
        """Return the value by which `--select-by` compares epochs; more is better. For accuracy stands micro-F1."""
        values = {"loss": -self.loss, "accuracy": self.micro_f1, "macro_f1": self.macro_f1}
        return values[select_by]


@dataclass(frozen=True)
class EpochRecord:
    """A line of `training_log.jsonl`."""

    epoch: int
    losses: list[float]  # of each step: mean loss of its global batch
    seconds: float  # of the steps; evaluation and checkpoints apart
    rows: int  # trained on
    eval: EvaluationScores | MultiLabelScores
    selected_by: float  # the value by which epochs are compared; more is better
    device: str
    dtype: str
    diverged_after: bool = False  # the next epoch gave no finite numbers

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in the file."""
        content = asdict(self)
        if not self.diverged_after:
            del content["diverged_after"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "EpochRecord":
        """Read a record."""
        scores = content["eval"]
        return cls(**content | {"eval": (MultiLabelScores if "micro_f1" in scores else EvaluationScores)(**scores)})
