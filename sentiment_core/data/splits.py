"""Divide labelled rows into parts to train on and to evaluate on, each label in proportion.

All rows of a text are in the same part: one that was trained on would prove nothing.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from sklearn.model_selection import train_test_split

from sentiment_core.data import labels
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import SHOWN_LABELS
from sentiment_core.errors import UserError


def hold_out(data: LabelledTexts, fraction: float, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Split into a training and an evaluation part.

    The evaluation part holds `fraction` of the distinct texts, and of one label a row no fewer than there are labels.
    A label with one text is trained on, and said to be. Raises `UserError` for too few rows.
    """
    texts = _DistinctTexts.of(data)
    held_out, needed = round(fraction * len(texts.divisible)), 1 if data.several else len(texts.shared_labels)
    if not data.several:
        held_out = max(held_out, needed)
    texts.check(held_out, needed)
    if data.several:
        evaluation = _draw_stratified(texts.labels, fraction, np.random.default_rng(seed))
        texts.check(len(evaluation), needed)
    else:
        strata = texts.labels[texts.divisible]
        _, evaluation = train_test_split(texts.divisible, test_size=held_out, stratify=strata, random_state=seed)
        evaluation = _leave_one_to_train(texts, evaluation)
    is_evaluated = np.isin(texts.of_rows, evaluation)
    train_part, eval_part = (data.take(np.flatnonzero(rows)) for rows in (~is_evaluated, is_evaluated))
    remarks = _remarks(data, labels.count_labels(eval_part.labels, len(data.label_names)) == 0)
    return replace(train_part, origin=replace(data.origin, remarks=remarks)), eval_part


def deal_folds(data: LabelledTexts, folds: int, seed: int) -> np.ndarray:
    """Deal the rows out to folds for cross-validation; return the fold of each row, (n,) int64.

    The texts of the rarest label are dealt out first, each to the fold that has the fewest of them, of equal ones to
    the smallest (Sechidis et al. 2011, On the Stratification of Multi-Label Data). There are no more folds than texts.
    Of one label a row, a label with one text gets -1, since no other fold could teach it. Raises `UserError` for too
    few rows.
    """
    texts, rng = _DistinctTexts.of(data), np.random.default_rng(seed)
    texts.check(1, 1)
    is_label = texts.labels if data.several else texts.labels[:, None] == np.arange(len(data.label_names))
    folds = min(folds, len(texts.divisible))
    fold_of_text, left = np.full(len(is_label), -1), np.isin(np.arange(len(is_label)), texts.divisible)
    sizes, counts = np.zeros(folds, int), np.zeros((folds, is_label.shape[1]), int)
    for label in [*np.argsort(texts.counts, kind="stable"), None]:  # at last the texts without labels
        chosen = left if label is None else left & is_label[:, label]
        for text in rng.permutation(np.flatnonzero(chosen)):
            wanted = sizes if label is None else counts[:, label]
            fold = np.lexsort((sizes, wanted))[0]
            fold_of_text[text] = fold
            sizes[fold] += 1
            counts[fold] += is_label[text]
        left &= ~chosen
    return fold_of_text[texts.of_rows]


def name_unevaluated(data: LabelledTexts) -> list[str]:
    """Return the remarks on the data, with one on the labels that no fold evaluates: they have one text."""
    return _remarks(data, _DistinctTexts.of(data).counts == 1)


@dataclass(frozen=True)
class _DistinctTexts:
    """The distinct texts of labelled rows, each with the labels of its first row."""

    of_rows: np.ndarray  # (rows,) number of each row's text
    labels: np.ndarray  # (texts,) int64; or (texts, labels) bool
    counts: np.ndarray  # (labels,) texts that have each label

    @classmethod
    def of(cls, data: LabelledTexts) -> "_DistinctTexts":
        """Make numbers for the texts of labelled rows."""
        numbers: dict[str, int] = {}
        of_rows = np.array([numbers.setdefault(text, len(numbers)) for text in data.texts])
        text_labels = data.labels[np.unique(of_rows, return_index=True)[1]]
        return cls(of_rows, text_labels, labels.count_labels(text_labels, len(data.label_names)))

    @property
    def shared_labels(self) -> np.ndarray:
        """Labels of two texts or more, which can be in both parts."""
        return np.flatnonzero(self.counts > 1)

    @cached_property
    def divisible(self) -> np.ndarray:
        """Numbers of the texts that either part can have."""
        if self.labels.ndim == 2:
            return np.arange(len(self.labels))
        return np.flatnonzero(self.counts[self.labels] > 1)

    def check(self, held_out: int, needed: int) -> None:
        """Raise `UserError` unless so many texts can be held out, and each part gets as many as needed."""
        least_labels = 1 if self.labels.ndim == 2 else 2
        is_enough = held_out >= needed and len(self.divisible) - held_out >= needed
        if len(self.shared_labels) < least_labels or not is_enough:
            raise UserError(
                f"the data cannot be split into a training and an evaluation part: {len(self.divisible)} rows"
                f"{' (of distinct texts)' * (len(self.labels) < len(self.of_rows))} of {len(self.shared_labels)} "
                "labels with two or more are too few; add rows or give --eval-data"
            )


def _remarks(data: LabelledTexts, never: np.ndarray) -> list[str]:
    """Return the remarks on the data, with one on the labels that are `never` evaluated, (labels,) bool."""
    occurs = labels.count_labels(data.labels, len(data.label_names)) > 0
    chosen = np.flatnonzero(never & occurs)
    names = ", ".join(data.label_names[i] for i in chosen[:SHOWN_LABELS])
    remark = f"trained on but never evaluated, since they have too few texts: {names}"
    return [*data.origin.remarks, *[remark] * (len(chosen) > 0)]


def _leave_one_to_train(texts: _DistinctTexts, evaluation: np.ndarray) -> np.ndarray:
    """Return the texts to evaluate on without one of each label that would be left with none to train on."""
    evaluated = np.bincount(texts.labels[evaluation], minlength=len(texts.counts))
    without_rows = np.flatnonzero((evaluated > 0) & (evaluated == texts.counts))
    to_train = [evaluation[texts.labels[evaluation] == label][0] for label in without_rows]
    return evaluation[~np.isin(evaluation, to_train)]


def _draw_stratified(text_labels: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Draw `fraction` of the texts, so that each label of two texts or more is on both sides, in proportion.

    The texts of the rarest label are dealt out first, then those of the next that are left (Sechidis et al. 2011, On
    the Stratification of Multi-Label Data). Texts without labels come last and make up the number.

    Args:
        text_labels: (texts, labels) bool.
        fraction: Of the texts to draw.
        rng: Source of randomness.

    Returns:
        Numbers of the texts drawn.
    """
    counts = text_labels.sum(axis=0)
    drawn, left = np.zeros(len(text_labels), bool), np.ones(len(text_labels), bool)
    for label in np.argsort(counts, kind="stable"):
        texts = rng.permutation(np.flatnonzero(left & text_labels[:, label]))
        wanted = np.clip(round(fraction * counts[label]), min(1, counts[label] - 1), max(0, counts[label] - 1))
        missing = int(np.clip(wanted - (drawn & text_labels[:, label]).sum(), 0, len(texts)))
        drawn[texts[:missing]] = True
        left[texts] = False
    unlabelled = rng.permutation(np.flatnonzero(left))
    missing = int(np.clip(round(fraction * len(text_labels)) - drawn.sum(), 0, len(unlabelled)))
    drawn[unlabelled[:missing]] = True
    return np.flatnonzero(drawn)
