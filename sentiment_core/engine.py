"""A bundle on a device: token lists in, calibrated probabilities out. Knows nothing of Ray or of files to score."""

from collections.abc import Callable

import numpy as np
import torch

from sentiment_core import bundle, classifier, hardware
from sentiment_core.tokens import TokenLists, batches_by_tokens, pad

# tokens of a batch, padding included. A CPU is fastest while activations stay in its caches (1,000 to 2,000 tokens on
# a Zen 5 core); a GPU wants enough to fill its multiprocessors.
TOKEN_BUDGET = {"cpu": 2_048, "cuda": 32_768}


# what the families call their attention's query and key layers; one that fuses them runs in bf16 throughout
QUERY_KEY = {"query", "key", "q_lin", "k_lin", "query_proj", "key_proj"}


class Engine:
    def __init__(self, folder: str, threads: int | None = None) -> None:
        """Load the bundle in a local folder. `threads` (CPU only): how many to compute with; None leaves torch's."""
        self.device = hardware.device()
        self.dtype = hardware.compute_dtype(self.device)
        self.threads = threads
        model, self.tokenizer, self.info = bundle.load(folder)
        self.labels = self.info.labels
        self.pad_id = self.tokenizer.pad_token_id or 0
        last = classifier.last_layer(model, len(self.labels))
        self.model = model.to(self.device)
        # Weights and sums stay in float32, autocast multiplies in bf16. Not so the logits (rounded to bf16, one of size
        # 4 could move a probability by 0.008), nor queries and keys, whose errors the attention enlarges:
        # on 1,000 sentences that took the largest difference to float32 from 0.0103 to 0.0077, for 10 % of the speed.
        for name, layer in self.model.named_modules():
            if layer is last or name.rpartition(".")[2] in QUERY_KEY:
                layer.forward = self._in_float32(layer.forward)

    def probabilities(self, tokens: TokenLists) -> tuple[np.ndarray, int]:
        """Probabilities (n, classes) float32 in the order of `tokens`, NaN for rows without tokens, and the number of
        tokens computed for them, padding included."""
        if self.threads and self.device.type == "cpu":
            torch.set_num_threads(self.threads)  # holds for the calling thread only
        found = np.full((len(tokens), len(self.labels)), np.nan, np.float32)
        lengths = tokens.lengths
        computed = 0
        # around all batches, so that the weights are cast once
        with torch.inference_mode(), hardware.autocast(self.device, self.dtype):
            for rows in batches_by_tokens(lengths, TOKEN_BUDGET[self.device.type]):
                logits = self.model(**pad(tokens, rows, self.pad_id, self.device))
                found[rows] = torch.softmax(logits.float(), dim=1).cpu().numpy()
                computed += len(rows) * int(lengths[rows[0]])
        return found, computed

    def _in_float32(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        def compute(inputs: torch.Tensor) -> torch.Tensor:
            with hardware.autocast(self.device, torch.float32):
                return forward(inputs.float())

        return compute
