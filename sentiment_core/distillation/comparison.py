"""Compare student and teacher on the evaluation rows: accuracy, agreement, calibration, speed."""

import time
from dataclasses import dataclass

import numpy as np

from sentiment_core.api import Classifier
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.model.distillation_record import ComparedModel
from sentiment_core.model.source import OpenedModel

TIMED_ROWS = 512  # at most: a large teacher computes some tens of rows per second on a few CPUs
WARMUP_ROWS = 16
LEAST_SECONDS = 1.0  # for which a model is timed


@dataclass(frozen=True)
class Comparison:
    """A comparison of a student and its teacher on the same rows."""

    rows: int
    agreement: float | None  # None: the teacher was not at hand
    student: ComparedModel
    teacher: ComparedModel | None


def compare(
    student: OpenedModel, teacher: OpenedModel | None, rows: LabelledTexts, is_by_teacher: bool, on_cpu: bool = False
) -> Comparison:
    """Compare two models of the same labels on labelled rows.

    Args:
        student: The student.
        teacher: The teacher; None: only its answers are there.
        rows: The evaluation rows.
        is_by_teacher: Whether the labels of the rows are the teacher's, which show nobody's accuracy.
        on_cpu: Whether to leave a GPU alone.
    """
    classifiers = [Classifier(model.files, on_cpu=on_cpu) for model in (student, teacher) if model]
    classifier = classifiers[0]
    if is_by_teacher:  # whose answers are there: it need not compute them again
        probabilities = classifier.predict_proba(rows.texts)
        has_score = ~np.isnan(probabilities).any(axis=1)
        objective = classifier.info.objective
        decisions = objective.decide(probabilities[has_score])[0]
        agreement = float(objective.is_right(decisions, rows.labels[has_score]).mean())
        speeds = [ComparedModel(rows_per_second=measure_speed(own, rows.texts)) for own in classifiers]
        return Comparison(int(has_score.sum()), agreement, speeds[0], speeds[1] if teacher else None)
    return _compare_on_labels(classifiers, rows)


def _compare_on_labels(classifiers: list[Classifier], rows: LabelledTexts) -> Comparison:
    """Compare a student and its teacher, if that is at hand, on rows with labels."""
    probabilities = [classifier.predict_proba(rows.texts) for classifier in classifiers]
    has_score = ~np.isnan(np.concatenate(probabilities, axis=1)).any(axis=1)
    decisions, shown = [], []
    for classifier, own in zip(classifiers, probabilities, strict=True):
        objective, scored = classifier.info.objective, own[has_score]
        decisions.append(objective.decide(scored)[0])
        metrics = objective.evaluate(scored, rows.labels[has_score], rows.label_names)
        speed = measure_speed(classifier, rows.texts)
        shown.append(ComparedModel(metrics.accuracy, metrics.ece, speed))
    if len(shown) == 1:
        return Comparison(int(has_score.sum()), None, shown[0], None)
    agreement = float(classifiers[0].info.objective.is_right(*decisions).mean())
    return Comparison(int(has_score.sum()), agreement, *shown)


def measure_speed(classifier: Classifier, texts: list[str]) -> float:
    """Measure how many texts a second a model classifies, tokenizing included."""
    timed = texts[:TIMED_ROWS]
    classifier.predict_proba(timed[:WARMUP_ROWS])
    passes, started = 0, time.perf_counter()
    while not passes or time.perf_counter() - started < LEAST_SECONDS:
        classifier.predict_proba(timed)
        passes += 1
    return passes * len(timed) / (time.perf_counter() - started)
