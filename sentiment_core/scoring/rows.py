"""Rows of a work unit: as texts when they are read, and with scores when these are computed or reused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sentiment_core.model.objective import Objective
from sentiment_core.text.distinct_sketch import sketch_texts
from sentiment_core.text.status import OK, TRUNCATED
from sentiment_core.text.token_lists import TokenLists

LABELLED = (OK, TRUNCATED)  # status of rows that have a label


@dataclass(frozen=True)
class ReadTexts:
    """Some of a unit's texts, each distinct one once, and their tokens."""

    texts: Sequence[str | None]  # distinct
    lengths: np.ndarray  # (texts,) tokens of each; 0 where there is nothing to score
    row_tokens: TokenLists  # of all rows
    unknown_id: int | None  # token id of what the tokenizer does not know; None: it knows everything

    @cached_property
    def sketch(self) -> list[int]:
        """The sketch of the texts that have tokens."""
        return sketch_texts(text for text, length in zip(self.texts, self.lengths, strict=True) if length)


@dataclass(frozen=True)
class ScoredRows:
    """Rows of a unit, or of several, as one model scored them, in their order."""

    objective: Objective
    labels: list[str]  # in the order of the probabilities
    status: np.ndarray  # (n,) codes, `ABSTAINED` included
    probabilities: np.ndarray  # (n, classes) float32, NaN where there is no score
    lengths: np.ndarray  # (n,) tokens; of a cascade as its small model reads the rows
    escalated: np.ndarray | None = None  # (n,) bool: rows that a cascade's large model answered; None: no cascade
    # where verifying: the rows as the other model of a cascade answers them, NaN but near the threshold
    other: "ScoredRows | None" = None

    def take(self, rows: np.ndarray) -> "ScoredRows":
        """Select rows."""
        return replace(
            self,
            status=self.status[rows],
            probabilities=self.probabilities[rows],
            lengths=self.lengths[rows],
            escalated=None if self.escalated is None else self.escalated[rows],
            other=None if self.other is None else self.other.take(rows),
        )

    def exchange(self, rows: np.ndarray) -> "ScoredRows":
        """Return the rows with the `other` answer in those that `rows`, (n,) bool, marks."""
        if self.other is None or not rows.any():
            return self
        return replace(
            self,
            status=np.where(rows, self.other.status, self.status),
            probabilities=np.where(rows[:, None], self.other.probabilities, self.probabilities),
        )

    @cached_property
    def has_score(self) -> np.ndarray:
        """(n,) bool: rows that have probabilities."""
        return ~np.isnan(self.probabilities).any(axis=1)

    @cached_property
    def has_label(self) -> np.ndarray:
        """(n,) bool: rows that have probabilities and do not abstain."""
        return self.has_score & np.isin(self.status, LABELLED)

    @cached_property
    def confidence(self) -> np.ndarray:
        """(n,) float32: probability of the decision, also where the row abstains; NaN where there is no score."""
        return self.objective.decide(self.probabilities)[1]

    @property
    def label_counts(self) -> np.ndarray:
        """(classes,) int: rows that get each label."""
        return self.objective.count_labels(self.probabilities[self.has_label])


@dataclass(frozen=True)
class ReusedRows:
    """Rows of a unit whose scores by one model stand in an earlier output, as statistics need them."""

    labels: list[str]
    status: np.ndarray  # (n,) codes, `ABSTAINED` included
    confidence: np.ndarray  # (n,) float32, NaN where there is no score
    label_counts: np.ndarray  # (classes,) int: rows that have each label

    @property
    def has_score(self) -> np.ndarray:
        """(n,) bool: rows that have a confidence."""
        return ~np.isnan(self.confidence)

    @property
    def escalated(self) -> None:
        """None: no model computed these rows."""

    @property
    def lengths(self) -> np.ndarray:
        """(n,) int: no tokens, since these rows are not tokenized."""
        return np.zeros(len(self.status), np.int64)
