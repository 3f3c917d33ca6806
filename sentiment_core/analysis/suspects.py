"""Rank labels that are probably wrong, by a model that has not seen the rows.

A label is suspected where the model gives another answer. Suspects are ranked by the normalized margin, as in
confident learning (Northcutt, Jiang and Chuang 2021), whose library cleanlab has a license that excludes it here.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.sample_columns import escape
from sentiment_core.model.objective import Objective

HEADER = ("rank", "text", "label", "predicted", "label_probability", "confidence", "file", "row")


@dataclass(frozen=True)
class Suspects:
    """Rows whose label the model contradicts, the worst first. All arrays are (suspects,)."""

    rows: np.ndarray  # int64, indices among the rows that were ranked
    label_probability: np.ndarray  # of the label; of several the least, over the labels, that each is as it stands
    confidence: np.ndarray  # of the model in its answer


def find_suspects(objective: Objective, probabilities: np.ndarray, targets: np.ndarray) -> Suspects:
    """Find and rank suspected labels.

    Args:
        objective: Of the model.
        probabilities: (n, labels) float, without NaN.
        targets: (n,) int, or (n, labels) bool.
    """
    decisions, confidence = objective.decide(probabilities)
    if targets.ndim == 1:
        rows = np.arange(len(targets))
        label_probability = probabilities[rows, targets]
        others = probabilities.copy()
        others[rows, targets] = -np.inf
        margin = label_probability - others.max(axis=1)
    else:
        # each label is a question of its own, with the margin between its two answers
        own = np.where(targets, probabilities, 1 - probabilities)
        contradicted = np.where(decisions == targets, np.inf, own)
        label_probability = contradicted.min(axis=1, initial=np.inf)
        margin = 2 * label_probability - 1
    wrong = np.flatnonzero(~objective.is_right(decisions, targets))
    ranked = wrong[np.argsort(margin[wrong], kind="stable")]
    return Suspects(ranked, label_probability[ranked], confidence[ranked])


def format_suspects(
    suspects: Suspects, data: LabelledTexts, objective: Objective, decisions: Sequence[np.ndarray] | np.ndarray
) -> bytes:
    """Return suspects as CSV in UTF-8 with a byte-order mark, which spreadsheets look for.

    Args:
        suspects: Indices into `data`.
        data: The rows that were ranked.
        objective: Of the model.
        decisions: Of the model for all rows of `data`.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(HEADER)
    for rank, row in enumerate(suspects.rows.tolist(), 1):
        path, number = data.locate(row)
        answers = (
            objective.name_decision(decision, data.label_names) for decision in (data.labels[row], decisions[row])
        )
        numbers = (suspects.label_probability[rank - 1], suspects.confidence[rank - 1])
        writer.writerow(
            [
                rank,
                escape(data.texts[row]),
                *map(escape, answers),
                *(f"{p:.4f}" for p in numbers),
                escape(path),
                number + 1,
            ]
        )
    return buffer.getvalue().encode("utf-8-sig")
