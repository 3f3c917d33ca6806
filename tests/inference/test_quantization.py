"""Fit layers to 8 bits on what they compute."""

import numpy as np
import pytest
import torch

from sentiment_core.inference.int8_layers import Int8Layer
from sentiment_core.inference.quantization import fit_layers
from sentiment_core.model import bundle
from tests.conftest import random_lists

LENGTHS = [1, 2, 3, 5, 8, 13, 21, 40] * 4  # some longer than a window


@pytest.fixture
def model(tiny_bundle):
    return bundle.load(tiny_bundle)[0]


def linears(model) -> dict[str, torch.nn.Linear]:
    return {
        name: module
        for name, module in model.encoder.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("encoder.layer.")
    }


def test_every_linear_layer_gets_a_rounding_and_those_with_the_same_inputs_share_it(model):
    layers, order = fit_layers(model, random_lists(LENGTHS), 32)
    assert set(layers) == set(order) == set(linears(model))
    assert len(layers) == 12
    for number in range(2):
        query, key, value = (
            layers[f"encoder.layer.{number}.attention.self.{part}"] for part in ("query", "key", "value")
        )
        assert query is key is value
    assert len({id(layer) for layer in layers.values()}) == 8
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_rows_give_the_same_layers(model):
    (first, first_order), (again, again_order) = (fit_layers(model, random_lists(LENGTHS), 32) for _ in range(2))
    assert first_order == again_order
    assert all(torch.equal(first[name].scales, again[name].scales) for name in first)
    assert [(layer.low, layer.high) for layer in first.values()] == [
        (layer.low, layer.high) for layer in again.values()
    ]


def test_channels_that_are_much_larger_are_evened_out(model):
    """As in trained encoders, whose norms have a few large weights."""
    norm = model.encoder.encoder.layer[0].attention.output.LayerNorm
    norm.weight.data[3] = 80.0
    layers, _ = fit_layers(model, random_lists(LENGTHS), 32)
    scales = layers["encoder.layer.0.intermediate.dense"].scales
    assert int(scales.argmax()) == 3
    assert scales[3] > 5 * scales.median()


def test_layers_whose_rounding_harms_come_first_and_those_without_any_harm_last(model):
    silent = "encoder.layer.1.intermediate.dense"
    linears(model)[silent].weight.data.zero_()
    loud = "encoder.layer.0.attention.output.dense"
    linears(model)[loud].weight.data *= 300  # all that later layers see
    _, order = fit_layers(model, random_lists(LENGTHS), 32)
    assert set(order[-2:]) == {silent, "encoder.layer.1.output.dense"}  # whose inputs are zero, too
    assert order.index(loud) < 3


def test_ranges_cover_what_texts_bring_and_not_all_that_is_possible(model):
    lists = random_lists(LENGTHS)
    layers, _ = fit_layers(model, lists, 32)
    name = "encoder.layer.1.output.dense"  # behind GELU, which gives nothing below -0.17
    layer: Int8Layer = layers[name]
    assert -0.3 < layer.low * float(layer.scales.max()) <= 0.0 < layer.high


def test_without_rows_there_are_no_layers(model):
    assert fit_layers(model, random_lists([]), 32) == ({}, [])
    assert np.isfinite(random_lists([1]).lengths).all()
