"""Define what all backends share: the protocol, the classifier cut behind its encoder, batches of padded rows.

A backend runs an encoder: batches of token lists in, one vector per row out. `inference.selection` lists the backends.
"""

import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from sentiment_core.text.batching import batches_by_tokens
from sentiment_core.text.token_lists import TokenLists

# Tokens of a batch, padding included. A CPU is fastest while activations stay in its caches: 1,000 to 2,000 tokens on a
# Zen 5 core, 15 % slower at 512 and 4,096. A GPU wants enough to fill its multiprocessors.
CPU_TOKENS, CUDA_TOKENS = 2_048, 32_768
# CPU kernels take 16 numbers at a time and the rest one by one. A batch whose lengths lie between two multiples of 16
# treats each row as it would alone, to the last bit; others differ by up to 0.003 in a probability.
CPU_STEP = 16


class Backend(Protocol):
    """A way to run an encoder."""

    name: str  # with its number type, such as `torch bfloat16`
    budget: int  # tokens of a batch; the engine lowers it when memory runs out

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Put the rows that have tokens, each once, into batches of row numbers."""

    def __call__(self, tokens: TokenLists, batches: list[np.ndarray]) -> torch.Tensor:
        """Compute the rows of all batches, in the order of the batches.

        Returns (rows, width) float on the device, which may still be computing.
        """

    def padding(self, lengths: np.ndarray) -> int:
        """Count the tokens of padding that a batch of rows of these lengths costs."""


@dataclass(frozen=True)
class SplitClassifier:
    """A classifier cut in two, so that the small part behind the encoder is exact whatever computes the encoder."""

    encoder: nn.Module  # (input_ids, attention_mask) -> (n, width)
    head: nn.Module  # (n, width) -> logits (n, classes)
    is_whole: bool  # the family cannot be cut behind its first token: `encoder` is all of it


class FirstToken(nn.Module):
    """An encoder that returns the last hidden state of each row's first token, (n, hidden)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Compute the states, (n, hidden)."""
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]


class BackendUnavailable(Exception):
    """A backend cannot run this model here; the message says why."""


def token_budget(device: torch.device) -> int:
    """Return how many tokens a batch on this device has at most."""
    return CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS


class PaddedRows:
    """Batches whose rows are padded to the longest of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.budget = token_budget(device)

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Put rows of similar length together, within the budget."""
        return batches_by_tokens(lengths, self.budget, None if self.device.type == "cuda" else CPU_STEP)

    def padding(self, lengths: np.ndarray) -> int:
        """Count the tokens of padding that a batch of rows of these lengths costs."""
        return int((lengths.max() - lengths).sum())


def in_precision(encoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy an encoder to another number type, except for the frequencies of rotary positions.

    These are multiplied by positions, and families compute them in float32 whatever their other numbers are.
    """
    converted = copy.deepcopy(encoder).to(dtype)
    for name, frequencies in encoder.named_buffers():
        if name.endswith("inv_freq"):
            module, _, own_name = name.rpartition(".")
            setattr(converted.get_submodule(module), own_name, frequencies.clone())
    return converted
