"""Linear layers in 8 bits: how their inputs and weights are rounded, and the bundle's file that says so."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import safetensors.torch
import torch

INPUT_STEPS = 255
# Weights take 7 bits. Chips without VNNI add two products of inputs and weights in 16 bits. With 8 bits these sums may
# overflow there (2 x 255 x 127), and a bundle would give other labels than where it was made. 7 bits never do.
LARGEST_WEIGHT = 63
LEAST_STEP = 1e-30  # for layers whose weights or inputs are all zero


@dataclass(frozen=True)
class Int8Layer:
    """The rounding of a linear layer.

    Inputs are divided by `scales` first and the weights multiplied by them, which leaves their product as it is. It
    moves what is hard to round from inputs with a few large channels to the weights (SmoothQuant, Xiao et al. 2023).
    """

    scales: torch.Tensor  # (inputs,) float32
    low: float  # of the divided inputs; what lies outside is cut off
    high: float

    @classmethod
    def covering(cls, scales: torch.Tensor, low: float, high: float) -> Self:
        """Make a layer whose steps cover a range and hit zero, which most inputs are close to."""
        step = max((max(high, 0.0) - min(low, 0.0)) / INPUT_STEPS, LEAST_STEP)
        zero = round(-min(low, 0.0) / step)
        return cls(scales, -zero * step, (INPUT_STEPS - zero) * step)

    def round_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Round inputs (n, inputs) as 8 bits do; they stay divided by the scales."""
        step = (self.high - self.low) / INPUT_STEPS
        lowest = round(self.low / step)
        return (inputs / self.scales / step).round().clamp(lowest, lowest + INPUT_STEPS) * step

    def round_weights(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Round weights (outputs, inputs), multiplied by the scales.

        Returns whole numbers of the same shape, and the step of each output, (outputs, 1).
        """
        scaled = weights * self.scales
        step = (scaled.abs().amax(dim=1, keepdim=True) / LARGEST_WEIGHT).clamp(min=LEAST_STEP)
        return (scaled / step).round(), step


Int8Layers = Mapping[str, Int8Layer]  # by the module's name in the encoder


def without(layers: Int8Layers, names: Iterable[str]) -> dict[str, Int8Layer]:
    """Return the layers except those of these names."""
    left_out = set(names)
    return {name: layer for name, layer in layers.items() if name not in left_out}


def pack_layers(layers: Int8Layers) -> bytes:
    """Return the content of the bundle's file."""
    tensors = {}
    for name, layer in layers.items():
        tensors[f"{name}.scales"] = layer.scales.contiguous().clone()
        tensors[f"{name}.range"] = torch.tensor([layer.low, layer.high], dtype=torch.float64)
    return safetensors.torch.save(tensors)


def unpack_layers(content: bytes) -> dict[str, Int8Layer]:
    """Read the content of the bundle's file. Raises KeyError, ValueError or SafetensorError for other content."""
    tensors = safetensors.torch.load(content)
    layers = {}
    for name in sorted(key.removesuffix(".scales") for key in tensors if key.endswith(".scales")):
        low, high = tensors[f"{name}.range"].tolist()
        layers[name] = Int8Layer(tensors[f"{name}.scales"], low, high)
    return layers
