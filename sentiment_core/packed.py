"""Rows packed one behind the other, without padding: what GPUs compute."""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from sentiment_core import hardware
from sentiment_core.backends import CUDA_TOKENS, Parts, Unfit
from sentiment_core.tokens import TokenLists


class Packed:
    """Torch on the tokens of all rows one behind the other, without padding: all but the attention treats tokens alone,
    and that keeps to each row's own (`torch.nn.attention.varlen`). Meant for GPUs; a CPU gets the same the slow way."""

    def __init__(self, parts: Parts, device: torch.device, dtype: torch.dtype, pad_id: int) -> None:
        if parts.whole:
            raise Unfit("this family's head looks at more than the first token")
        self.name = f"packed {hardware.short_name(dtype)}"
        self.device = device
        encoder: Any = copy.deepcopy(parts.encoder.encoder)
        encoder.config._attn_implementation = PACKED_ATTENTION
        self.encoder = encoder.to(dtype)
        # RoBERTa and its kin count positions from behind the padding id
        embeddings = getattr(self.encoder, "embeddings", None)
        self.first_position = pad_id + 1 if hasattr(embeddings, "create_position_ids_from_input_ids") else 0

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        number = np.cumsum(lengths[order]) // CUDA_TOKENS
        return np.split(order, np.flatnonzero(np.diff(number)) + 1) if len(order) else []

    def __call__(self, tokens: TokenLists, rows: np.ndarray) -> torch.Tensor:
        picked = tokens.take(rows)
        starts = np.repeat(picked.offsets[:-1], picked.lengths)
        ids, positions, offsets = hardware.put(
            self.device,
            picked.ids.astype(np.int64),
            np.arange(len(starts)) - starts + self.first_position,
            picked.offsets.astype(np.int32),
        )
        longest = int(picked.lengths.max())
        states = self.encoder(
            input_ids=ids[None],
            position_ids=positions[None],
            cu_seq_lens_q=offsets,
            max_length_q=longest,
        ).last_hidden_state[0]
        return states[offsets[:-1].long()]

    def computed(self, lengths: np.ndarray) -> int:
        return int(lengths.sum())


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Attention in transformers' interface: `query`, `key` and `value` are (1, heads, tokens, size), each row's tokens
    attend to that row's only; gives (1, tokens, heads, size)."""
    if sliding_window is not None:
        raise Unfit("this family attends within a sliding window")
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn  # takes a second, which CPUs need not spend

        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        of_rows = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        found: torch.Tensor = varlen_attn(q, k, v, *of_rows, scale=scaling)  # type: ignore[assignment]
    else:
        sizes = torch.diff(cu_seq_lens_q).tolist()
        rows = zip(*(states[0].split(sizes, dim=1) for states in (query, key, value)), strict=True)
        attend = nn.functional.scaled_dot_product_attention
        found = torch.cat([attend(q, k, v, scale=scaling) for q, k, v in rows], dim=1).transpose(0, 1)
    return found.unsqueeze(0), None


PACKED_ATTENTION = "sentiment_core_packed"
AttentionInterface.register(PACKED_ATTENTION, packed_attention)
