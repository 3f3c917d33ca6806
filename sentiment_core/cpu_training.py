"""What a CPU needs to train fast: dropout and attention that cost a fraction of torch's there, and do the same.

Torch draws dropout's random numbers one by one, and with them a third of a training step on reviews is dropout. Here
16 random bits decide each, many at a time.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from sentiment_core.classifier import PLAIN_ATTENTION, Classifier

ATTENTION = "sentiment_core_cpu"
LEVELS = 1 << 16  # in which a probability is told: 0.1 becomes 0.100006
# Of attention's scores computed at a time. For 32 MB and more, glibc's malloc asks the system each time, and gives them
# back: fresh pages cost more than what is computed on them.
SCORES_BYTES = (32 << 20) - (64 << 10)
HEADS = 12  # of a family that does not tell


class _Drop(torch.autograd.Function):
    """Zeroes elements with probability `p`, and leaves the others as they are."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        keep = _random(x.shape) >= _threshold(p)
        ctx.save_for_backward(keep)
        return torch.where(keep, x, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (keep,) = ctx.saved_tensors
        return torch.where(keep, gradients[0], 0.0), None


def _random(shape: torch.Size) -> torch.Tensor:
    """int16, any of them equally likely. By a generator that torch's seeds, on whose state it so depends."""
    seed = int(torch.randint(1 << 62, ()))
    raw = np.random.SFC64(seed).random_raw(-(-shape.numel() // 4))
    return torch.from_numpy(raw.view(np.int16)[: shape.numel()]).view(shape)


def _threshold(p: float) -> int:
    return _dropped(p) - LEVELS // 2


def _dropped(p: float) -> int:
    """Of `LEVELS`."""
    return min(round(p * LEVELS), LEVELS - 1)


def _kept(p: float) -> float:
    return 1 - _dropped(p) / LEVELS


class Dropout(nn.Dropout):
    """`nn.Dropout` (Srivastava et al. 2014) on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Drop.apply(x, self.p) / _kept(self.p) if self.training and self.p else x


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


def budget(tokens: int, config: Any, longest: int) -> int:
    """Of so many `tokens` that may be computed at a time, how many should be, where rows have up to `longest`."""
    return min(tokens, SCORES_BYTES // (4 * getattr(config, "num_attention_heads", HEADS) * longest))


def prepare(model: Classifier) -> None:
    """Make the model train faster."""
    pretrained: Any = model.pretrained
    plain = pretrained.config.model_type in PLAIN_ATTENTION
    pretrained.set_attn_implementation(ATTENTION if plain else "eager")
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
