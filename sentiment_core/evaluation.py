"""Evaluate a bundle on labelled text, on this machine and without Ray."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.api import Classifier
from sentiment_core.config import REQUIRED, setting
from sentiment_core.data import labelled
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, registry
from sentiment_core.model.records import Evaluation, Metrics
from sentiment_core.runtime import preflight, storage

TARGET_ACCURACIES = (0.9, 0.95, 0.98, 0.99)  # for which `describe_metrics` gives a confidence threshold


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `evaluate`."""

    model: str = setting(REQUIRED, "model bundle, or folder of bundles: a folder or URI", "BUNDLE", group="model")
    data: str = setting(
        REQUIRED,
        "labelled text: Parquet, CSV or JSON Lines (file, folder, glob, URI), or a hub data set as "
        "owner/name[:config][:split]",
        "D",
        group="data",
    )
    text_column: str = setting("text", "column with the text", group="data")
    label_column: str = setting(
        "label", "column with the label: a label name of the bundle, or its number", group="data"
    )
    out: str | None = setting(
        None, "file for the metrics; without it they are only printed", "metrics.json", group="output"
    )


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Evaluate a bundle on labelled text.

    Writes the metrics to `--out`, if that is given. Raises `UserError`, also for a label that the bundle does not have.

    Returns:
        The objective's metrics, the number of rows left out by reason (`dropped`), and the bundle's digest (`bundle`).
    """
    info, files = bundle.read_files(registry.resolve(settings.model))
    data = labelled.read(settings.data, settings.text_column, settings.label_column, info.labels, info.numbered)
    if settings.out:
        preflight.check_lasting(settings.out)
        if storage.is_folder(settings.out):
            raise UserError(f"--out {settings.out} is a folder. Give a file, such as metrics.json in it.")
        preflight.check_writable(storage.parent(settings.out))
    classifier = Classifier(files)
    probabilities = classifier.predict_proba(data.texts)
    has_score = ~np.isnan(probabilities).any(axis=1)
    if not has_score.any():
        raise UserError(f"{settings.data}: the tokenizer finds no token in any of its texts. Give labelled text.")
    metrics = info.objective.evaluate(probabilities[has_score], data.labels[has_score], info.labels)
    dropped = replace(data.origin.dropped, without_tokens=int((~has_score).sum()))
    result = Evaluation(**vars(metrics), dropped=dropped, bundle=classifier.digest)
    if settings.out:
        storage.write_file(settings.out, (json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n").encode())
    return result


def describe_metrics(result: Metrics) -> str:
    """Describe metrics in a few lines for the terminal.

    These are the numbers, the confusion matrix, and thresholds for abstaining.
    """
    corner = "true \\ predicted"
    width = max(len(name) for name in [*result.labels, corner])
    lines = [
        f"{result.n:,} rows: accuracy {result.accuracy:.4f}, macro-F1 {result.macro_f1:.4f}, "
        f"calibration error {result.ece:.4f}, Brier score {result.brier:.4f}"
        + (f", mean absolute error {result.mae:.4f} labels" if result.mae is not None else ""),
        " ".join([f"{corner:>{width}}", *(f"{name:>9}" for name in result.labels)]),
    ]
    for name, counts in zip(result.labels, result.confusion, strict=True):
        lines.append(" ".join([f"{name:>{width}}", *(f"{count:9,}" for count in counts)]))
    return "\n".join(lines + _describe_thresholds(result))


def _describe_thresholds(result: Metrics) -> list[str]:
    """Describe the lowest threshold for each target accuracy that abstaining reaches."""
    curve = result.risk_coverage
    points = list(zip(curve.accuracy, curve.min_confidence, curve.coverage, strict=True))
    lines = []
    for target in TARGET_ACCURACIES:
        reaching = [point for point in points if point[0] >= target]
        if target > result.accuracy and reaching:
            accuracy, confidence, coverage = max(reaching, key=lambda point: point[2])
            threshold = math.floor(confidence * 1e4) / 1e4
            lines.append(
                f"--min-confidence {threshold} labels {100 * coverage:.0f} % of the rows; "
                f"{100 * accuracy:.1f} % of those labels are right"
            )
    return lines
