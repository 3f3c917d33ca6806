"""GPU kernels are called as torch declares them: here stand-ins on a CPU read the arguments."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch.library import _scoped_library

from sentiment_core.inference.backends import torch_packed
from sentiment_core.inference.backends.base import BackendUnavailable
from sentiment_core.inference.backends.torch_packed import EVERYWHERE, attend_efficiently, attend_packed

LENGTHS = [3, 1, 20, 7]
SCALE = 0.3


def draw(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Queries, keys and values (tokens, heads, size), and the rows' offsets."""
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(sum(LENGTHS), 2, 8, generator=generator).to(device, dtype) for _ in range(3)]
    return states, torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32, device=device)


def attend(query, key, value, offsets, scale, left=EVERYWHERE, right=EVERYWHERE) -> torch.Tensor:
    """Attend by the definition, with the whole matrix of scores."""
    row = torch.repeat_interleave(torch.arange(len(offsets) - 1), offsets.diff())
    distance = torch.arange(len(row)) - torch.arange(len(row))[:, None]
    seen = row == row[:, None]
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    scores = torch.einsum("qhs,khs->hqk", query, key) * scale
    return torch.einsum("hqk,khs->qhs", scores.masked_fill(~seen, -math.inf).softmax(-1), value)


def efficient(q, k, v, bias, cu_q, cu_k, max_q, max_k, dropout, mask, with_sums=False, *, scale=None, **others):
    """Stand in for `aten::_efficient_attention_forward`."""
    assert bias is None
    assert (dropout, mask, max_q) == (0, 0, max_k)
    assert max_q >= max(LENGTHS)
    assert torch.equal(cu_q, cu_k)
    assert cu_q.dtype == torch.int32
    assert not any(value is not None for value in others.values())
    states = attend(q[0], k[0], v[0], cu_q, scale)[None]
    return states, *(torch.empty(0) for _ in range(3)), max_q, max_k


def flash(
    q, k, v, cu_q, cu_k, max_q, max_k, dropout, causal, return_debug_mask,
    *, scale=None, window_size_left=None, window_size_right=None, **others,
):  # fmt: skip
    """Stand in for `aten::_flash_attention_forward`."""
    assert (dropout, causal, return_debug_mask) == (0, False, False)
    assert max_q == max_k >= max(LENGTHS)
    assert torch.equal(cu_q, cu_k)
    states = attend(q, k, v, cu_q, scale, window_size_left, window_size_right)
    return states, *(torch.empty(0) for _ in range(4))


@pytest.fixture
def kernels() -> Iterator[None]:
    """Both kernels, for CPUs."""
    with _scoped_library("aten", "IMPL") as library:
        library.impl("_efficient_attention_forward", efficient, "CPU")
        library.impl("_flash_attention_forward", flash, "CPU")
        yield


def test_the_definition_is_what_cpus_compute():
    states, offsets = draw()
    for window in (EVERYWHERE, 0, 4):
        expected = attend(*states, offsets, SCALE, window, window)
        attended = attend_packed(*states, offsets, torch.tensor(max(LENGTHS)), SCALE, window)
        torch.testing.assert_close(attended, expected)


@pytest.mark.parametrize(("capability", "window"), [((7, 5), EVERYWHERE), ((8, 0), EVERYWHERE), ((9, 0), 4)])
@pytest.mark.usefixtures("kernels")
def test_each_gpu_gets_the_kernel_that_it_has(monkeypatch, capability, window):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    states, offsets = draw()
    expected = attend(*states, offsets, SCALE, window, window)
    attended = torch_packed._attend_on_gpu(*states, offsets, max(LENGTHS), SCALE, window)
    torch.testing.assert_close(attended, expected)


def test_older_gpus_have_no_window(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    states, offsets = draw()
    with pytest.raises(BackendUnavailable, match="sliding window needs a GPU"):
        torch_packed._attend_on_gpu(*states, offsets, max(LENGTHS), SCALE, 4)


def test_torch_takes_the_arguments_of_the_kernel_for_older_gpus():
    """By torch's own description of the kernel."""
    states, offsets = draw("meta", torch.float16)
    attended = attend_efficiently(*states, offsets, max(LENGTHS), SCALE)
    assert (attended.shape, attended.dtype) == (states[0].shape, torch.float16)
