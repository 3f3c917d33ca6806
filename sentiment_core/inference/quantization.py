"""Choose how linear layers are put into 8 bits, from what they compute on training rows.

Each layer gets the scales and the range of its inputs that move the margin between the two most probable labels least,
as the gradient tells. The same estimate orders the layers by the harm that their rounding does.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from sentiment_core.inference.backends.base import CPU_TOKENS
from sentiment_core.inference.int8_layers import Int8Layer
from sentiment_core.model import classifier
from sentiment_core.model.classifier import Classifier
from sentiment_core.text.batching import batches_by_tokens, pad
from sentiment_core.text.token_lists import TokenLists

CALIBRATION_ROWS, CALIBRATION_TOKENS = 256, 16_384  # computed; spread over all lengths
SAMPLED_TOKENS = 1_024  # whose rounding errors are compared
# Shares of the unevenness of channels that the weights take over; none first.
SMOOTHING = (0.0, 0.25, 0.5, 0.65, 0.8)
CLIPPING = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # shares of the range seen that the steps cover
LEAST_CHANNEL = 1e-5  # of the largest channel; smaller ones count as such


@dataclass
class Observed:
    """Inputs of a linear layer, and gradients by its outputs, on sampled tokens."""

    inputs_of: str  # name of the first layer with the same inputs
    inputs: list[torch.Tensor] = field(default_factory=list)  # (tokens, inputs) each; of the first layer only
    gradients: list[torch.Tensor] = field(default_factory=list)  # of the margin by the outputs, (tokens, outputs) each
    lowest: list[torch.Tensor] = field(default_factory=list)  # of each input, over all tokens of a batch
    highest: list[torch.Tensor] = field(default_factory=list)

    def add_inputs(self, sampled: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add inputs: those of sampled tokens, and of all, whose extremes count."""
        self.inputs.append(sampled)
        self.lowest.append(inputs.amin(dim=0))
        self.highest.append(inputs.amax(dim=0))


def fit_layers(model: Classifier, tokens: TokenLists, max_length: int) -> tuple[dict[str, Int8Layer], list[str]]:
    """Fit the rounding of the linear layers in the encoder's layers.

    Args:
        model: The classifier, in evaluation mode on the CPU.
        tokens: Rows like those that it will compute, such as those it was trained on.
        max_length: Tokens of a window.

    Returns:
        The layers by name, and their names, those first whose rounding harms most for what it saves.
    """
    linears = {
        name: module
        for name, module in model.encoder.named_modules()
        if isinstance(module, nn.Linear) and _is_inside(module, classifier.encoder_layers(model.encoder))
    }
    observed = _observe(model, linears, list(_calibration_batches(model, tokens, max_length)))
    layers: dict[str, Int8Layer] = {}
    harm: dict[str, float] = {}
    for first in dict.fromkeys(layer.inputs_of for layer in observed.values()):
        names = [name for name, layer in observed.items() if layer.inputs_of == first]
        weights = [linears[name].weight.detach() for name in names]
        fit = _LayerFit(observed[first], weights, [torch.cat(observed[name].gradients) for name in names])
        layer = fit.best()
        errors = fit.errors(layer)
        for name, weight, error in zip(names, weights, errors, strict=True):
            layers[name] = layer
            harm[name] = error / weight.numel()
    return layers, sorted(harm, key=harm.__getitem__, reverse=True)


def _is_inside(module: nn.Module, layers: nn.ModuleList) -> bool:
    return any(part is module for part in layers.modules())


def _calibration_batches(
    model: Classifier, tokens: TokenLists, max_length: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield token ids and masks of rows of all lengths, (rows, longest) each."""
    windows, _ = tokens.windows(max_length)
    by_length = np.argsort(windows.lengths, kind="stable")[np.count_nonzero(windows.lengths == 0) :]
    if not len(by_length):
        return
    mean = windows.lengths[by_length].mean()
    rows = int(np.clip(CALIBRATION_TOKENS / mean, 1, min(CALIBRATION_ROWS, len(by_length))))
    sample = windows.take(by_length[np.linspace(0, len(by_length) - 1, rows).astype(int)])
    config: Any = model.encoder.config
    for batch in batches_by_tokens(sample.lengths, CPU_TOKENS):
        ids, mask = pad(sample, batch, config.pad_token_id or 0)
        yield torch.from_numpy(ids), torch.from_numpy(mask)


def _observe(
    model: Classifier, linears: dict[str, nn.Linear], batches: list[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, Observed]:
    """Compute batches and note what the layers' inputs and gradients are on a sample of the tokens."""
    observed: dict[str, Observed] = {}
    calls: list[tuple[str, torch.Tensor, torch.Tensor]] = []  # of the batch at hand
    hooks = [
        module.register_forward_hook(lambda _, inputs, output, name=name: calls.append((name, inputs[0], output)))
        for name, module in linears.items()
    ]
    random = np.random.default_rng(0)
    rows = sum(len(ids) for ids, _ in batches)
    try:
        for ids, mask in batches:
            calls.clear()
            with torch.enable_grad():
                best = model(ids, mask).topk(2, dim=1).values
                gradients = torch.autograd.grad(
                    (best[:, 0] - best[:, 1]).sum(), [output for *_, output in calls], allow_unused=True
                )
            real = mask.flatten().nonzero().squeeze(1)
            sampled = _sample_tokens(mask, -(-SAMPLED_TOKENS // rows), random)
            first_with: dict[int, str] = {}  # by the inputs' identity
            for (name, inputs, _), gradient in zip(calls, gradients, strict=True):
                if inputs.shape[:-1] != mask.shape or gradient is None:
                    continue
                flat = inputs.detach().flatten(0, 1)
                first = first_with.setdefault(id(inputs), name)
                layer = observed.setdefault(name, Observed(first))
                if layer.inputs_of == name:
                    layer.add_inputs(flat[sampled], flat[real])
                layer.gradients.append(gradient.flatten(0, 1)[sampled])
    finally:
        for hook in hooks:
            hook.remove()
    return observed


def _sample_tokens(mask: torch.Tensor, per_row: int, random: np.random.Generator) -> torch.Tensor:
    """Choose each row's first token, which the head looks at, and others of it; numbers in the flat mask."""
    longest = mask.shape[1]
    numbers = []
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        others = random.choice(length - 1, min(per_row - 1, length - 1), replace=False) + 1 if length > 1 else []
        numbers += [row * longest, *(row * longest + np.sort(others)).astype(int)] if len(others) else [row * longest]
    return torch.tensor(numbers)


class _LayerFit:
    """The fit of linear layers that have the same inputs."""

    def __init__(self, observed: Observed, weights: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
        self.lowest, self.highest = torch.stack(observed.lowest).amin(dim=0), torch.stack(observed.highest).amax(dim=0)
        self.inputs, self.weights, self.gradients = torch.cat(observed.inputs), weights, gradients
        self.exact = [self.inputs @ weight.T for weight in weights]

    def best(self) -> Int8Layer:
        """Return the layer that moves the margin least: first the smoothing is chosen, then the range."""
        layers = [self._layer(self._scales(share)) for share in SMOOTHING]
        scales = min(layers, key=self._total_error).scales
        return min((self._layer(scales, share) for share in CLIPPING), key=self._total_error)

    def errors(self, layer: Int8Layer) -> list[float]:
        """Estimate how far rounding moves the margin, squared, for each of the linear layers."""
        inputs = layer.round_inputs(self.inputs)
        errors = []
        for weight, gradient, exact in zip(self.weights, self.gradients, self.exact, strict=True):
            numbers, step = layer.round_weights(weight)
            errors.append(float(((inputs @ (numbers * step).T - exact) * gradient).square().sum()))
        return errors

    def _total_error(self, layer: Int8Layer) -> float:
        return sum(self.errors(layer))

    def _scales(self, share: float) -> torch.Tensor:
        """Return scales that even out this share of the differences between channels."""
        inputs = torch.maximum(self.highest, -self.lowest)
        weights = torch.stack([weight.abs().amax(dim=0) for weight in self.weights]).amax(dim=0)
        if not share:
            return torch.ones_like(inputs)
        inputs, weights = (
            channels.clamp(min=LEAST_CHANNEL * float(channels.max()) + 1e-30) for channels in (inputs, weights)
        )
        scales = inputs**share / weights ** (1 - share)
        return scales / scales.log().mean().exp()

    def _layer(self, scales: torch.Tensor, share: float = 1.0) -> Int8Layer:
        low, high = float((self.lowest / scales).min()), float((self.highest / scales).max())
        return Int8Layer.covering(scales, share * low, share * high)
