"""OpenVINO on CPUs, in the chip's fast number type or with linear layers in 8 bits."""

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from sentiment_core.inference.backends.base import CPU_STEP, CPU_TOKENS, BackendUnavailable, PaddedRows, SplitClassifier
from sentiment_core.inference.int8_layers import INPUT_STEPS, Int8Layers
from sentiment_core.model.families import PLAIN_ATTENTION, WINDOWED_ATTENTION
from sentiment_core.runtime import cpu_threads, hardware
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists

BATCH_TOKENS = 1_024  # of a batch, padding included: half of what is best for two threads that share one
# Shapes of batches whose preparations are kept: by default it is 5,000, which takes hundreds of MB in the end and
# saves no time that could be measured.
CACHED_SHAPES = 100
# Kernels that oneDNN, which the plugin computes with, keeps for all shapes. By default it is 1,024, for which a service
# grew by 40 MB in its first minutes; as fast with these, and not with none.
CACHED_KERNELS = 128
KERNEL_CACHE_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # read once, when oneDNN is first used
# The name of a converted operation begins with that of the module that it was traced in.
MODULE = re.compile(r"__module\.(.+?)/")


class OpenVino(PaddedRows):
    """OpenVINO's CPU plugin: fuses operations that torch runs one by one, 1.3 to 1.6 times as fast.

    Each thread computes a batch of its own, unless they share one. The first was 10 % faster on a Zen 5, and 17 % where
    other processes ran too, because threads that share a batch wait for each other at every layer.
    """

    def __init__(
        self,
        model: Any,
        dtype: torch.dtype,
        pad_id: int,
        threads: int | None,
        shares_batches: bool,
        int8_layers: Int8Layers | None = None,
    ) -> None:
        """Compile an `openvino.Model`, as `convert` makes it; `int8_layers` are to be computed in 8 bits.

        Raises `BackendUnavailable` where the model lacks one of them.
        """
        import openvino

        super().__init__(torch.device("cpu"))
        threads = threads or cpu_threads.count_usable()
        streams = 1 if shares_batches else threads
        self.budget = CPU_TOKENS if shares_batches else BATCH_TOKENS
        self.name = f"{'int8' if int8_layers else 'openvino'} {hardware.dtype_name(dtype)}"
        self.pad_id = pad_id
        options = {
            "INFERENCE_PRECISION_HINT": {torch.bfloat16: "bf16", torch.float32: "f32"}[dtype],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # else two processes sit on the same core
            "CPU_RUNTIME_CACHE_CAPACITY": CACHED_SHAPES,
        }
        if int8_layers:
            model = model.clone()
            quantize(model, int8_layers)
        with few_kernels():
            compiled = openvino.Core().compile_model(model, "CPU", options)
        self.new_streams = lambda: openvino.AsyncInferQueue(compiled, streams)
        self.streams = self.new_streams()

    def __call__(self, tokens: TokenLists, batches: list[np.ndarray]) -> torch.Tensor:
        """Compute the rows of all batches."""
        outputs: dict[int, np.ndarray] = {}
        self.streams.set_callback(lambda request, i: outputs.update({i: request.get_output_tensor().data.copy()}))
        try:
            for i, rows in enumerate(batches):
                self.streams.start_async(list(pad(tokens, rows, self.pad_id)), i)
            self.streams.wait_all()
        except Exception:
            self.streams = self.new_streams()  # the others may still be busy with requests
            raise
        return torch.from_numpy(np.concatenate([outputs[i] for i in range(len(batches))]))


def openvino_version() -> str:
    """Return the version of OpenVINO; empty where it is not installed."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return ""


def convert(classifier: SplitClassifier, config: Any) -> Any:
    """Convert an encoder to an `openvino.Model`. Raises `BackendUnavailable` where OpenVINO is not installed."""
    # importing and converting report to OpenVINO's makers over the network, unless this module is missing
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    except ImportError:
        raise BackendUnavailable("not installed; install the extra `cpu`") from None
    example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    example["attention_mask"][0, -1] = 0  # with nothing to hide transformers would leave out the mask
    with warnings.catch_warnings(), aligned_attention(config), rotary_tables(classifier.encoder, config):
        warnings.simplefilter("ignore")  # the tracer's, about shapes it takes for constant; `selection` checks them
        # the tracer's own check would trace a second time
        traced = TorchScriptPythonDecoder(
            classifier.encoder, example_input=example, trace_kwargs={"check_trace": False}
        )
        return openvino.convert_model(traced, example_input=example)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention to keys whose number is filled up to a multiple of 16, by transformers' interface.

    All arguments are (rows, heads, tokens, width); the mask hides the added keys. Without them the plugin's fused
    attention takes up to three times as long on an AMX chip, where this scores 1.1 times as many rows. Filling up whole
    rows would cost as much as it gains.
    """
    missing = -key.size(2) % CPU_STEP
    # in the order in which the projections give them, the transposition is fused too
    keys, values = (
        nn.functional.pad(part.transpose(1, 2), (0, 0, 0, 0, 0, missing)).transpose(1, 2) for part in (key, value)
    )
    mask = nn.functional.pad(attention_mask, (0, missing), value=False)
    states = nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=scaling)
    return states.transpose(1, 2).contiguous(), None


def mask_with_own_token(q_length: Any, kv_length: Any, **others: Any) -> torch.Tensor | None:
    """Make transformers' boolean mask, in which each token also sees itself, by transformers' interface.

    That changes nothing for a text's tokens. Padding further behind a text than a window reaches would see no token at
    all. For it OpenVINO's softmax gives NaN and torch's 0 (https://github.com/openvinotoolkit/openvino/issues/35959).
    The next layer multiplies NaN by the padding's weight of 0, which is NaN for all tokens of the row.
    """
    mask = sdpa_mask(q_length=q_length, kv_length=kv_length, **others)
    own = torch.arange(q_length)[:, None] == torch.arange(kv_length)
    return mask if mask is None else mask | own


ATTENTION, ATTENTION_IN_WINDOWS = "sentiment_core_aligned", "sentiment_core_aligned_in_windows"
AttentionInterface.register(ATTENTION, attend)
AttentionInterface.register(ATTENTION_IN_WINDOWS, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
AttentionMaskInterface.register(ATTENTION_IN_WINDOWS, mask_with_own_token)
# by family, the attention that does all that its own does
CONVERTED_ATTENTION = dict.fromkeys(PLAIN_ATTENTION, ATTENTION) | dict.fromkeys(
    WINDOWED_ATTENTION, ATTENTION_IN_WINDOWS
)


@contextmanager
def aligned_attention(config: Any) -> Iterator[None]:
    """Use the attention above inside the block, for families whose own attention does nothing beyond it."""
    before = config._attn_implementation
    config._attn_implementation = CONVERTED_ATTENTION.get(config.model_type, before)
    try:
        yield
    finally:
        config._attn_implementation = before


class RotaryTable(nn.Module):
    """Rotary positions (Su et al. 2021) looked up in tables, in place of transformers' module that computes them.

    In bfloat16 the plugin would multiply positions by frequencies in that type, whose numbers beyond 256 are 2 apart:
    angles would be off by up to a radian.
    """

    def __init__(self, rotary: Any, config: Any) -> None:
        super().__init__()
        positions = torch.arange(config.max_position_embeddings)
        self.tables = {kind: rotary(torch.zeros(1), positions, kind) for kind in set(config.layer_types)}

    def forward(self, _: torch.Tensor, position_ids: torch.Tensor, layer_type: str) -> tuple[torch.Tensor, ...]:
        """Return cosines and sines, each (1, tokens, head size), of positions (1, tokens)."""
        cosines, sines = self.tables[layer_type]
        return cosines[position_ids], sines[position_ids]


@contextmanager
def rotary_tables(encoder: nn.Module, config: Any) -> Iterator[None]:
    """Look rotary positions up in tables inside the block, in families that have a table for each kind of attention.

    Raises `BackendUnavailable` where they depend on the length of the text.
    """
    is_windowed = config.model_type in WINDOWED_ATTENTION
    owners: list[Any] = [module for module in encoder.modules() if is_windowed and hasattr(module, "rotary_emb")]
    before = [owner.rotary_emb for owner in owners]
    if any(kind != "default" for rotary in before for kind in rotary.rope_type.values()):
        raise BackendUnavailable("its rotary positions are scaled, which is not converted")
    try:
        for owner, rotary in zip(owners, before, strict=True):
            owner.rotary_emb = RotaryTable(rotary, config)
        yield
    finally:
        for owner, rotary in zip(owners, before, strict=True):
            owner.rotary_emb = rotary


@contextmanager
def few_kernels() -> Iterator[None]:
    """Limit the kernels that oneDNN keeps to `CACHED_KERNELS`, unless the user has set a limit.

    It holds for a oneDNN that is first used inside the block; torch's own, used before or after, keeps its default.
    """
    if KERNEL_CACHE_VARIABLE in os.environ:
        yield
        return
    os.environ[KERNEL_CACHE_VARIABLE] = str(CACHED_KERNELS)
    try:
        yield
    finally:
        del os.environ[KERNEL_CACHE_VARIABLE]


def quantize(model: Any, layers: Int8Layers) -> None:
    """Round the inputs and weights of linear layers in an `openvino.Model`, which the plugin then multiplies in 8 bits.

    Raises `BackendUnavailable` where the model lacks one of the layers.
    """
    import openvino.opset13 as ops

    rounded: dict[tuple[Any, ...], Any] = {}  # inputs, by what they are and how they are rounded
    missing = set(layers)
    for node in model.get_ordered_ops():
        name = _layer_of(node, layers)
        if name is None:
            continue
        missing.discard(name)
        layer, inputs, weights = layers[name], node.input_value(0), node.input_value(1).get_node()
        rounding = layer.scales.numpy().tobytes(), layer.low, layer.high  # a file's layers are objects of their own
        key = inputs.get_node().get_friendly_name(), inputs.get_index(), rounding
        if key not in rounded:
            # the plugin multiplies and rounds in one pass; steps that differ by channel it does not take
            even = inputs
            if not torch.equal(layer.scales, torch.ones_like(layer.scales)):
                shape = (1,) * (inputs.get_partial_shape().rank.get_length() - 1) + (-1,)
                even = ops.multiply(inputs, ops.constant((1 / layer.scales).numpy().reshape(shape)))
            ends = [ops.constant(np.float32(end)) for end in (layer.low, layer.high)]
            rounded[key] = ops.fake_quantize(even, *ends, *ends, INPUT_STEPS + 1)
        is_transposed = node.get_attributes()["transpose_b"]  # (outputs, inputs)
        matrix = torch.from_numpy(weights.data.astype(np.float32))
        numbers, step = layer.round_weights(matrix if is_transposed else matrix.T)
        small, steps = (part.numpy() if is_transposed else part.numpy().T for part in (numbers.to(torch.int8), step))
        restored = ops.multiply(ops.convert(ops.constant(np.ascontiguousarray(small)), "f32"), ops.constant(steps))
        node.input(0).replace_source_output(rounded[key].output(0))
        node.input(1).replace_source_output(restored.output(0))
    if missing:
        raise BackendUnavailable(f"the converted model has no layer {min(missing)}, which the bundle has in 8 bits")


def _layer_of(node: Any, layers: Int8Layers) -> str | None:
    """Return the name of the layer that an operation multiplies the weights of; None for other operations."""
    if node.get_type_name() != "MatMul" or node.input_value(1).get_node().get_type_name() != "Constant":
        return None
    traced = MODULE.match(node.get_friendly_name())
    path = traced[1].split(".") if traced else []
    names = (".".join(path[start:]) for start in range(len(path)))  # without what is wrapped around the encoder
    return next((name for name in names if name in layers), None)
