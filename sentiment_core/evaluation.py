"""Evaluate a bundle on labelled text, on this machine."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.api import Classifier
from sentiment_core.config import REQUIRED, setting
from sentiment_core.data import labelled
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, metrics, registry
from sentiment_core.runtime import preflight, storage


@dataclass(frozen=True)
class EvaluateSettings:
    model: str = setting(REQUIRED, "model bundle made by jobs/train.py: a folder or URI", "BUNDLE")
    data: str = setting(
        REQUIRED,
        "labelled text: Parquet, CSV or JSON Lines (file, folder, glob, URI), or a hub data set as owner/name[:config][:split]",
        "D",
    )
    text_column: str = setting("text", "column with the text")
    label_column: str = setting("label", "column with the label: one of the bundle's names, or its number")
    out: str | None = setting(None, "where to write the metrics; without it they are only printed", "metrics.json")


def evaluate(settings: EvaluateSettings) -> dict:
    """The metrics of `metrics.evaluate` plus the dropped rows and the bundle's digest; also written to `--out`.

    Raises `UserError`, also for a label the bundle does not know.
    """
    info, files = bundle.read_files(registry.resolve(settings.model))
    labels = info.labels
    data = labelled.read(settings.data, settings.text_column, settings.label_column, labels, info.numbered)
    if settings.out:
        preflight.check_lasting(settings.out)
        if storage.is_folder(settings.out):
            raise UserError(f"--out {settings.out} is a folder; expected a file, such as metrics.json in it")
        preflight.check_writable(storage.parent(settings.out))
    classifier = Classifier(files)
    probabilities = classifier.predict_proba(data.texts)
    scored = ~np.isnan(probabilities).any(axis=1)
    if not scored.any():
        raise UserError(f"{settings.data} has no text the tokenizer makes anything of; expected labelled text")
    found = metrics.evaluate(probabilities[scored], data.labels[scored], labels, info.ordinal)
    found["dropped"] = replace(data.origin.dropped, without_tokens=int((~scored).sum())).to_json()
    found["bundle"] = classifier.digest
    if settings.out:
        storage.write_file(settings.out, (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
    return found


WANTED = (0.9, 0.95, 0.98, 0.99)  # accuracies for which `describe` tells what to abstain from


def describe(found: dict) -> str:
    """The metrics as a few lines for the terminal, the confusion matrix and what abstaining gains as tables."""
    corner = "true \\ predicted"
    width = max(len(name) for name in [*found["labels"], corner])
    lines = [
        f"{found['n']:,} rows: accuracy {found['accuracy']:.4f}, macro-F1 {found['macro_f1']:.4f}, "
        f"calibration error {found['ece']:.4f}, Brier score {found['brier']:.4f}"
        + (f", mean absolute error {found['mae']:.4f} labels" if "mae" in found else ""),
        " ".join([f"{corner:>{width}}", *(f"{name:>9}" for name in found["labels"])]),
    ]
    for name, row in zip(found["labels"], found["confusion"], strict=True):
        lines.append(" ".join([f"{name:>{width}}", *(f"{number:9,}" for number in row)]))
    curve = found["risk_coverage"]
    points = list(zip(curve["accuracy"], curve["min_confidence"], curve["coverage"], strict=True))
    for wanted in (wanted for wanted in WANTED if wanted > found["accuracy"]):
        reached = [point for point in points if point[0] >= wanted]
        if reached:
            accuracy, confidence, coverage = max(reached, key=lambda point: point[2])
            share = f"{100 * coverage:.0f} % of the rows"
            lines.append(
                f"--min-confidence {math.floor(confidence * 1e4) / 1e4} labels {share}, {accuracy:.3f} of them right"
            )
    return "\n".join(lines)
