"""Read, divide and tokenize the labelled rows of a training."""

from dataclasses import replace
from typing import TypeVar

import numpy as np

from sentiment_core.data import labelled, splits
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import LabelScheme, count_labels, parse_mapping
from sentiment_core.errors import UserError
from sentiment_core.text.status import TRUNCATED
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.text.tokenizer import Tokenizer
from sentiment_core.training.recipe import FIXED
from sentiment_core.training.settings import TrainSettings

Settings = TypeVar("Settings", bound=TrainSettings)

EVAL_FRACTION = 0.1  # of the rows, to hold out
CROSS_VALIDATED_ROWS = 300  # with fewer rows cross-validation evaluates: a tenth of them would prove little
FOLDS = 5  # of cross-validation


def read_parts(
    settings: TrainSettings, scheme: LabelScheme | None = None
) -> tuple[LabelledTexts, LabelledTexts | None]:
    """Read the training part and the evaluation part, with the same labels; the latter as from `divide`.

    `scheme` has the classes of a model that the new one is to replace. Raises `UserError`.
    """
    classes_may_go = scheme is None
    scheme = scheme or LabelScheme(list(settings.label_names) or None, by_user=True)
    scheme = replace(scheme, mapping=scheme.mapping | parse_mapping(settings.label_map))
    read = labelled.read(settings.data, settings.columns, scheme)
    names = labelled.find_frequent_labels(read, settings.min_label_rows) if classes_may_go else read.label_names
    data = labelled.restrict_labels(read, names)
    occurs = count_labels(data.labels, len(names)) > 0
    if occurs.sum() < 2:
        label = ", ".join(repr(name) for name, has_rows in zip(names, occurs, strict=True) if has_rows)
        raise UserError(
            f"column {settings.label_column!r} of {settings.data} has "
            f"{f'the one label {label}' if label else 'only rows without labels'}; expected two or more"
        )
    if settings.ordinal and data.several:
        raise UserError(
            f"--ordinal: column {settings.label_column!r} of {settings.data} has several labels a row, which are not "
            "the steps of a scale; leave --ordinal out"
        )
    if not settings.eval_data:
        return divide(data, settings)
    evaluation = labelled.restrict_labels(labelled.read(settings.eval_data, settings.columns, read.scheme), names)
    new = np.flatnonzero((count_labels(evaluation.labels, len(names)) > 0) & ~occurs)
    if len(new):
        raise UserError(
            f"--eval-data {settings.eval_data} has the label {names[new[0]]!r}, which no row of "
            f"{settings.data} has. Remove those rows, or add some to train on."
        )
    return data, evaluation


def divide(data: LabelledTexts, settings: TrainSettings) -> tuple[LabelledTexts, LabelledTexts | None]:
    """Divide rows into the training part and the evaluation part.

    Few rows are all trained on. Then cross-validation evaluates, and there is no evaluation part. Raises `UserError`.
    """
    if settings.eval_fraction is None and len(data) < CROSS_VALIDATED_ROWS:
        return data, None
    return splits.hold_out(data, settings.eval_fraction or EVAL_FRACTION, settings.seed)


def hold_out_always(settings: Settings) -> Settings:
    """Return settings with which few rows are held out, too, and a metric chooses the epoch.

    Searches and renewals compare models by such rows. These are also the values that older versions had.
    """
    return replace(
        settings,
        eval_fraction=settings.eval_fraction or EVAL_FRACTION,
        select_by=settings.select_by or FIXED.select_by,
    )


def deal_folds(
    part: LabelledTexts, tokens: TokenLists, seed: int
) -> tuple[np.ndarray, LabelledTexts, LabelledTexts, TokenLists]:
    """Deal the rows out to folds for cross-validation. Raises `UserError`.

    Returns:
        The folds, as from `splits.deal_folds`, the rows with what is to say of them, and those that are in a fold, with
        their tokens.
    """
    folds = splits.deal_folds(part, FOLDS, seed)
    rows = np.flatnonzero(folds >= 0)
    remarks = part.origin.remarks if part.several else splits.name_unevaluated(part)
    noted = replace(part, origin=replace(part.origin, remarks=remarks))
    return folds, noted, part.take(rows), tokens.take(rows)


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
