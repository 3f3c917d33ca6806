"""Choose the number type that a training computes its products in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from sentiment_core.inference import timing
from sentiment_core.inference.timing import Choice
from sentiment_core.model import bundle
from sentiment_core.runtime import hardware, measurements
from sentiment_core.runtime.precision import Precision


@dataclass
class NumberType:
    """The number type of a run's products."""

    dtype: torch.dtype

    def state_dict(self) -> dict[str, str]:
        """Return what a resumed run needs."""
        return {"name": hardware.dtype_name(self.dtype)}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Continue from a checkpoint."""
        self.dtype = getattr(torch, state["name"])


def choose_number_type(
    device: torch.device,
    precision: Precision,
    step: Callable[[torch.dtype], Any],
    shape: dict[str, Any],
) -> torch.dtype:
    """Choose the fastest number type of a training step, as measured; the same on all workers.

    Not float16, in which gradients vanish unless losses are scaled.

    Args:
        device: Of this worker.
        precision: Number type that the user insists on, or `auto`.
        step: Computes the gradients of a batch in a number type.
        shape: What the time of a step depends on, for the record of measurements.

    Raises:
        UserError: This chip does not compute in that precision.
    """
    allowed = hardware.allowed_number_types(device, precision)
    types = [dtype for dtype in allowed if dtype != torch.float16] or [torch.float32]
    choices = [Choice("torch", hardware.dtype_name(dtype)) for dtype in reversed(types)]
    if len(choices) > 1:
        rates = measure_number_types(device, choices, step, shape)
        choices = timing.fastest_first(choices, rates)
    return agree_on_most_exact(choices[0], device)


def measure_number_types(
    device: torch.device, choices: Sequence[Choice], step: Callable[[torch.dtype], Any], shape: dict[str, Any]
) -> dict[str, float]:
    """Return the steps per second of each choice, as measured on this machine now or before."""

    def measure() -> dict[str, float]:
        seconds = timing.race({str(choice): lambda choice=choice: step(choice.dtype) for choice in choices})  # type: ignore[misc]
        return {name: 1 / least for name, least in seconds.items()}

    key = {"what": "training", "chip": hardware.chip_id(device), "libraries": bundle.library_versions(), **shape}
    return measurements.remember(key, measure)


def agree_on_most_exact(choice: Choice, device: torch.device) -> torch.dtype:
    """Return the most exact number type that any worker chose."""
    exactness = timing.EXACTNESS.index(choice.number_type)
    if torch.distributed.is_initialized():
        least = torch.tensor(exactness, device=device)
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        exactness = int(least)
    return getattr(torch, timing.EXACTNESS[exactness])
