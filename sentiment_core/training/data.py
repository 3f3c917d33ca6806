"""Read, split and tokenize the labelled rows of a training."""

from dataclasses import replace

import numpy as np

from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.errors import UserError
from sentiment_core.text.status import TRUNCATED
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.text.tokenizer import Tokenizer
from sentiment_core.training.settings import TrainSettings


def read_parts(settings: TrainSettings) -> tuple[LabelledTexts, LabelledTexts]:
    """Read the training part and the evaluation part, with the same labels. Raises `UserError`."""
    names = list(settings.label_names) or None
    data = labelled.read(settings.data, settings.text_column, settings.label_column, names)
    classes = np.unique(data.labels)
    if len(classes) < 2:
        raise UserError(
            f"column {settings.label_column!r} of {settings.data} has the one label "
            f"{data.label_names[classes[0]]!r}; expected two or more"
        )
    if not settings.eval_data:
        return labelled.split(data, settings.eval_fraction, settings.seed)
    numbered = data.origin.numbered
    evaluation = labelled.read(
        settings.eval_data, settings.text_column, settings.label_column, data.label_names, numbered
    )
    if new := set(evaluation.labels.tolist()) - set(classes.tolist()):
        raise UserError(
            f"--eval-data {settings.eval_data} has the label {data.label_names[min(new)]!r}, which no row of "
            f"{settings.data} has. Remove those rows, or add some to train on."
        )
    return data, evaluation


def tokenize_part(part: LabelledTexts, tokenizer: Tokenizer) -> tuple[LabelledTexts, TokenLists]:
    """Tokenize the rows; drop and count those without tokens, which have control characters only.

    Raises `UserError` if none is left.
    """
    tokens, status = tokenizer.encode(part.texts)
    rows = np.flatnonzero(tokens.lengths)
    if not len(rows):
        raise UserError(f"{part.origin.place} has no text with a token in it; expected labelled text")
    dropped = replace(part.origin.dropped, without_tokens=len(part) - len(rows))
    origin = replace(part.origin, dropped=dropped, truncated_rows=int((status == TRUNCATED).sum()))
    return replace(part.take(rows), origin=origin), tokens.take(rows)
