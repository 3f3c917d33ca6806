"""A cascade of two engines: the large one computes the rows that the small one is less sure of.

Which rows these are is decided here and nowhere else. A row keeps the small model's answer where the large one's
tokenizer finds nothing in its text, and has none where the small one's does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sentiment_core.inference.classified import Classified
from sentiment_core.inference.engine import EMPTY, Engine
from sentiment_core.model import bundle
from sentiment_core.model.bundle import LARGE, PARTS, SMALL
from sentiment_core.text.token_lists import DistinctLists

SEPARATOR = "; "  # between what is said of both models


class Cascade:
    """Two engines with one answer a row; it has what the stages of scoring ask of an `Engine`."""

    def __init__(
        self, small: Engine, large: Engine, threshold: float, large_order: Sequence[int], tolerance: float = 0.0
    ) -> None:
        """Join two engines.

        Args:
            small: Computes all rows.
            large: Computes those that are handed over.
            threshold: Rows with less confidence by the small model are handed over.
            large_order: For each label of the small model, its place among those of the large one.
            tolerance: Of rows within it from the threshold both models' answers are given; 0: of none.
        """
        self.engines = {SMALL: small, LARGE: large}
        self.objective, self.classes, self.chip = small.objective, small.classes, small.chip
        self.threshold = np.float32(threshold)
        self.large_order = list(large_order)
        self.tolerance = tolerance

    @classmethod
    def load(
        cls,
        folder: str,
        tolerance: float = 0.0,
        choices: Mapping[str, str] = EMPTY,
        work_tokens: float = 0.0,
        **settings: Any,
    ) -> "Cascade":
        """Load the cascade in a local folder; the settings are those of `Engine.load`.

        `choices` are by chip what `choice` says of both models.
        """
        info, infos = bundle.read_info(folder), [bundle.read_info(str(Path(folder, part))) for part in PARTS]
        work = {SMALL: work_tokens, LARGE: work_tokens * info.cascade.escalated_share}
        engines = {
            part: Engine.load(
                str(Path(folder, part)),
                choices={chip: _take_part(noted, part) for chip, noted in choices.items()},
                work_tokens=work[part],
                **settings,
            )
            for part in PARTS
        }
        order = [infos[1].labels.index(label) for label in infos[0].labels]
        return cls(engines[SMALL], engines[LARGE], info.cascade.threshold, order, tolerance)

    def classify(self, small_tokens: DistinctLists, large_tokens: DistinctLists) -> Classified:
        """Compute all rows with the small model, and those below the threshold with the large one."""
        small, padding = self.engines[SMALL].distinct_probabilities(small_tokens)
        confidence = self.objective.decide(small)[1]
        may_go_on = large_tokens.lengths > 0
        with np.errstate(invalid="ignore"):  # rows without tokens
            escalated = (confidence < self.threshold) & may_go_on
            is_near = (np.abs(confidence - self.threshold) <= self.tolerance) & may_go_on & (self.tolerance > 0)
        rows = np.flatnonzero(escalated | is_near)
        large = np.full_like(small, np.nan)
        if len(rows):
            computed, large_padding = self.engines[LARGE].distinct_probabilities(large_tokens.select(rows))
            large[rows] = computed[:, self.large_order]
            padding += large_padding
        is_large, is_other = escalated[:, None], is_near[:, None]
        others = np.where(is_other, np.where(is_large, small, large), np.float32(np.nan)) if self.tolerance else None
        return Classified(np.where(is_large, large, small), padding, escalated, others)

    @property
    def is_usable(self) -> bool:
        """True unless an error left the device refusing this process everything."""
        return all(engine.is_usable for engine in self.engines.values())

    @property
    def computed_by(self) -> str:
        """Names of the backends and number types that compute."""
        return self._join(lambda engine: engine.computed_by)

    @property
    def choice(self) -> str:
        """The choices of both models, as `load` takes them."""
        return self._join(lambda engine: str(engine.choice))

    @property
    def margin(self) -> str:
        """The measured lead of the choices over others."""
        return self._join(lambda engine: engine.margin)

    @property
    def remarks(self) -> list[str]:
        """List what users should know of the computation."""
        return [f"{part}: {remark}" for part, engine in self.engines.items() for remark in engine.remarks]

    def _join(self, describe: Any) -> str:
        """Join what is said of both models; empty if nothing is."""
        texts = {part: describe(engine) for part, engine in self.engines.items()}
        return SEPARATOR.join(f"{part}: {text}" for part, text in texts.items() if text)


def _take_part(noted: str, part: str) -> str:
    """Return the choice of one model from those of both."""
    choices = (text.partition(": ") for text in noted.split(SEPARATOR))
    return next((choice for name, _, choice in choices if name == part), "")


def load_engine(folder: str, tolerance: float = 0.0, **settings: Any) -> Engine | Cascade:
    """Load what computes the bundle in a local folder.

    Args:
        folder: Of the bundle.
        tolerance: Within which a cascade gives both models' answers.
        **settings: Those of `Engine.load`.
    """
    if bundle.read_info(folder).is_cascade:
        return Cascade.load(folder, tolerance, **settings)
    return Engine.load(folder, **settings)
