"""Rows packed one behind the other, for GPUs."""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from sentiment_core.inference.backends.base import BackendUnavailable, SplitClassifier, in_precision, token_budget
from sentiment_core.model.families import WINDOWED_ATTENTION
from sentiment_core.runtime import hardware
from sentiment_core.text.batching import packs_by_tokens
from sentiment_core.text.token_lists import TokenLists

LEAST_STEP_TOKENS = 512  # of a step of few rows
KERNEL_STEP = 8  # the attention kernels take heads of multiples of it; TinyBERT's have 26 numbers
FLASH_CAPABILITY = (8, 0)  # of the first GPUs that torch's flash attention runs on
EVERYWHERE = -1  # a window without bounds


class Packed:
    """Torch on the tokens of many rows, one row behind the other, without padding between them.

    All layers but the attention treat tokens one by one, and the attention keeps to each row's own tokens
    (`torch.nn.attention.varlen`). A step is filled up to the next power of two (a longer row to a multiple of the
    budget): few sizes keep few kernels, and with them a row's last bits. Only steps of the budget's size are compiled.
    Meant for GPUs; a CPU computes the same slowly, in smaller steps.
    """

    def __init__(
        self, classifier: SplitClassifier, device: torch.device, dtype: torch.dtype, pad_id: int, compiled: bool
    ) -> None:
        if classifier.is_whole:
            raise BackendUnavailable("this family's head looks at more than the first token")
        if not getattr(classifier.encoder.encoder, "_supports_attention_backend", False):
            raise BackendUnavailable("this family brings its own attention")
        if device.type == "cuda" and dtype == torch.float32:
            raise BackendUnavailable("attention of packed rows computes with 16 bits on GPUs")
        self.name = f"{'compiled' if compiled else 'packed'} {hardware.dtype_name(dtype)}"
        self.device, self.pad_id = device, pad_id
        self.budget = token_budget(device)
        encoder: Any = in_precision(classifier.encoder.encoder, dtype)  # type: ignore[arg-type]
        encoder.config._attn_implementation = PACKED_ATTENTION
        embeddings = getattr(encoder, "embeddings", None)
        self.skips_padding = hasattr(embeddings, "create_position_ids_from_input_ids")  # RoBERTa and its kin
        self.encoder = encoder
        self.full_step_encoder = torch.compile(encoder, fullgraph=True) if compiled else encoder
        self.least_tokens = self.budget if compiled else LEAST_STEP_TOKENS

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """Pack rows into steps within the budget."""
        return packs_by_tokens(lengths, self.budget)

    def __call__(self, tokens: TokenLists, batches: list[np.ndarray]) -> torch.Tensor:
        """Compute the rows of all batches."""
        states = torch.cat([self._step(tokens, rows) for rows in batches])
        self.least_tokens = LEAST_STEP_TOKENS  # the first call, the probe's, is for the compiled encoder
        return states

    def _step(self, tokens: TokenLists, rows: np.ndarray) -> torch.Tensor:
        picked = tokens.take(rows)
        total, longest = len(picked.ids), int(picked.lengths.max())
        size = total + self.padding(picked.lengths)
        all_ids = np.full(size, self.pad_id, np.int64)
        all_ids[:total] = picked.ids
        # what fills up the step are rows too, no longer than the others
        all_offsets = np.union1d(picked.offsets, [*range(total, size, longest), size])
        all_positions = self._positions(all_ids, all_offsets)
        ids, positions, offsets = hardware.to_device(self.device, all_ids, all_positions, all_offsets.astype(np.int32))
        torch._dynamo.maybe_mark_dynamic(offsets, 0)
        encoder = self.full_step_encoder if size == self.budget else self.encoder
        states = encoder(
            input_ids=ids[None],
            position_ids=positions[None],
            cu_seq_lens_q=offsets,
            max_length_q=torch.tensor(longest),  # a number would be compiled in
        ).last_hidden_state[0]
        return states[offsets[: len(rows)].long()]

    def _positions(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Count the tokens of each row up, (size,) int64.

        RoBERTa and its kin count from behind the padding id, and do not count that id, which a text may hold, too.
        """
        sizes = np.diff(offsets)
        if not self.skips_padding:
            return np.arange(len(ids)) - np.repeat(offsets[:-1], sizes)
        is_counted = ids != self.pad_id
        counted = np.concatenate([[0], np.cumsum(is_counted)])
        return (counted[1:] - np.repeat(counted[offsets[:-1]], sizes)) * is_counted + self.pad_id

    def padding(self, lengths: np.ndarray) -> int:
        """Count the tokens that fill up a step."""
        total = int(lengths.sum())
        if total > self.budget:
            return -total % self.budget
        return min(self.budget, max(self.least_tokens, 1 << (total - 1).bit_length())) - total


@torch.library.custom_op("sentiment_core::attend_packed", mutates_args=())
def attend_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Compute attention of packed rows, each token to those of its own row up to `window` tokens away.

    `query`, `key` and `value` are (tokens, heads, size); a row goes from one of the `offsets`, (rows + 1) int32, to the
    next. `longest` is the length of the longest row, on the CPU. Returns (tokens, heads, size).
    """
    if not query.is_cuda:
        return _attend_row_by_row(query, key, value, offsets, scale, window)
    return _attend_on_gpu(query, key, value, offsets, int(longest), scale, window).contiguous()


@attend_packed.register_fake
def _attend_packed_shape(query, key, value, offsets, longest, scale, window):
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def _attend_on_gpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    offsets: torch.Tensor,
    longest: int,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Compute the attention of `attend_packed` by the kernel that this GPU has."""
    if torch.cuda.get_device_capability(query.device) < FLASH_CAPABILITY:
        if window != EVERYWHERE:
            raise BackendUnavailable("attention within a sliding window needs a GPU of capability 8.0 or newer")
        return attend_efficiently(query, key, value, offsets, longest, scale)
    from torch.nn.attention.varlen import varlen_attn  # takes a second, which CPUs need not spend

    bounds = (window, window)
    return varlen_attn(query, key, value, offsets, offsets, longest, longest, scale=scale, window_size=bounds)  # type: ignore[return-value]


def attend_efficiently(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    """Compute attention of packed rows by torch's memory-efficient kernel, which runs on older GPUs too.

    Shapes are those of `attend_packed`. torch's nested tensors call it in the same way.
    """
    q, k, v = (states[None] for states in (query, key, value))
    without_mask, dropout = 0, 0.0
    states, *_ = torch.ops.aten._efficient_attention_forward(
        q, k, v, None, offsets, offsets, longest, longest, dropout, without_mask, False, scale=scale
    )
    return states[0]


def _attend_row_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: torch.Tensor, scale: float, window: int
) -> torch.Tensor:
    """Compute the attention of `attend_packed` on a CPU."""
    sizes = torch.diff(offsets).tolist()
    rows = zip(*(part.transpose(0, 1).split(sizes, dim=1) for part in (query, key, value)), strict=True)
    states = [
        nn.functional.scaled_dot_product_attention(q, k, v, _window_mask(size, window), scale=scale)
        for size, (q, k, v) in zip(sizes, rows, strict=True)
    ]
    return torch.cat(states, dim=1).transpose(0, 1).contiguous()


def _window_mask(size: int, window: int) -> torch.Tensor | None:
    """Return which tokens of a row see which, (size, size); None where each sees all."""
    if window == EVERYWHERE or size <= window + 1:
        return None
    positions = torch.arange(size)
    return (positions[:, None] - positions).abs() <= window


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: torch.Tensor,
    sliding_window: int | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Compute attention of packed rows, by transformers' interface.

    `query`, `key` and `value` are (1, heads, tokens, size); returns (1, tokens, heads, size).
    """
    window = EVERYWHERE
    if sliding_window is not None:
        config: Any = module.config
        if config.model_type not in WINDOWED_ATTENTION:
            raise BackendUnavailable("this family attends within a sliding window")
        window = sliding_window - 1  # flash attention's convention, by which transformers counts: the token's own too
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    size = query.shape[-1]
    if padding := -size % KERNEL_STEP:  # zeros, which change no product
        q, k, v = (nn.functional.pad(states, (0, padding)) for states in (q, k, v))
    return attend_packed(q, k, v, cu_seq_lens_q, max_length_q, scaling, window)[..., :size].unsqueeze(0), None


PACKED_ATTENTION = "sentiment_core_packed"
AttentionInterface.register(PACKED_ATTENTION, packed_attention)
