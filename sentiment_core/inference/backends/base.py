"""Ways to run an encoder: batches of token lists in, one vector per row out. This one runs every model on every device;
`packed` and `openvino_cpu` are faster where they fit.
"""

import copy
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from sentiment_core.runtime import hardware
from sentiment_core.text.batching import batches_by_tokens, pad
from sentiment_core.text.token_lists import TokenLists

# Tokens of a batch, padding included. A CPU is fastest while activations stay in its caches: 1,000 to 2,000 tokens on a
# Zen 5 core, 15 % slower at 512 and 4,096. A GPU wants enough to fill its multiprocessors.
CPU_TOKENS, CUDA_TOKENS = 2_048, 32_768
# CPU kernels take 16 numbers at a time and the rest one by one. A batch whose lengths lie between two multiples of 16
# treats each row as it would alone, to the last bit; others differ by up to 0.003 in a probability.
CPU_STEP = 16


class Backend(Protocol):
    name: str
    budget: int  # tokens of a batch; whoever runs out of memory may lower it

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """All rows with tokens once, in batches."""

    def __call__(self, tokens: TokenLists, batches: list[np.ndarray]) -> torch.Tensor:
        """(rows, width) float on the device, the rows of all `batches` one behind the other; may still be computing."""

    def padding(self, lengths: np.ndarray) -> int:
        """Tokens computed for nothing with a batch of these lengths."""


@dataclass(frozen=True)
class Parts:
    """A classifier cut in two, so that the little behind the encoder is exact whatever computes the encoder."""

    encoder: nn.Module  # (input_ids, attention_mask) -> (n, width)
    head: nn.Module  # (n, width) -> logits (n, classes)
    whole: bool  # the family cannot be cut behind its first token: `encoder` is all of it


class FirstToken(nn.Module):
    """An encoder, giving the last hidden state of the first token of each row, (n, hidden)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]


class Unfit(Exception):
    """A backend that cannot run this model here; the message says why."""


def budget_for(device: torch.device) -> int:
    return CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS


class PaddedRows:
    """What backends have in common that pad rows to the longest of their batch."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.budget = budget_for(device)

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        return batches_by_tokens(lengths, self.budget, None if self.device.type == "cuda" else CPU_STEP)

    def padding(self, lengths: np.ndarray) -> int:
        return int((lengths.max() - lengths).sum())


def in_precision(encoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy that computes in `dtype`, but for the frequencies of rotary positions: these are multiplied by positions,
    and families compute them in float32 whatever else they do."""
    found = copy.deepcopy(encoder).to(dtype)
    for name, exact in encoder.named_buffers():
        if name.endswith("inv_freq"):
            module, _, own_name = name.rpartition(".")
            setattr(found.get_submodule(module), own_name, exact.clone())
    return found


class Padded(PaddedRows):
    """Plain torch. Runs every model on every device.

    On a CPU each thread computes a batch of its own: with AMX 1.3 times as fast as sharing one, and rows depend less on
    how many are beside them, which decides how threads share a product.
    """

    def __init__(
        self, parts: Parts, device: torch.device, dtype: torch.dtype, pad_id: int, threads: int | None
    ) -> None:
        super().__init__(device)
        self.name = f"torch {hardware.dtype_name(dtype)}"
        self.encoder = parts.encoder if dtype == torch.float32 else in_precision(parts.encoder, dtype)
        self.pad_id = pad_id
        self.map: Callable[..., Iterable[torch.Tensor]] = map
        if device.type == "cpu":  # `set_num_threads` is for the thread that calls it
            self.map = ThreadPoolExecutor(threads or torch.get_num_threads(), "torch", torch.set_num_threads, (1,)).map

    def __call__(self, tokens: TokenLists, batches: list[np.ndarray]) -> torch.Tensor:
        def step(rows: np.ndarray) -> torch.Tensor:
            with torch.inference_mode():  # is each thread's own affair
                return self.encoder(*hardware.to_device(self.device, *pad(tokens, rows, self.pad_id)))

        return torch.cat(list(self.map(step, batches)))
