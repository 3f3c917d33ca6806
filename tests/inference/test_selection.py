"""Which ways to compute are tried, and in which order."""

import pytest
import torch

from sentiment_core.errors import UserError
from sentiment_core.inference.selection import BACKENDS, find_backend, list_choices

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16_CHIP, OLD_CHIP = {"avx512_bf16": True, "cpu_name": "Chip"}, {"avx2": True, "cpu_name": "Chip"}


@pytest.fixture
def chip(monkeypatch):
    """Let torch describe another CPU and GPU than there are."""

    def describe(cpu: dict[str, object] = OLD_CHIP, gpu_has_bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu_has_bf16)

    describe()
    return describe


def names(*arguments, **more) -> list[str]:
    return [str(choice) for choice in list_choices(*arguments, **{"precision": "auto"} | more)]


def test_on_a_cpu_each_native_number_type_and_sharing_of_batches_is_a_choice(chip):
    shared = ["openvino float32", "openvino float32, threads sharing batches", "torch float32"]
    assert names(None, CPU, 2, False) == names(None, CPU, 2, True) == shared
    assert names(None, CPU, 1, False) == ["openvino float32", "torch float32"]
    chip(BF16_CHIP)
    assert names(None, CPU, 1, False) == ["openvino bfloat16", "openvino float32", "torch bfloat16", "torch float32"]


@pytest.mark.parametrize(("gpu_has_bf16", "number_type"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_computes_in_its_fast_number_type(chip, gpu_has_bf16, number_type):
    chip(gpu_has_bf16=gpu_has_bf16)
    assert names(None, CUDA, 2, False) == [f"packed {number_type}", f"torch {number_type}"]
    assert names(None, CUDA, 2, True) == [f"{name} {number_type}" for name in ("compiled", "packed", "torch")]


def test_a_backend_asked_for_is_the_only_one_tried_wherever_it_runs(chip):
    for entry in BACKENDS:
        assert {choice.backend for choice in list_choices(entry.name, CPU, 2, False, "auto")} == {entry.name}


def test_a_precision_asked_for_is_the_only_one_tried(chip):
    chip(BF16_CHIP)
    for precision in ("float32", "bfloat16"):
        types = {choice.number_type for choice in list_choices(None, CPU, 2, False, precision)}
        assert types == {precision}


@pytest.mark.parametrize(("device", "precision"), [(CPU, "bfloat16"), (CPU, "float16")])
def test_a_precision_that_the_chip_lacks_is_refused_with_those_it_has(chip, device, precision):
    with pytest.raises(UserError, match=rf"--precision {precision}: Chip computes float32 only\. Leave out"):
        list_choices(None, device, 2, False, precision)


def test_an_unknown_backend_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no backend 'fast'; expected one of compiled, packed, openvino, int8, torch"):
        find_backend("fast")
