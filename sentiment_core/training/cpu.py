"""Train fast on a CPU: dropout and attention that cost a fraction of torch's and do the same, and sharded batches.

Torch draws dropout's random numbers one by one: a third of a training step on reviews is dropout. Here 16 random bits
decide each element, and many are drawn at a time.
"""

import copy
import ctypes
import os
import platform
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from sentiment_core.model.classifier import Classifier
from sentiment_core.model.families import PLAIN_ATTENTION, WINDOWED_ATTENTION
from sentiment_core.runtime.cpu_threads import start_pool
from sentiment_core.text.batching import longest_first
from sentiment_core.training.gradients import LossOfRows

ATTENTION = "sentiment_core_cpu"
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by size in bytes
LEVELS = 1 << 16  # steps in which a probability is expressed: 0.1 becomes 0.100006
# Attention scores computed at a time. For 32 MB and more, glibc's malloc asks the system each time and gives the memory
# back: fresh pages cost more than what is computed on them.
SCORES_BYTES = (32 << 20) - (64 << 10)
HEADS = 12  # attention heads of a family whose configuration does not say
SPIN_COUNT = 3_000  # rounds that a waiting thread spins, before it sleeps
GIVE_BACK_AFTER_S = 30.0
PURGE_ALL_ARENAS = b"arena.4096.purge"  # 4096 is jemalloc's MALLCTL_ARENAS_ALL
SHARDS = 2  # parts of a batch that are computed side by side
# Up to so many tokens of a batch are computed in one part by all threads: the work that each part repeats, the weights'
# gradients above all, makes two parts take 1.3 times as long at 200 tokens, and 0.94 times at 1,500.
SMALL_TOKENS = 1024

_own = threading.local()  # `numbers`, in threads that compute a part of a batch


class _Drop(torch.autograd.Function):
    """A function that zeroes elements with probability `p` and does not scale the others."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        numbers = _random(x.shape)
        # all bits of what is kept: `and` takes a twentieth of the time of `where`
        mask = torch.ge(numbers, _threshold(p), out=torch.empty_like(numbers)).neg_().to(INTEGERS[x.element_size()])
        ctx.save_for_backward(mask)
        return _and(x, mask)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _and(gradients[0], *ctx.saved_tensors), None


def _and(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    return (x.view(bits.dtype) & bits).view(x.dtype)


def _random(shape: torch.Size) -> torch.Tensor:
    """Draw uniform int16 numbers, from this thread's own generator, or seeded by torch's, on whose state they then depend."""
    numbers = getattr(_own, "numbers", None) or _numbers(int(torch.randint(1 << 62, ())))
    raw = numbers.integers(1 << 64, size=-(-shape.numel() // 4), dtype=np.uint64)
    return torch.from_numpy(raw.view(np.int16)[: shape.numel()]).view(shape)


def _numbers(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


def _threshold(p: float) -> int:
    return _dropped(p) - LEVELS // 2


def _dropped(p: float) -> int:
    """Return how many of `LEVELS` are dropped."""
    return min(round(p * LEVELS), LEVELS - 1)


def _kept(p: float) -> float:
    return 1 - _dropped(p) / LEVELS


class Dropout(nn.Dropout):
    """`nn.Dropout` (Srivastava et al. 2014) on a CPU.

    Under autocast its result has autocast's type, and so have the sums and norms of the layers behind it, which autocast
    alone leaves in float32.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        return _Drop.apply(x, self.p) / _kept(self.p) if self.p else x


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention as transformers' "eager" does, with fewer passes over the scores.

    `query`, `key` and `value` are (rows, heads, tokens, width). In float32 without dropout, which it lacks on CPUs, the
    fused kernel is used: as fast on short rows, faster on long ones.
    """
    drops = dropout if module.training else 0.0
    if not drops and query.dtype == torch.float32:
        fused = nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
        return fused.transpose(1, 2).contiguous(), None
    scores = (query * (scaling or query.size(-1) ** -0.5)) @ key.transpose(2, 3)
    if attention_mask is not None:
        # In place, since the product's backward pass does not need the scores. The mask is clamped since float32's least
        # number does not fit bfloat16, and a query with everything masked must still give finite numbers.
        scores += attention_mask.clamp(min=torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).to(value.dtype)
    # the result is scaled up for what was dropped, instead of the weights: it is smaller
    attended = (_Drop.apply(weights, drops) @ value) / _kept(drops) if drops else weights @ value
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def environment() -> dict[str, str]:
    """Return the environment variables to start a training process with: short spinning, and jemalloc as built for Ray.

    Threads that share an operation wait for one another at its end. By default they spin for milliseconds
    (GOMP_SPINCOUNT of libgomp), and where another process needs the cores, they keep from them whom they wait for. On two
    Zen 3 cores a training of short rows made 60 to 80 rows/s alone, and 5 to 7 beside one busy process. With
    `SPIN_COUNT` it makes 62 to 64 and 32; without spinning 42 to 54 and 44 to 50.

    jemalloc uses large pages and gives no memory back to the system by itself (`dirty_decay_ms`,
    https://jemalloc.net/jemalloc.3.html; `UnusedMemory` does it now and then). Steps of always different sizes cost
    glibc's malloc a tenth of their time, to search and for fresh pages, and jemalloc too if it decays.
    """
    variables = {}
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):  # the user's own choice
        variables["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    library = os.path.join(os.path.dirname(ray.__file__), "core", "libjemalloc.so")
    # the user's own choice; a build for other page sizes; not Linux
    if "LD_PRELOAD" not in os.environ and platform.machine() == "x86_64" and os.path.exists(library):
        variables |= {"LD_PRELOAD": library, "MALLOC_CONF": "thp:always,dirty_decay_ms:-1"}
    return variables


class UnusedMemory:
    """Memory that jemalloc holds and nothing uses.

    Steps of always different sizes leave fragments between what stays. Without giving back, 600 steps of MPNet took a
    process from 4 to 11 GB.
    """

    def __init__(self) -> None:
        self.given_back_at = time.monotonic()
        self.control = getattr(ctypes.CDLL(None), "mallctl", None)  # of jemalloc, if `environment` preloaded it
        if self.control:
            self.control.argtypes = [ctypes.c_char_p, *[ctypes.c_void_p] * 3, ctypes.c_size_t]

    def give_back(self, after_s: float = GIVE_BACK_AFTER_S) -> None:
        """Give it back to the system, if the last time was so long ago: milliseconds, and the pages are fresh again."""
        if self.control and time.monotonic() - self.given_back_at >= after_s:
            self.control(PURGE_ALL_ARENAS, None, None, None, 0)
            self.given_back_at = time.monotonic()


def limit_budget(tokens: int, config: Any, longest: int) -> int:
    """Lower a budget of tokens computed at a time, so that attention scores of rows up to `longest` stay small."""
    return min(tokens, SCORES_BYTES // (4 * getattr(config, "num_attention_heads", HEADS) * longest))


def has_fast_attention(model: Classifier) -> bool:
    """Tell whether the model's family can use the attention above, and with it parts of a batch side by side.

    The mask knows of windows. In ModernBERT's shape the attention alone gains nothing: a step on rows of 25 and of 275
    tokens took within 3 % of the time that "eager" takes, on one core of an EPYC.
    """
    config: Any = model.encoder.config
    return config.model_type in PLAIN_ATTENTION + WINDOWED_ATTENTION


def prepare(model: Classifier) -> None:
    """Replace the model's attention and dropouts by the fast ones."""
    pretrained: Any = model.pretrained
    pretrained.set_attn_implementation(ATTENTION if has_fast_attention(model) else "eager")
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))


class ShardedBackward:
    """One worker with several CPU threads: each computes a part of a batch, side by side.

    Threads that share one part wait at every operation for whichever the other processes interrupt; beside Ray's, two
    parts side by side are faster. All randomness must be the dropouts' above: each part has its own numbers, whichever
    thread is first, and so the same training ends the same.
    """

    def __init__(self, model: Classifier, dtype: torch.dtype, threads: int) -> None:
        self.pool = start_pool("shard", SHARDS, max(1, threads // SHARDS))
        self.copy = _low_precision_copy(model, dtype)
        self.parameters = list(zip(model.parameters(), self.copy.parameters(), strict=True))
        self.gradients = [torch.empty_like(p) for p in model.parameters()]  # fresh memory each time takes longer

    @staticmethod
    def split(lengths: np.ndarray, budget_tokens: int) -> list[np.ndarray]:
        """Split all rows into parts of similar work of up to `budget_tokens`, padding included.

        There is one part where tokens are few, else as many for each thread where there are enough rows.
        """
        order = longest_first(lengths)
        longest = int(lengths[order[0]])
        if len(order) * longest <= min(budget_tokens, SMALL_TOKENS):
            return [order]
        rounds = -(-len(order) // max(1, budget_tokens // longest) // SHARDS)
        return np.array_split(order, min(len(order), max(1, rounds) * SHARDS))

    def add_gradients(self, loss: LossOfRows, lengths: np.ndarray, budget_tokens: int) -> torch.Tensor:
        """Add the gradients of the batch, split into parts."""
        return self.add_parts(loss, self.split(lengths, budget_tokens))

    def add_parts(self, loss: LossOfRows, parts: Sequence[np.ndarray]) -> torch.Tensor:
        """Add the gradients of the parts, in their order; return the sum of their losses."""
        with torch.no_grad():
            for own, copied in self.parameters:
                if own is not copied:
                    copied.copy_(own)
        trained = [p for _, p in self.parameters]

        def compute(rows: np.ndarray, seed: int) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
            _own.numbers = _numbers(seed)
            try:
                share = loss(self.copy, rows)
            finally:
                _own.numbers = None  # or this thread's dropouts would no longer depend on torch's state
            return share.detach(), torch.autograd.grad(share, trained, allow_unused=True)

        shares = []
        run = self.pool.map if len(parts) > 1 else map
        for share, gradients in run(compute, parts, torch.randint(1 << 62, (len(parts),)).tolist()):
            shares.append(share)
            for (parameter, _), gradient, buffer in zip(self.parameters, gradients, self.gradients, strict=True):
                if gradient is None:  # some heads leave the encoder's pooler without one
                    continue
                if parameter.grad is not None:
                    parameter.grad += gradient
                else:
                    parameter.grad = buffer.zero_().add_(gradient) if gradient.is_sparse else buffer.copy_(gradient)
        return torch.stack(shares).sum()


def _low_precision_copy(model: Classifier, dtype: torch.dtype) -> Classifier:
    """Copy the model, sharing its parameters, but those of its linear layers in `dtype`.

    Else each part would convert them for itself. The gradients of its embeddings have only the rows that were looked up.
    """
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    for module in model.modules():
        if type(module) is nn.Linear and dtype != torch.float32:
            memo |= {id(p): nn.Parameter(p.detach().to(dtype)) for p in module.parameters()}
    copied = copy.deepcopy(model, memo).train()
    for module in copied.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = True
    return copied
