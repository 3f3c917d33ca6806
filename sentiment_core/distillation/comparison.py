"""Compare student and teacher on the evaluation rows: accuracy, agreement, calibration, speed."""

import time
from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.api import Classifier
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.model.distillation_record import ComparedModel
from sentiment_core.model.source import OpenedModel

TIMED_ROWS = 512  # at most: a large teacher computes some tens of rows per second on a few CPUs
LEAST_SECONDS = 1.0  # for which a model is timed


@dataclass(frozen=True)
class Comparison:
    """A comparison of a student and its teacher on the same rows."""

    rows: int
    agreement: float | None  # None: the teacher was not at hand
    student: ComparedModel
    teacher: ComparedModel | None


def compare(student: OpenedModel, teacher: OpenedModel | None, rows: LabelledTexts, is_by_teacher: bool) -> Comparison:
    """Compare two models of the same labels on labelled rows.

    Args:
        student: The student.
        teacher: The teacher; None: only its answers are there.
        rows: The evaluation rows.
        is_by_teacher: Whether the labels of the rows are the teacher's, which show nobody's accuracy.
    """
    classifiers = [Classifier(model.files) for model in (student, teacher) if model]
    probabilities = [classifier.predict_proba(rows.texts) for classifier in classifiers]
    has_score = ~np.isnan(np.concatenate(probabilities, axis=1)).any(axis=1)
    decisions, shown = [], []
    for classifier, own in zip(classifiers, probabilities, strict=True):
        objective, scored = classifier.info.objective, own[has_score]
        decisions.append(objective.decide(scored)[0])
        speed = ComparedModel(rows_per_second=measure_speed(classifier, rows.texts))
        if is_by_teacher:
            shown.append(speed)
            continue
        metrics = objective.evaluate(scored, rows.labels[has_score], rows.label_names)
        shown.append(replace(speed, accuracy=metrics.accuracy, ece=metrics.ece))
    others = decisions[-1] if teacher else rows.labels[has_score] if is_by_teacher else None
    agreement = None if others is None else float(student.info.objective.is_right(decisions[0], others).mean())
    return Comparison(int(has_score.sum()), agreement, shown[0], shown[-1] if teacher else None)


def measure_speed(classifier: Classifier, texts: list[str]) -> float:
    """Measure how many texts a second a model classifies, tokenizing included; it has computed before."""
    timed, passes, started = texts[:TIMED_ROWS], 0, time.perf_counter()
    while not passes or time.perf_counter() - started < LEAST_SECONDS:
        classifier.predict_proba(timed)
        passes += 1
    return passes * len(timed) / (time.perf_counter() - started)
