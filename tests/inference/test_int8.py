"""8 bits: which layers a bundle computes in them, what the check says, and that the chip's 8-bit products are used."""

import re

import numpy as np
import pytest
import torch

from sentiment_core.inference import engine, int8, selection
from sentiment_core.inference.backends.base import BackendUnavailable, FirstToken, SplitClassifier
from sentiment_core.inference.backends.openvino import quantize
from sentiment_core.inference.engine import Engine
from sentiment_core.inference.int8 import LabelledTokens, prepare_int8
from sentiment_core.inference.int8_layers import pack_layers, unpack_layers, without
from sentiment_core.inference.quantization import fit_layers
from sentiment_core.inference.selection import BackendInputs
from sentiment_core.model import bundle, records
from sentiment_core.model.objective import SingleLabel
from tests.conftest import make_bundle, random_lists

LABELS = ["negative", "positive"]
ROWS = random_lists([4, 9, 17, 30, 40] * 40, seed=5)
TRAINING = random_lists([4, 9, 17, 30, 40] * 100, seed=6)


@pytest.fixture
def model(tiny_bundle):
    return bundle.load(tiny_bundle)[0]


@pytest.fixture
def layers(model):
    return fit_layers(model, TRAINING, 32)[0]


def prepare(model, objective=SingleLabel()):  # noqa: B008 (frozen)
    targets = np.arange(len(ROWS)) % 2
    return prepare_int8(model, len(LABELS), 32, objective, LabelledTokens(ROWS, targets), TRAINING)


def inputs_of(model) -> BackendInputs:
    split = SplitClassifier(FirstToken(model.encoder), model.head(), is_whole=False)
    return BackendInputs(model, split, torch.device("cpu"), 1)


class StubEngine:
    """Computes the same for all rows at once, where nothing but the search is of interest."""

    def __init__(self, model, classes, max_length, objective, **settings):
        self.objective = objective

    def probabilities(self, tokens):
        return np.tile(np.float32([0.4, 0.6]), (len(tokens), 1)), 0


@pytest.mark.slow
def test_all_layers_are_in_8_bits_where_the_labels_stay(model, monkeypatch):
    for module in (records, int8):  # an untrained head has many rows near the boundary
        monkeypatch.setattr(module, "LEAST_INT8_AGREEMENT", 0.95)
    check, files = prepare(model)
    assert check.rows == len(ROWS) + len(TRAINING)
    assert 0.95 <= check.agreement <= 1
    assert (check.layers, check.all_layers) == (12, 12)
    assert check.accuracy_rows == len(ROWS)
    assert check.accuracy == pytest.approx(check.float32_accuracy, abs=0.05)
    exact = Engine(model, 2, 32, backend="torch", precision="float32").probabilities(ROWS)[0]
    assert check.float32_accuracy == np.mean(exact.argmax(axis=1) == np.arange(len(ROWS)) % 2)
    assert list(files) == [bundle.INT8]
    assert len(unpack_layers(files[bundle.INT8])) == 12


def test_layers_that_harm_are_left_out_until_the_labels_stay(model, monkeypatch):
    """The third attempt keeps the labels."""
    attempts = []

    def check(self, int8_engine, layers, all_layers):
        attempts.append(layers)
        return int8.Int8Check(agreement=0.999 if len(attempts) == 3 else 0.9, rows=9, layers=layers)

    monkeypatch.setattr(int8._Comparison, "check", check)
    monkeypatch.setattr(engine, "Engine", StubEngine)
    result, files = prepare(model)
    assert attempts == [12, 10, 8]
    assert result.layers == 8
    order = fit_layers(model, TRAINING, 32)[1]
    assert set(unpack_layers(files[bundle.INT8])) == set(order[4:])


def test_without_any_attempt_that_keeps_the_labels_there_is_no_file(model, monkeypatch):
    monkeypatch.setattr(int8, "PART_ROWS", 10)
    monkeypatch.setattr(engine, "Engine", StubEngine)
    monkeypatch.setattr(SingleLabel, "same_decision", lambda self, mine, others: np.arange(len(mine)) != 7)
    check, files = prepare(model)
    assert files == {}
    assert (check.agreement, check.rows) == (0.9, 40)  # no more rows were computed than it took
    assert check.layers == 6
    assert check.accuracy is None


def test_a_model_that_cannot_run_here_in_8_bits_has_the_reason(model, monkeypatch):
    def fail(classifier, config):
        raise BackendUnavailable("not installed")

    monkeypatch.setattr(selection, "convert", fail)
    check, files = prepare(model)
    assert files == {}
    assert check.agreement is None
    assert "not installed" in check.reason


def test_linear_layers_are_multiplied_in_8_bits_and_the_others_are_not(model, layers):
    """Ask the plugin for its kernels: it could also round, and then compute in float32."""
    name = "encoder.layer.0.output.dense"
    network = inputs_of(model).openvino_model.clone()
    quantize(network, without(layers, [name]))
    import openvino  # after the conversion, which disables its telemetry

    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if "FullyConnected" in info["layerType"].astype(str) or "MatMul" in info["layerType"].astype(str):
            kinds[node.get_friendly_name()] = info["runtimePrecision"].astype(str)
    precisions = {layer: next(kind for node, kind in kinds.items() if f"{layer}/" in node) for layer in layers}
    assert {kind for layer, kind in precisions.items() if layer != name} <= {"i8", "u8"}
    assert precisions[name] == "f32"


def test_layers_of_a_file_that_have_the_same_inputs_round_them_once(model, layers):
    network = inputs_of(model).openvino_model.clone()
    quantize(network, unpack_layers(pack_layers(layers)))
    kinds = [node.get_type_name() for node in network.get_ordered_ops()]
    # four inputs of each of two layers; in the last one the query's are of the first token only
    assert kinds.count("FakeQuantize") in (8, 9)


@pytest.mark.slow
def test_8_bits_are_what_rounding_in_torch_gives(model, layers):
    """The plugin's kernels leave nothing out and overflow nowhere, on whatever chip this runs."""
    found = Engine(model, 2, 32, backend="int8", precision="float32", int8_layers=layers).probabilities(ROWS)[0]
    exact = Engine(model, 2, 32, backend="torch", precision="float32").probabilities(ROWS)[0]
    for name, module in model.encoder.named_modules():
        if name in layers:
            whole, step = layers[name].round_weights(module.weight.detach())
            module.weight.data = whole * step
            module.register_forward_pre_hook(lambda _, inputs, layer=layers[name]: layer.round_inputs(inputs[0]))
    rounded = Engine(model, 2, 32, backend="torch", precision="float32").probabilities(ROWS)[0]
    assert np.abs(rounded - exact).mean() > 1e-5
    assert np.abs(found - rounded).mean() < 0.3 * np.abs(rounded - exact).mean()


def test_layers_that_the_model_does_not_have_are_refused(model, layers):
    network = inputs_of(model).openvino_model.clone()
    strange = {"encoder.layer.7.output.dense": next(iter(layers.values()))}
    with pytest.raises(BackendUnavailable, match=re.escape("no layer encoder.layer.7.output.dense, which the bundle")):
        quantize(network, layers | strange)


@pytest.mark.slow
def test_a_bundle_without_the_file_does_not_compute_in_8_bits(tiny_bundle):
    with pytest.raises(BackendUnavailable, match=r"the bundle has no int8\.safetensors, which training makes"):
        Engine.load(tiny_bundle, backend="int8")


@pytest.mark.slow
def test_the_start_measures_8_bits_beside_the_fastest_other_choice(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = make_bundle(tiny_encoder, tmp_path / "b", int8={"layers": 12})
    small = Engine.load(place, backend="int8")
    assert small.choice.backend == "int8"
    assert re.match(r"int8 \w+ measured \d+\.\d\d times as fast as (openvino|torch) \w+", small.margin)
