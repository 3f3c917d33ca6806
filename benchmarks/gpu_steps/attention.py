"""Check attention of packed rows against float32, row by row, and time its kernels."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from gpu_steps.bench import Bench
from sentiment_core.inference.backends.torch_packed import attend_efficiently, packed_attention
from sentiment_core.runtime import hardware

# (tokens, heads, size) of queries, keys and values, offsets, longest row, scale -> (tokens, heads, size)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float], torch.Tensor]

HEADS, LONG_ROW_HEADS = 12, 2
HEAD_SIZES = (16, 26, 32, 64, 128)  # 26 is filled up to 32
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}  # norm of the error, as a share
SEEN_FACTOR = 10  # how far above the tolerance a lost isolation must lie for the check to mean anything
TOO_MANY_ROWS = 70_000  # the kernel takes 65,535
TIMED_LENGTHS = (31, 256)


def check_attention(bench: Bench) -> None:
    """Record how far packed attention is from float32, and how long its kernels take."""
    types = tuple(dict.fromkeys((bench.half, torch.float16))) if bench.is_cuda else (torch.float32,)
    for name, lengths in make_cases(bench.scale.attention_tokens).items():
        for size in HEAD_SIZES:
            heads = LONG_ROW_HEADS if len(lengths) == 1 else HEADS
            for dtype in types:
                title = f"{name}, heads of {size}, {hardware.dtype_name(dtype)}"
                bench.measure(title, compare, attend_packed, lengths, heads, size, dtype, bench.device)
    bench.measure(f"{TOO_MANY_ROWS} rows", check_refusal, bench)
    for length in TIMED_LENGTHS:
        for name, attend, dtype in (
            *(("packed", attend_packed, dtype) for dtype in types),
            *(("efficient", attend_efficiently, dtype) for dtype in (*types, torch.float32)),
        ):
            title = f"{name}, rows of {length}, {hardware.dtype_name(dtype)}"
            bench.measure(title, time_kernel, bench, attend, length, dtype)


def make_cases(tokens: int) -> dict[str, np.ndarray]:
    """Make the lengths of the rows of each case, in about so many tokens."""
    return {
        "one token": np.array([1]),
        "few rows": np.array([1, 2, 15, 16, 40]),
        "rows without tokens": np.array([0, 5, 0, 0, 31, 128, 0]),
        "sentences": np.full(tokens // 31, 31),
        "paragraphs": np.full(tokens // 256, 256),
        "one row": np.array([tokens]),
        "rows of one token": np.ones(tokens, np.int64),
    }


def attend_packed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, offsets: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    """Compute it as the engine does."""
    q, k, v = (states.transpose(0, 1)[None] for states in (query, key, value))
    states, _ = packed_attention(
        nn.Identity(), q, k, v, None, scaling=scale, cu_seq_lens_q=offsets, max_length_q=torch.tensor(longest)
    )
    return states[0]


def compare(
    attend: Attend, lengths: np.ndarray, heads: int, size: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Compare a way to attend with float32 attention of each row alone.

    Memory that the result is likely to get holds NaN, so that numbers that are never written show. Where rows that
    attend to each other would hardly differ, nothing counts as right.
    """
    states, offsets = _draw_states(lengths, heads, size, dtype, device)
    scale = size**-0.5
    with torch.inference_mode():
        expected = attend_alone(*states, lengths, scale)
        poison = torch.full_like(states[0], torch.nan)
        del poison
        result = attend(*states, offsets, int(lengths.max()), scale).float()
        tolerance = TOLERANCES[dtype]
        error = _relative_norm(result - expected, expected)
        right = error <= tolerance  # False where it is no number
        figures: dict[str, Any] = {"right": right, "error": error, "rows": len(lengths)}
        if 1 < np.count_nonzero(lengths) <= HEADS or len(np.unique(lengths)) == 1 < len(lengths):
            joined = attend_alone(*states, np.array([lengths.sum()]), scale)
            lost = _relative_norm(joined - expected, expected)
            figures |= {"lost_isolation_error": lost, "right": right and lost > SEEN_FACTOR * tolerance}
    return figures


def attend_alone(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: np.ndarray, scale: float
) -> torch.Tensor:
    """Compute attention of each row alone in float32, rows of one length together."""
    states = value.to(torch.float32, copy=True)  # which is the result for rows of one token
    starts = np.cumsum(lengths) - lengths
    for length in np.unique(lengths[lengths > 1]):
        tokens = starts[lengths == length][:, None] + np.arange(length)
        index = torch.from_numpy(tokens.ravel()).to(query.device)
        q, k, v = (part[index].float().unflatten(0, tokens.shape).transpose(1, 2) for part in (query, key, value))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        states[index] = attended.transpose(1, 2).flatten(0, 1)
    return states


def check_refusal(bench: Bench) -> dict[str, Any]:
    """Check that more rows than the kernel takes are refused, or computed right."""
    bench.require_gpu()
    lengths = np.ones(TOO_MANY_ROWS, np.int64)
    try:
        return compare(attend_packed, lengths, LONG_ROW_HEADS, 32, bench.half, bench.device)
    except RuntimeError as error:
        return {"right": True, "refused": str(error).partition("\n")[0]}


def time_kernel(bench: Bench, attend: Attend, length: int, dtype: torch.dtype) -> dict[str, Any]:
    """Time a kernel on a step of equal rows, and check it."""
    bench.require_gpu()
    lengths = np.full(bench.scale.attention_tokens // length, length)
    figures = compare(attend, lengths, HEADS, 32, dtype, bench.device)
    states, offsets = _draw_states(lengths, HEADS, 32, dtype, bench.device)
    with torch.inference_mode():
        call = functools.partial(attend, *states, offsets, length, 32**-0.5)
        return figures | {"microseconds": 1e6 * bench.device_seconds(call)}


def _draw_states(
    lengths: np.ndarray, heads: int, size: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Draw queries, keys and values, and the rows' offsets."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (int(lengths.sum()), heads, size)
    states = [torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(3)]
    (offsets,) = hardware.to_device(device, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return states, offsets


def _relative_norm(difference: torch.Tensor, expected: torch.Tensor) -> float:
    return float(difference.norm() / expected.norm())
