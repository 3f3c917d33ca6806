"""The fastest way to compute is taken, unless a more exact one is nearly as fast."""

import sys
import time

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from sentiment_core.inference import selection, timing
from sentiment_core.inference.backends.base import BackendUnavailable
from sentiment_core.inference.engine import Engine
from sentiment_core.inference.timing import Choice
from sentiment_core.model.classifier import StandardClassifier
from sentiment_core.runtime import hardware

EXACT, SHARED = Choice("openvino", "float32"), Choice("openvino", "float32", shares_batches=True)
FAST, PLAIN = Choice("openvino", "bfloat16"), Choice("torch", "float32")


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ({EXACT: 100, FAST: 111}, FAST),
        ({EXACT: 100, FAST: 109}, EXACT),  # too little for numbers that are less exact
        ({EXACT: 100, FAST: 60}, EXACT),
        ({EXACT: 100, PLAIN: 104}, EXACT),  # by chance
        ({EXACT: 100, PLAIN: 106, FAST: 115}, PLAIN),
        ({EXACT: 100, SHARED: 130}, EXACT),  # alone; in a job those who share are held up
        ({EXACT: 100, SHARED: 140, FAST: 120}, SHARED),
        ({FAST: 50}, FAST),  # the others do not run
        ({}, FAST),  # nothing was measured: as they stand
    ],
)
def test_a_less_exact_number_type_must_be_a_tenth_faster(rates, expected):
    choices = [FAST, EXACT, SHARED, PLAIN]
    ordered = timing.fastest_first(choices, {str(choice): rate for choice, rate in rates.items()})
    assert ordered[0] == expected
    assert sorted(map(str, ordered)) == sorted(map(str, choices))


def test_the_margin_is_told_beside_the_best_other_backend_or_number_type():
    rates = {str(EXACT): 150.0, str(SHARED): 140.0, str(PLAIN): 100.0, str(FAST): 50.0}
    assert timing.describe_margin(EXACT, rates) == "openvino float32 measured 1.50 times as fast as torch float32"
    assert timing.describe_margin(SHARED, rates) == "openvino float32 measured 1.40 times as fast as torch float32"
    assert timing.describe_margin(EXACT, {str(EXACT): 150.0}) == ""
    assert timing.describe_margin(EXACT, {}) == ""


def test_what_a_flag_insists_on_is_compared_with_the_usual_choices_only():
    small, rough = Choice("int8", "float32"), Choice("int8", "bfloat16")
    rates = {str(EXACT): 100.0, "torch float32": 60.0, str(small): 130.0, str(rough): 120.0}
    usual = [EXACT, Choice("torch", "float32")]
    faster = "int8 float32 measured 1.30 times as fast as openvino float32"
    assert timing.describe_margin(small, rates, usual) == faster
    rates |= {str(EXACT): 260.0}
    slower = "int8 float32 measured 0.50 times as fast as openvino float32; leave out --int8 on this chip"
    assert timing.describe_margin(small, rates, usual) == slower


def test_of_runs_the_fastest_time_counts_and_those_that_fail_are_left_out():
    def fail() -> None:
        raise RuntimeError

    pauses = iter([0.05, 0.03, 0.0, 0.03])  # the first one only warms up
    seconds = timing.race({"varies": lambda: time.sleep(next(pauses)), "fails": fail, "slow": lambda: time.sleep(0.02)})
    assert set(seconds) == {"varies", "slow"}
    assert seconds["varies"] < 0.02 <= seconds["slow"]


@pytest.mark.parametrize(
    ("mean_tokens", "max_length", "expected"), [(None, 256, 64), (3, 256, 16), (50, 256, 64), (400, 256, 256)]
)
def test_lengths_are_rounded_so_that_few_are_measured(mean_tokens, max_length, expected):
    assert timing.work_length(mean_tokens, max_length) == expected


def test_the_work_has_lengths_around_the_mean_that_the_model_takes():
    config = BertConfig(max_position_embeddings=64)
    work = timing.make_work(config, 32, torch.device("cpu"), threads=2)
    assert 16 <= work.lengths.min() < 32 < work.lengths.max() <= 48
    assert len(work.ids) == pytest.approx(2 * timing.TOKENS_PER_THREAD, rel=0.1)
    assert timing.make_work(config, 64, torch.device("cpu"), threads=2).lengths.max() <= 64


SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (BertForSequenceClassification, BertConfig(**SIZES)),
        (
            DistilBertForSequenceClassification,
            DistilBertConfig(dim=8, n_layers=3, n_heads=2, hidden_dim=16, vocab_size=50),
        ),
    ],
)
def test_a_cut_model_shares_the_weights_and_leaves_the_model_whole(model, config):
    whole = StandardClassifier(model(config).eval())
    inputs = torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)
    with torch.inference_mode():
        before = whole(*inputs)
        cut = timing.cut_layers(whole)
        assert not torch.equal(cut(*inputs), before)
        assert torch.equal(whole(*inputs), before)
    assert {id(parameter) for parameter in cut.parameters()} < {id(parameter) for parameter in whole.parameters()}
    assert cut.encoder.config.num_hidden_layers == 2
    assert whole.encoder.config.num_hidden_layers == 3


@pytest.mark.slow
def test_an_engine_measures_once_and_says_by_how_much_it_is_faster(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = Engine.load(tiny_bundle)
    records = list(tmp_path.rglob("*.json"))
    assert len(records) == 1
    written = records[0].stat().st_mtime_ns
    again = Engine.load(tiny_bundle)
    assert records[0].stat().st_mtime_ns == written
    assert again.choice == first.choice
    assert str(first.choice).startswith(first.backend.name)
    assert first.margin == again.margin
    assert "times as fast as" in first.margin


def test_an_engine_takes_the_choice_of_an_earlier_run_without_measuring(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chip = hardware.chip_id(torch.device("cpu"))
    engine = Engine.load(tiny_bundle, on_cpu=True, choices={chip: "torch float32", "another chip": "openvino float32"})
    assert engine.backend.name == "torch float32"
    assert engine.remarks == []
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
def test_with_another_number_of_threads_an_earlier_choice_keeps_its_backend_and_number_type(tiny_bundle):
    noted = {hardware.chip_id(torch.device("cpu")): "openvino float32, threads sharing batches"}
    assert str(Engine.load(tiny_bundle, threads=2, on_cpu=True, choices=noted).choice) == next(iter(noted.values()))
    assert Engine.load(tiny_bundle, threads=1, on_cpu=True, choices=noted).choice == EXACT


def test_a_backend_whose_library_is_missing_is_named(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "openvino", None)
    for _ in range(2):  # measured, and remembered
        engine = Engine.load(tiny_bundle, threads=2, on_cpu=True)
        assert engine.choice.backend == "torch"
        assert engine.remarks == ["openvino: not installed; install the extra `cpu`"]


def test_where_an_earlier_choice_does_not_run_another_one_is_taken_and_it_is_said(tiny_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    chip = hardware.chip_id(torch.device("cpu"))
    engine = Engine.load(tiny_bundle, on_cpu=True, choices={chip: "openvino float32"})
    assert engine.backend.name.startswith("torch ")
    assert engine.remarks[0] == "openvino: not installed; install the extra `cpu`"


def test_where_an_earlier_choice_does_not_run_the_others_are_measured(monkeypatch):
    """By their order the least exact would come first."""
    possible = [Choice("openvino", "bfloat16"), Choice("torch", "bfloat16"), Choice("torch", "float32")]
    asked = []

    def select(choices, mean_length):
        asked.append((choices, mean_length))
        if len(asked) == 1:
            raise BackendUnavailable("not installed")
        return selection.Selection(None, choices[-1], None, ["torch: as measured"], "")

    selected = selection.select_as_noted("openvino bfloat16", possible, 64, select)
    assert asked == [(possible[:1], None), (possible[1:], 64)]
    assert selected.choice == possible[2]
    assert selected.passed_over == ["openvino: not installed", "torch: as measured"]


@pytest.mark.parametrize("noted", ["packed bfloat16", "compiled bfloat16"])
def test_whether_compiling_pays_is_decided_by_the_work_of_each_run(noted):
    possible = [Choice("compiled", "bfloat16"), Choice("packed", "bfloat16"), Choice("torch", "bfloat16")]
    asked = []
    selection.select_as_noted(noted, possible, 64, lambda *arguments: asked.append(arguments))
    assert asked == [(possible[:2], 64)]


def test_memory_that_ran_out_says_nothing_of_a_choice():
    def make(choice):
        raise RuntimeError("CUDA error: out of memory" if choice == EXACT else "no such kernel")

    others = [choice for choice in selection.list_choices(None, torch.device("cpu"), 1, "auto") if choice != EXACT]
    assert timing.measure(make, others, WORK) == {}
    with pytest.raises(timing.LackedMemory) as lacking:
        timing.measure(make, [*others, EXACT], WORK)
    assert lacking.value.rates == {}


@pytest.mark.slow
def test_every_number_type_gives_the_same_probabilities(tiny_bundle):
    expected, _ = Engine.load(tiny_bundle, on_cpu=True, precision="float32").probabilities(WORK)
    assert np.isfinite(expected).all()
    for dtype in hardware.number_types(torch.device("cpu")):
        engine = Engine.load(tiny_bundle, on_cpu=True, precision=hardware.dtype_name(dtype))
        assert engine.choice.number_type == hardware.dtype_name(dtype)
        np.testing.assert_allclose(engine.probabilities(WORK)[0], expected, atol=0.02)


WORK = timing.make_work(BertConfig(max_position_embeddings=32), 16, torch.device("cpu"), threads=1)


def test_texts_for_a_model_with_a_decoder_end_as_its_head_expects():
    config = BartConfig(vocab_size=1_000, eos_token_id=2)
    work = timing.make_work(config, 16, torch.device("cpu"), threads=2)
    ends = work.offsets[1:] - 1
    assert (work.ids[ends] == 2).all()
    assert not (np.delete(work.ids, ends) == 2).any()
