"""Which ways to compute are tried, and in which order."""

import re

import pytest
import torch

from sentiment_core.errors import UserError
from sentiment_core.inference import selection
from sentiment_core.inference.backends.base import FirstToken, SplitClassifier
from sentiment_core.inference.backends.torch_padded import Padded
from sentiment_core.inference.selection import (
    BACKENDS,
    BackendEntry,
    BackendInputs,
    find_backend,
    list_choices,
    order_choices,
)
from sentiment_core.inference.timing import Choice
from sentiment_core.model import bundle, classifier

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
    assert names(None, CPU, 2) == shared
    assert names(None, CPU, 1) == ["openvino float32", "torch float32"]
    chip(BF16_CHIP)
    assert names(None, CPU, 1) == ["openvino bfloat16", "openvino float32", "torch bfloat16", "torch float32"]


@pytest.mark.parametrize(("gpu_has_bf16", "number_type"), [(True, "bfloat16"), (False, "float16")])
def test_a_gpu_computes_in_its_fast_number_type(chip, gpu_has_bf16, number_type):
    chip(gpu_has_bf16=gpu_has_bf16)
    fast = [f"{name} {number_type}" for name in ("compiled", "packed", "torch")]
    assert names(None, CUDA, 2) == [*fast, "torch float32"]  # the last one where 16 bits do not do
    assert names(None, CUDA, 2, precision=number_type) == fast


def test_a_backend_asked_for_is_the_only_one_tried_wherever_it_runs(chip):
    for entry in BACKENDS:
        assert {choice.backend for choice in list_choices(entry.name, CPU, 2, "auto")} == {entry.name}


def test_a_precision_asked_for_is_the_only_one_tried(chip):
    chip(BF16_CHIP)
    for precision in ("float32", "bfloat16"):
        types = {choice.number_type for choice in list_choices(None, CPU, 2, precision)}
        assert types == {precision}


@pytest.mark.parametrize(("device", "precision"), [(CPU, "bfloat16"), (CPU, "float16")])
def test_a_precision_that_the_chip_lacks_is_refused_with_those_it_has(chip, device, precision):
    with pytest.raises(UserError, match=rf"--precision {precision}: Chip computes float32 only\. Leave out"):
        list_choices(None, device, 2, precision)


@pytest.mark.parametrize(
    ("tokens", "first"),
    [(1e6, "packed"), (1e9, "compiled")],  # 5 seconds of work; 83 minutes
)
def test_compiling_waits_for_minutes_of_work(tokens, first):
    choices = [Choice(name, "bfloat16") for name in ("compiled", "packed", "torch")]
    rates = {"packed bfloat16": 1.2e6, "torch bfloat16": 4e5}  # of two layers of twelve
    ordered = order_choices(choices, rates, CUDA, tokens, layers=12)
    assert ordered[0].backend == first
    assert ordered[-1].backend == "torch"
    assert order_choices(choices[:1], {}, CUDA, 0, layers=12) == choices[:1]  # asked for by name
    slow = {"packed bfloat16": 1e5, "torch bfloat16": 4e5}
    assert order_choices(choices, slow, CUDA, tokens, layers=12)[0].backend == "torch"  # compiled it is packed rows too


def test_a_less_exact_type_is_not_taken_on_a_cpu_where_nothing_could_be_measured():
    choices = [Choice(name, dtype) for name in ("openvino", "torch") for dtype in ("bfloat16", "float32")]
    ordered = [str(choice) for choice in order_choices(choices, {}, CPU, 1e6, layers=6)]
    assert ordered == ["openvino float32", "torch float32", "openvino bfloat16", "torch bfloat16"]


def test_a_model_that_overflows_in_16_bits_is_computed_in_float32_from_the_start(tiny_bundle):
    model, info = bundle.load(tiny_bundle)
    model.encoder.encoder.layer[0].intermediate.dense.weight.data *= 1e6
    choices = [Choice("torch", "float16"), Choice("torch", "float32")]  # as at the end of a GPU's
    chosen = selection.select_backend(model, CPU, None, choices, info.objective, None)
    assert chosen.choice == choices[1]
    assert chosen.passed_over[0].startswith("torch: its probabilities differ by nan")


def test_a_backend_of_wrong_states_is_passed_over_though_the_head_does_not_show_it(tiny_bundle, monkeypatch):
    """The head is all but sure of one label, whatever the text."""

    class Mixed(Padded):
        """Computes each row by the tokens of another."""

        name = "mixed"

        def __call__(self, tokens, batches):
            return super().__call__(tokens, [rows[::-1] for rows in batches])

    def make(inputs, choice):
        return Mixed(inputs.first_token_only, inputs.device, torch.float32, inputs.pad_id, None)

    model, info = bundle.load(tiny_bundle)
    classifier.last_layer(model, 2).weight.data *= 1e-3
    monkeypatch.setattr(selection, "BACKENDS", (BackendEntry("mixed", ("cpu",), make), *BACKENDS))
    choices = [Choice("mixed", "float32"), Choice("torch", "float32")]
    chosen = selection.select_backend(model, CPU, None, choices, info.objective, None)
    assert chosen.backend.name == "torch float32"
    assert re.fullmatch(r"mixed: its states differ by \d+ % from those of plain torch", chosen.passed_over[0])


def test_an_unknown_backend_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no backend 'fast'; expected one of compiled, packed, openvino, int8, torch"):
        find_backend("fast")


def test_openvino_gets_the_attention_that_suits_it(tiny_bundle):
    """The converted copy has a configuration of its own; with transformers' attention there were no padded keys."""
    model, _ = bundle.load(tiny_bundle)
    split = SplitClassifier(FirstToken(model.encoder), model.head(), is_whole=False)
    converted = BackendInputs(model, split, CPU, 1).openvino_model
    assert any(node.get_type_name() == "Pad" for node in converted.get_ordered_ops())
