"""Run a model on token lists, in this worker's share and number type."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import nn

from sentiment_core.model.classifier import Classifier
from sentiment_core.model.families import PLAIN_ATTENTION
from sentiment_core.runtime import hardware
from sentiment_core.text.batching import batches_by_tokens, pad
from sentiment_core.text.token_lists import TokenLists

EVAL_TOKENS = 8192  # of an evaluation batch: fits any GPU, and a CPU's caches do not mind


@dataclass(frozen=True)
class Forward:
    """Forward pass of a worker: device, number type, limits."""

    device: torch.device
    dtype: torch.dtype  # of products
    max_length: int  # tokens that the encoder reads at a time
    pad_id: int
    expands_mask: bool  # the model takes `expand_mask`'s mask

    def logits(self, model: nn.Module, tokens: TokenLists, rows: np.ndarray) -> torch.Tensor:
        """Compute logits of rows, (rows, classes) float32; those of a text in several windows are averaged."""
        windows, first = tokens.take(rows).windows(self.max_length)
        padded_ids, padded_mask = pad(windows, np.arange(len(windows)), self.pad_id)
        ids, mask = hardware.to_device(self.device, padded_ids, padded_mask)
        inputs_mask = expand_mask(mask, is_padded=not padded_mask.all()) if self.expands_mask else mask
        with hardware.autocast(self.device, self.dtype):
            logits = model(ids, inputs_mask).float()
            if len(windows) == len(rows):
                return logits
            counts = np.diff(np.append(first, len(windows)))
            row_of_window = np.repeat(np.arange(len(rows)), counts)
            indices, divisor = hardware.to_device(self.device, row_of_window, counts[:, None])
            return logits.new_zeros(len(rows), logits.shape[1]).index_add(0, indices, logits) / divisor

    def predict(self, model: nn.Module, tokens: TokenLists, classes: int, rank: int, workers: int) -> np.ndarray:
        """Compute logits of all rows, (n, classes) float32, each worker a share; every worker gets all."""
        model.eval()
        rows, logits = [], []
        with torch.inference_mode():
            for batch in batches_by_tokens(tokens.lengths, EVAL_TOKENS)[rank::workers]:
                rows.append(batch)
                logits.append(self.logits(model, tokens, batch).cpu().numpy())
        shares = [(rows, logits)]
        if workers > 1:
            shares = [None] * workers  # type: ignore[list-item]
            torch.distributed.all_gather_object(shares, (rows, logits))
        everything = np.empty((len(tokens), classes), np.float32)
        for share_rows, share_logits in shares:
            for batch, values in zip(share_rows, share_logits, strict=True):
                everything[batch] = values
        return everything


def can_expand_mask(model: Classifier) -> bool:
    """Return whether a model takes the mask of `expand_mask`: plain attention by torch's own function."""
    config: Any = model.encoder.config
    return config.model_type in PLAIN_ATTENTION and config._attn_implementation == "sdpa"


def expand_mask(mask: torch.Tensor, is_padded: bool) -> torch.Tensor | None:
    """Expand a mask (rows, tokens) to the (rows, 1, tokens, tokens) bool of attention; None without padding.

    transformers would do the same, but look at the mask first. For that the host waits for the GPU in each batch, and
    cannot launch ahead.
    """
    tokens = mask.shape[1]
    return mask.bool()[:, None, None, :].expand(-1, -1, tokens, -1) if is_padded else None
