"""The answers of an engine to rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Classified:
    """Rows as an engine computed them. Rows without tokens have NaN probabilities."""

    probabilities: np.ndarray  # (n, classes) float32
    padding_tokens: int  # that were computed
    escalated: np.ndarray | None = None  # (n,) bool: rows that a cascade's large model answered; None: no cascade
    # (n, classes) float32: of rows near the threshold the answer of the model that did not decide, else NaN
    others: np.ndarray | None = None

    @classmethod
    def none(cls, classes: int, is_cascade: bool) -> "Classified":
        """Return no rows, with probabilities of so many classes."""
        return cls(np.zeros((0, classes), np.float32), 0, np.zeros(0, bool) if is_cascade else None)

    @classmethod
    def join(cls, parts: Sequence["Classified"]) -> "Classified":
        """Return the rows of all parts, one or more, one after another."""

        def join(name: str) -> Any:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values)

        padding_tokens = sum(part.padding_tokens for part in parts)
        return cls(join("probabilities"), padding_tokens, join("escalated"), join("others"))

    def other_side(self) -> "Classified | None":
        """Return the same rows as the other model answers them, where that is known; None if it is of no row."""
        if self.others is None or self.escalated is None:
            return None
        return Classified(self.others, 0, ~self.escalated)

    def pick(self, *values: np.ndarray) -> np.ndarray:
        """Choose of each row, by the model that answered it, from values of the small and of the large model."""
        return values[0] if self.escalated is None else np.where(self.escalated, values[1], values[0])
