"""Plain torch on padded batches: what every model can run on, and what other backends are compared with."""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from sentiment_core.inference.backends.base import PaddedRows, SplitClassifier, in_precision
from sentiment_core.runtime import cpu_threads, hardware
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists


class Padded(PaddedRows):
    """Plain torch; runs every model on every device.

    On a CPU each thread computes a batch of its own: with AMX 1.3 times as fast as sharing one, and rows depend less on
    how many are beside them, which decides how threads share a product.
    """

    def __init__(
        self, classifier: SplitClassifier, device: torch.device, dtype: torch.dtype, pad_id: int, threads: int | None
    ) -> None:
        super().__init__(device)
        self.name = f"torch {hardware.dtype_name(dtype)}"
        self.encoder = classifier.encoder if dtype == torch.float32 else in_precision(classifier.encoder, dtype)
        self.pad_id = pad_id
        self.map: Callable[..., Iterable[torch.Tensor]] = map
        if device.type == "cpu":
            self.map = cpu_threads.start_pool("torch", threads or cpu_threads.count_usable(), 1).map

    def __call__(self, tokens: TokenLists, batches: list[np.ndarray]) -> torch.Tensor:
        """Compute the rows of all batches."""

        def step(rows: np.ndarray) -> torch.Tensor:
            with torch.inference_mode():  # holds for the calling thread only
                return self.encoder(*hardware.to_device(self.device, *pad(tokens, rows, self.pad_id)))

        return torch.cat(list(self.map(step, batches)))
