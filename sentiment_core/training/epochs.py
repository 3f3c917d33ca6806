"""Keep how far a training is: the epoch and step it is at, the records before it, and what cross-validation gave."""

from typing import Any

import numpy as np
import torch

from sentiment_core.model.records import EpochRecord


class RunProgress:
    """Position of a worker's run. Steps are counted from 0 in each epoch."""

    def __init__(self, steps: int, device: torch.device, fold_logits: np.ndarray | None = None) -> None:
        """Begin before the first epoch, which has so many steps.

        `fold_logits`: (epochs, rows, classes) of the evaluation rows by cross-validation, if that evaluates.
        """
        self.device = device
        self.fold_logits = fold_logits
        self.epoch = self.steps_before = 0  # steps of the epochs before
        self.step = 0
        self.log: list[EpochRecord] = []
        self.begin_epoch(steps)

    def begin_epoch(self, steps: int) -> None:
        """Go on to the next epoch, which has so many steps."""
        self.steps_before += self.step
        self.epoch += 1
        self.step = 0
        self.seconds = 0.0
        self.losses = torch.zeros(steps, device=self.device)  # of this epoch; this worker's shares

    @property
    def steps(self) -> int:
        """Steps of this epoch."""
        return len(self.losses)

    @property
    def steps_done(self) -> int:
        """Steps done in all epochs."""
        return self.steps_before + self.step

    def epochs_done(self, step: float) -> float:
        """Return how many epochs are done when so many steps of this one are."""
        return self.epoch - 1 + step / self.steps

    @property
    def epochs_since_best(self) -> int:
        """Epochs since the best one, the first of equal ones."""
        values = [record.selected_by for record in self.log]
        return len(values) - 1 - int(np.argmax(values)) if values else 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "at": [self.epoch, self.step, self.steps_before, self.seconds],
            "losses": self.losses,
            "fold_logits": None if self.fold_logits is None else torch.from_numpy(self.fold_logits),
            "log": [record.to_json() for record in self.log],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.epoch, self.step, self.steps_before, self.seconds = state["at"]
        self.losses = state["losses"].to(self.device)
        self.fold_logits = None if state["fold_logits"] is None else state["fold_logits"].numpy()
        self.log = [EpochRecord.from_json(record) for record in state["log"]]
