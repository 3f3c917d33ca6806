"""Describe a finished training: warnings, worst mistakes, and what the evaluation rows look like to the model."""

import textwrap

import numpy as np

from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import label_shares
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.objective import Objective
from sentiment_core.model.records import ReferenceStatistics
from sentiment_core.text.token_lists import TokenLists, length_histogram

SHOWN_MISTAKES, SHOWN_CHARACTERS = 25, 400  # in the report


def find_warnings(info: BundleInfo) -> list[str]:
    """Warn if the model is no better than a constant answer."""
    answer = info.metrics.find_constant_answer()
    if not answer:
        return []
    return [
        f"no better than {answer}: the model has not learned. "
        f"Train longer (--epochs {2 * info.training.epochs}), label more rows, or check the labels."
    ]


def reference_statistics(
    objective: Objective,
    tokens: TokenLists,
    probabilities: np.ndarray,
    labels: list[str],
    unknown_id: int | None,
) -> ReferenceStatistics:
    """Describe the evaluation rows, to tell later whether a corpus has drifted from them."""
    predicted, confidence = objective.decide(probabilities)
    return ReferenceStatistics(
        rows=len(tokens),
        predicted_shares=label_shares(predicted, labels),
        confidence_histogram=np.histogram(confidence, bins=20, range=(0, 1))[0].tolist(),
        length_histogram=length_histogram(tokens.lengths),
        tokens=len(tokens.ids),
        tokens_quantiles={str(q): float(np.quantile(tokens.lengths, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        unknown_token_share=0.0 if unknown_id is None else float((tokens.ids == unknown_id).mean()),
    )


def worst_mistakes(objective: Objective, probabilities: np.ndarray, part: LabelledTexts) -> list[dict]:
    """Return the rows that got a wrong label with the most confidence: label, predicted, confidence, text."""
    predicted, confidence = objective.decide(probabilities)
    wrong = np.flatnonzero(~objective.is_right(predicted, part.labels))
    return [
        {
            "label": objective.name_decision(part.labels[row], part.label_names),
            "predicted": objective.name_decision(predicted[row], part.label_names),
            "confidence": float(confidence[row]),
            "text": textwrap.shorten(part.texts[row], SHOWN_CHARACTERS, placeholder=" ..."),
        }
        for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN_MISTAKES]
    ]
