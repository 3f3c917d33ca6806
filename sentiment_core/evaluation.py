"""Evaluate a bundle on labelled text, on this machine and without Ray."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.api import Classifier
from sentiment_core.config import REQUIRED, setting
from sentiment_core.data import labelled
from sentiment_core.data.csv_settings import csv_encoding_setting, csv_separator_setting
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import parse_mapping
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.model import guarantee, registry, source
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.records import Evaluation, Guarantee, LabelledRowsMetrics
from sentiment_core.runtime import preflight, storage
from sentiment_core.runtime.precision import Precision, precision_setting

TARGET_ACCURACIES = (0.9, 0.95, 0.98, 0.99)  # for which `describe_metrics` gives a confidence threshold

SHOWN_GROUPS = 20


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `evaluate`."""

    model: str = setting(
        REQUIRED,
        "bundle, folder of bundles or Hugging Face classifier: a folder, URI or hub name",
        "MODEL",
        group="model",
    )
    data: str = setting(
        REQUIRED,
        "labelled text: Parquet, CSV or JSON Lines (file, folder, glob, URI), or a hub data set as "
        "owner/name[:config][:split]",
        "D",
        group="data",
    )
    text_column: tuple[str, ...] = setting(
        (),
        "column with the text, or several whose texts are joined; default: those of the model, else text",
        "A,B",
        group="data",
    )
    label_column: str = setting(
        "label", "column with the label: a label name of the bundle, or its number; or a list of them", group="data"
    )
    label_separator: str | None = setting(
        None, "separator of the labels in a text that holds several; default: as in training", group="data"
    )
    label_map: tuple[str, ...] = setting(
        (),
        "labels of the data, and the bundle's names for them, such as pos=positive,neg=negative",
        "A=B",
        group="data",
    )
    csv_separator: str | None = csv_separator_setting()
    csv_encoding: str | None = csv_encoding_setting()
    by: str | None = setting(
        None, "also give the metrics of each value of this column, or key of partition folders", "COLUMN", group="data"
    )
    target_accuracy: float | None = setting(
        None, "find the least --min-confidence that promises this share of right labels", "P", group="output"
    )
    certainty: float = setting(
        guarantee.CERTAINTY, "certainty with which --target-accuracy is promised", "P", group="output"
    )
    guarantee_labels: bool = setting(
        False, "with --target-accuracy also find the threshold of each label for its precision", group="output"
    )
    precision: Precision = precision_setting()  # noqa: RUF009
    out: str | None = setting(
        None, "file for the metrics; without it they are only printed", "metrics.json", group="output"
    )

    def columns(self, info: BundleInfo) -> Columns:
        """Return the columns of labelled files to read; what is left open is as in the bundle's training."""
        return Columns(
            self.text_column or info.text_columns,
            self.label_column,
            self.csv_separator,
            self.csv_encoding,
            self.by,
            label_separator=self.label_separator or info.label_separator,
        )

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        guarantee.check_settings(self.target_accuracy, self.certainty)
        if self.guarantee_labels and self.target_accuracy is None:
            raise UserError("--guarantee-labels needs --target-accuracy. Give the precision that each label must have.")
        parse_mapping(self.label_map)
        Columns(self.text_column, self.label_column, self.csv_separator, label_separator=self.label_separator)


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Evaluate a bundle on labelled text.

    Writes the metrics to `--out`, if that is given. Raises `UserError`, also for a label that the bundle does not have.

    Returns:
        The objective's metrics, the number of rows left out by reason (`dropped`), and the bundle's digest (`bundle`).
    """
    model = source.open_model(registry.resolve(settings.model))
    info = model.info
    scheme = replace(info.label_scheme, mapping=info.label_scheme.mapping | parse_mapping(settings.label_map))
    data = labelled.read(settings.data, settings.columns(info), scheme)
    comparisons = _count_comparisons(settings, info, data) if settings.target_accuracy else 1
    if settings.out:
        preflight.check_file(settings.out, "--out")
    source.warn_if_uncalibrated(model.path, info)
    classifier = Classifier(model.files, precision=settings.precision)
    probabilities = classifier.predict_proba(data.texts)
    has_score = ~np.isnan(probabilities).any(axis=1)
    if not has_score.any():
        raise UserError(f"{settings.data}: the tokenizer finds no token in any of its texts. Give labelled text.")
    scored, targets = probabilities[has_score], data.labels[has_score]
    metrics = info.objective.evaluate(scored, targets, info.labels)
    groups = np.array(data.groups, object)[has_score] if settings.by else np.array([], object)
    by = {
        str(group): info.objective.evaluate(scored[groups == group], targets[groups == group], info.labels).numbers
        for group in sorted(set(groups))
    }
    dropped = replace(data.origin.dropped, without_tokens=int((~has_score).sum()))
    promised = _find_guarantee(settings, info, scored, targets, comparisons)
    result = Evaluation(metrics, dropped, classifier.digest, by, data.origin.remarks, promised)
    if settings.out:
        storage.write_file(settings.out, (json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n").encode())
    return result


def _count_comparisons(settings: EvaluateSettings, info: BundleInfo, data: LabelledTexts) -> int:
    """Count the models that were compared on the data. Raises `UserError` if the model was trained on it."""
    fingerprint, training = data.fingerprint(), info.training
    if fingerprint == training.data.fingerprint:
        raise UserError(
            f"--target-accuracy: the model was trained on --data {settings.data}, which promises nothing for other "
            "rows. Give labelled rows that it has not seen."
        )
    chose_epoch = fingerprint == training.eval_data.fingerprint
    return max(1, training.epochs, info.guarantee.comparisons) if chose_epoch else 1


def _find_guarantee(
    settings: EvaluateSettings, info: BundleInfo, probabilities: np.ndarray, targets: np.ndarray, comparisons: int
) -> Guarantee | None:
    """Find the guarantee of --target-accuracy, if that is given."""
    target, certainty = settings.target_accuracy, settings.certainty
    if target is None:
        return None
    grid = guarantee.make_grid(info.objective, probabilities, targets, comparisons)
    promised = guarantee.promise(grid, target, certainty)
    if not settings.guarantee_labels:
        return promised
    by_label = guarantee.promise_by_label(
        info.objective, probabilities, targets, info.labels, target, certainty, comparisons
    )
    return replace(promised, by_label=by_label)


def describe_evaluation(result: Evaluation) -> str:
    """Describe an evaluation in a few lines for the terminal: its metrics, in all and by group, and what to know."""
    lines = [*describe_metrics(result.metrics), *_describe_groups(result), *result.remarks]
    return "\n".join([*lines, *(_describe_guarantee(result.guarantee) if result.guarantee else [])])


def _describe_guarantee(promised: Guarantee) -> list[str]:
    """Describe a guarantee, and of each label its own."""
    return [
        promised.describe(),
        *(
            f"{label}: {part.reason}"
            if part.min_confidence is None
            else f"{label}: {100 * promised.target:g} % precision from {part.min_confidence!r} on, which "
            f"{100 * part.share_labelled:.0f} % of its {part.rows:,} rows reach"
            for label, part in (promised.by_label or {}).items()
        ),
    ]


def describe_metrics(metrics: LabelledRowsMetrics) -> list[str]:
    """Describe metrics in a few lines: the numbers, a table by label, and thresholds for abstaining."""
    return [
        f"{metrics.n:,} rows: {_describe_numbers(metrics.named_numbers)}",
        *metrics.table(),
        *_describe_thresholds(metrics),
    ]


def _describe_numbers(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())


def _describe_groups(result: Evaluation) -> list[str]:
    """Describe the metrics of the largest groups, a line each."""
    largest = sorted(result.by.items(), key=lambda item: -item[1]["n"])
    names = result.metrics.NUMBERS
    lines = [
        f"{group}: {numbers['n']:,} rows, "
        + _describe_numbers({names[name]: value for name, value in numbers.items() if name in names})
        for group, numbers in largest[:SHOWN_GROUPS]
    ]
    return lines + [f"... {len(largest):,} groups in all; --out has them"] * (len(largest) > SHOWN_GROUPS)


def _describe_thresholds(metrics: LabelledRowsMetrics) -> list[str]:
    """Describe the lowest threshold for each target accuracy that abstaining reaches."""
    curve = metrics.risk_coverage
    points = list(zip(curve.accuracy, curve.min_confidence, curve.coverage, strict=True))
    lines = []
    for target in TARGET_ACCURACIES:
        reaching = [point for point in points if point[0] >= target]
        if target > metrics.accuracy and reaching:
            accuracy, confidence, coverage = max(reaching, key=lambda point: point[2])
            threshold = math.floor(confidence * 1e4) / 1e4
            lines.append(
                f"--min-confidence {threshold} labels {100 * coverage:.0f} % of the rows; "
                f"{100 * accuracy:.1f} % of those labels are right"
            )
    note = "these thresholds are estimates from the same rows; evaluate --target-accuracy gives one with a guarantee"
    return [*lines, note] if lines else []
