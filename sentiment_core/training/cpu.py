"""What a CPU needs to train fast: dropout and attention that cost a fraction of torch's there, and do the same; and
parts of a batch side by side.

Torch draws dropout's random numbers one by one, and with them a third of a training step on reviews is dropout. Here
16 random bits decide each, many at a time.
"""

import copy
import os
import platform
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from sentiment_core.model.classifier import PLAIN_ATTENTION, Classifier
from sentiment_core.text.batching import longest_first

ATTENTION = "sentiment_core_cpu"
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes
LEVELS = 1 << 16  # in which a probability is told: 0.1 becomes 0.100006
# Of attention's scores computed at a time. For 32 MB and more, glibc's malloc asks the system each time, and gives them
# back: fresh pages cost more than what is computed on them.
SCORES_BYTES = (32 << 20) - (64 << 10)
HEADS = 12  # of a family that does not tell
STREAMS = 2  # parts of a batch that are computed side by side
# Up to so many tokens of a batch are computed in one part by all threads: what each part takes for itself, the weights'
# gradients above all, makes two 1.3 times as slow at 200 tokens, and 0.94 at 1,500.
SMALL = 1024

_own = threading.local()  # `numbers`, in threads that compute a part of a batch


class _Drop(torch.autograd.Function):
    """Zeroes elements with probability `p`, and leaves the others as they are."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        numbers = _random(x.shape)
        # all bits of what is kept: `and` takes a twentieth of the time of `where`
        kept = torch.ge(numbers, _threshold(p), out=torch.empty_like(numbers)).neg_().to(INTEGERS[x.element_size()])
        ctx.save_for_backward(kept)
        return _and(x, kept)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _and(gradients[0], *ctx.saved_tensors), None


def _and(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    return (x.view(bits.dtype) & bits).view(x.dtype)


def _random(shape: torch.Size) -> torch.Tensor:
    """int16, any of them equally likely. By this thread's own numbers, or by torch's generator, on whose state they so
    depend."""
    numbers = getattr(_own, "numbers", None) or _numbers(int(torch.randint(1 << 62, ())))
    raw = numbers.integers(1 << 64, size=-(-shape.numel() // 4), dtype=np.uint64)
    return torch.from_numpy(raw.view(np.int16)[: shape.numel()]).view(shape)


def _numbers(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(seed))


def _threshold(p: float) -> int:
    return _dropped(p) - LEVELS // 2


def _dropped(p: float) -> int:
    """Of `LEVELS`."""
    return min(round(p * LEVELS), LEVELS - 1)


def _kept(p: float) -> float:
    return 1 - _dropped(p) / LEVELS


class Dropout(nn.Dropout):
    """`nn.Dropout` (Srivastava et al. 2014) on a CPU. Under autocast its result has autocast's type, and with it what
    the layers behind add up and normalise, which autocast alone leaves in float32."""

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
    """Attention as transformers' "eager", with fewer passes over the scores; all are (rows, heads, tokens, width).

    Where neither dropout, which it does not know on CPUs, nor bfloat16 speaks against it, the fused kernel is taken:
    as fast on short rows, faster on long ones.
    """
    drops = dropout if module.training else 0.0
    if not drops and query.dtype == torch.float32:
        fused = nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling)
        return fused.transpose(1, 2).contiguous(), None
    scores = (query * (scaling or query.size(-1) ** -0.5)) @ key.transpose(2, 3)
    if attention_mask is not None:
        # in place: what makes the scores does not look at them again; float32's least number is none of bfloat16's, and
        # of a query that may look at nothing there must be numbers left
        scores += attention_mask.clamp(min=torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).to(value.dtype)
    # what is scaled up to make up for the dropped is the result, which is smaller
    attended = (_Drop.apply(weights, drops) @ value) / _kept(drops) if drops else weights @ value
    return attended.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def environment() -> dict[str, str]:
    """What a process that trains should be started with: jemalloc, of which Ray brings a build along, with large pages
    and without giving memory back to the system (`dirty_decay_ms`; https://jemalloc.net/jemalloc.3.html). Steps of ever
    other sizes cost glibc's malloc a tenth of their time, to search and for pages that it touches anew."""
    library = os.path.join(os.path.dirname(ray.__file__), "core", "libjemalloc.so")
    if "LD_PRELOAD" in os.environ or platform.machine() != "x86_64" or not os.path.exists(library):
        return {}  # the user's own choice; what was built for other sizes of pages; no Linux
    return {"LD_PRELOAD": library, "MALLOC_CONF": "thp:always,dirty_decay_ms:-1"}


def budget(tokens: int, config: Any, longest: int) -> int:
    """Of so many `tokens` that may be computed at a time, how many should be, where rows have up to `longest`."""
    return min(tokens, SCORES_BYTES // (4 * getattr(config, "num_attention_heads", HEADS) * longest))


def is_plain(model: Classifier) -> bool:
    """Whether the model's family takes the attention above."""
    config: Any = model.encoder.config
    return config.model_type in PLAIN_ATTENTION


def prepare(model: Classifier) -> None:
    """Make the model train faster."""
    pretrained: Any = model.pretrained
    pretrained.set_attn_implementation(ATTENTION if is_plain(model) else "eager")
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))


class Streams:
    """Threads that each compute a part of a batch. Threads that share one wait at every operation for whichever the
    other processes interrupt: beside Ray's, two parts side by side are faster.

    All randomness must be the dropouts' above: each part has its own, whichever thread is first, and so the same
    training ends the same.
    """

    def __init__(self, model: Classifier, dtype: torch.dtype, threads: int) -> None:
        # `set_num_threads` is for the thread that calls it
        self.pool = ThreadPoolExecutor(STREAMS, "stream", torch.set_num_threads, (max(1, threads // STREAMS),))
        self.twin = _twin(model, dtype)
        self.parameters = list(zip(model.parameters(), self.twin.parameters(), strict=True))
        self.gradients = [torch.empty_like(p) for p in model.parameters()]  # fresh memory each time takes longer

    @staticmethod
    def parts(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
        """All rows once, in parts of similar work of up to `budget` tokens, padding included: one where they are few,
        else as many for each thread where there are enough rows."""
        order = longest_first(lengths)
        longest = int(lengths[order[0]])
        if len(order) * longest <= min(budget, SMALL):
            return [order]
        rounds = -(-len(order) // max(1, budget // longest) // STREAMS)
        return np.array_split(order, min(len(order), max(1, rounds) * STREAMS))

    def backward(
        self, loss: Callable[[Classifier, np.ndarray], torch.Tensor], parts: Sequence[np.ndarray]
    ) -> torch.Tensor:
        """Add the gradients of the parts' losses, which are summed and given back; in the order of the parts."""
        with torch.no_grad():
            for own, copied in self.parameters:
                if own is not copied:
                    copied.copy_(own)
        trained = [p for _, p in self.parameters]

        def gradients(part: np.ndarray, seed: int) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
            _own.numbers = _numbers(seed)
            try:
                found = loss(self.twin, part)
            finally:
                _own.numbers = None  # or this thread's dropouts would no longer depend on torch's state
            return found.detach(), torch.autograd.grad(found, trained, allow_unused=True)

        losses = []
        run = self.pool.map if len(parts) > 1 else map
        for found, given in run(gradients, parts, torch.randint(1 << 62, (len(parts),)).tolist()):
            losses.append(found)
            for (parameter, _), gradient, place in zip(self.parameters, given, self.gradients, strict=True):
                if gradient is None:  # some heads leave the encoder's pooler without one
                    continue
                if parameter.grad is not None:
                    parameter.grad += gradient
                else:
                    parameter.grad = place.zero_().add_(gradient) if gradient.is_sparse else place.copy_(gradient)
        return torch.stack(losses).sum()


def _twin(model: Classifier, dtype: torch.dtype) -> Classifier:
    """The same model with the same parameters, but copies of its linear layers' in `dtype`, which else each part would
    convert for itself; the gradients of its embeddings have but the rows that were looked up."""
    memo: dict[int, Any] = {id(p): p for p in model.parameters()}
    for module in model.modules():
        if type(module) is nn.Linear and dtype != torch.float32:
            memo |= {id(p): nn.Parameter(p.detach().to(dtype)) for p in module.parameters()}
    twin = copy.deepcopy(model, memo).train()
    for module in twin.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = True
    return twin
