"""Rounding to 8 bits: what is lost, what stays exact, and the file that says how."""

import pytest
import torch

from sentiment_core.inference.int8_layers import (
    INPUT_STEPS,
    LARGEST_WEIGHT,
    Int8Layer,
    pack_layers,
    unpack_layers,
    without,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("low", "high"), [(-0.17, 6.0), (-3.0, 3.0), (0.5, 2.0), (-2.0, -1.0)])
def test_inputs_move_by_half_a_step_at_most_and_zero_stays(low, high):
    layer = Int8Layer.covering(torch.ones(4), low, high)
    inputs = torch.linspace(low, high, 400).reshape(100, 4)
    step = (max(high, 0) - min(low, 0)) / INPUT_STEPS
    # zero is hit by moving the range by up to half a step
    assert (layer.round_inputs(inputs) - inputs).abs().max() <= step * 1.001
    assert torch.count_nonzero(layer.round_inputs(torch.zeros(1, 4))) == 0
    assert len(layer.round_inputs(torch.linspace(2 * low - 9, 2 * high + 9, 10_000)[:, None]).unique()) <= 256


def test_scales_move_between_inputs_and_weights_and_leave_the_product():
    scales = torch.tensor([0.1, 1.0, 30.0])
    layer = Int8Layer.covering(scales, -4.0, 4.0)
    inputs, weights = normal(500, 3) * scales, normal(2, 3, seed=1) / scales
    whole, step = layer.round_weights(weights)
    assert whole.abs().amax(dim=1).tolist() == [LARGEST_WEIGHT, LARGEST_WEIGHT]
    assert torch.equal(whole, whole.round())
    exact = inputs @ weights.T
    share = (layer.round_inputs(inputs) @ (whole * step).T - exact).norm() / exact.norm()
    assert 0 < share < 0.02
    plain = Int8Layer.covering(torch.ones(3), float(inputs.min()), float(inputs.max()))
    whole, step = plain.round_weights(weights)
    assert (plain.round_inputs(inputs) @ (whole * step).T - exact).norm() / exact.norm() > 0.1


def test_two_products_fit_into_the_16_bits_in_which_older_chips_add_them():
    assert 2 * INPUT_STEPS * LARGEST_WEIGHT < 2**15


def test_layers_of_zeros_are_rounded_to_zeros():
    layer = Int8Layer.covering(torch.ones(3), 0.0, 0.0)
    assert torch.count_nonzero(layer.round_inputs(torch.zeros(2, 3))) == 0
    assert torch.count_nonzero(layer.round_weights(torch.zeros(2, 3))[0]) == 0


def test_the_file_holds_all_of_it():
    layers = {
        name: Int8Layer.covering(normal(5, seed=i).exp(), -1.7, 1 / 3 + i) for i, name in enumerate(("b.query", "a"))
    }
    read = unpack_layers(pack_layers(layers))
    assert list(read) == ["a", "b.query"]
    for name, layer in read.items():
        assert (layer.low, layer.high) == (layers[name].low, layers[name].high)
        assert torch.equal(layer.scales, layers[name].scales)
    assert pack_layers(layers) == pack_layers(read)
    assert list(without(layers, ["a", "c"])) == ["b.query"]
