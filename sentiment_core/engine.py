"""A bundle on a device: token lists in, calibrated probabilities out. Knows nothing of Ray or of files to score."""

import numpy as np
import torch

from sentiment_core import backends, bundle, hardware
from sentiment_core.tokens import TokenLists, distinct


class Engine:
    def __init__(self, folder: str, threads: int | None = None, backend: str | None = None) -> None:
        """Load the bundle in a local folder.

        `threads` (CPU only): how many to compute with; None leaves the library's choice. `backend`: "packed" (GPU),
        "openvino" (CPU) or "torch"; None takes the fastest that runs this model right here, `passed_over` tells why not
        others. Raises `backends.Unfit` if the one asked for does not.
        """
        self.device = hardware.device()
        self.threads = threads if self.device.type == "cpu" else None
        self._limit_threads()
        model, self.info = bundle.load(folder)
        self.labels = self.info.labels
        self.backend, self.head, self.passed_over = backends.choose(model, self.device, self.threads, backend)

    def probabilities(self, tokens: TokenLists) -> tuple[np.ndarray, int]:
        """Probabilities (n, classes) float32 in the order of `tokens`, NaN for rows without tokens, and the number of
        tokens computed for them, padding included. Rows of the same tokens are computed once."""
        self._limit_threads()
        first, which = distinct(tokens)
        lengths = tokens.lengths[first]
        batches = self.backend.batches(lengths)
        found = np.full((len(first), len(self.labels)), np.nan, np.float32)
        if batches:
            with torch.inference_mode():
                states = torch.cat([self.backend(tokens, first[batch]) for batch in batches])
                found[np.concatenate(batches)] = torch.softmax(self.head(states.float()), dim=1).cpu().numpy()
        return found[which], sum(self.backend.computed(lengths[batch]) for batch in batches)

    def _limit_threads(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)  # holds for the calling thread only
