"""Keep a moving average of the weights, which often does better than the last ones (Polyak averaging).

torch's `AveragedModel` would deep-copy the model and update after every step; here only the parameters are kept, and
they are updated every ten steps, which costs a tenth and gives the same models.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

UPDATE_EVERY_STEPS = 10  # besides the last step of each epoch


class WeightAverage:
    """An exponential moving average of a model's parameters. Does nothing with a decay of 0."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the present weights. `decay`: share of the average that each step leaves."""
        self.parameters: list[torch.Tensor] = list(model.parameters()) if decay else []
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.decay = decay**UPDATE_EVERY_STEPS
        self.updates = 0

    def after_step(self, steps: int, epoch_ends: bool) -> None:
        """Update the average if it is time to, after so many optimizer steps."""
        if self.parameters and (steps % UPDATE_EVERY_STEPS == 0 or epoch_ends):
            self.update()

    def update(self) -> None:
        """Move the average towards the weights. Early updates forget faster, or the first weights would stay long."""
        self.updates += 1
        decay = min(self.decay, self.updates / (10 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights within the context."""
        if not self.parameters:
            yield
            return
        trained = [parameter.detach().clone() for parameter in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
            try:
                yield
            finally:
                torch._foreach_copy_(self.parameters, trained)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.updates = state["updates"]
        with torch.no_grad():
            for average, saved in zip(self.average, state["average"], strict=True):
                average.copy_(saved)
