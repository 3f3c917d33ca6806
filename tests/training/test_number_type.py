"""A training computes in the number type whose steps are the fastest here."""

import time

import pytest
import torch

from sentiment_core.errors import UserError
from sentiment_core.training.number_type import NumberType, choose_number_type

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def bf16_chip(tmp_path, monkeypatch):
    """A chip that lists bf16, and nothing measured on it yet."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "cpu_name": "Chip"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("seconds_in_bf16", "expected"), [(0.005, torch.bfloat16), (0.02, torch.float32), (0.04, torch.float32)]
)
def test_bf16_is_taken_where_its_steps_are_a_tenth_faster(seconds_in_bf16, expected):
    seconds = {torch.bfloat16: seconds_in_bf16, torch.float32: 0.02}
    assert choose_number_type(CPU, "auto", lambda dtype: time.sleep(seconds[dtype]), {}) == expected


def test_a_choice_is_measured_once_for_a_shape():
    steps = []
    for shape in ({"batch_size": 32}, {"batch_size": 32}, {"batch_size": 64}):
        choose_number_type(CPU, "auto", steps.append, shape)
    assert len(steps) == 2 * 2 * 4  # shapes, number types, a warm-up and three rounds


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_precision_asked_for_is_taken_unmeasured(precision):
    assert choose_number_type(CPU, precision, pytest.fail, {}) == getattr(torch, precision)


def test_a_precision_that_the_chip_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "Old chip"})
    with pytest.raises(UserError, match="--precision bfloat16: Old chip computes float32 only"):
        choose_number_type(CPU, "bfloat16", pytest.fail, {})


def test_a_gpu_without_bf16_trains_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert choose_number_type(torch.device("cuda"), "auto", pytest.fail, {}) == torch.float32


def test_a_resumed_run_goes_on_in_its_number_type():
    resumed = NumberType(torch.float32)
    resumed.load_state_dict(NumberType(torch.bfloat16).state_dict())
    assert resumed.dtype == torch.bfloat16
