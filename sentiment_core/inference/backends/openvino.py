"""OpenVINO on CPUs, in the number type the chip is good at or with 8-bit numbers."""

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from sentiment_core.inference.backends.base import CPU_STEP, PaddedRows, Parts, Unfit
from sentiment_core.model.classifier import PLAIN_ATTENTION
from sentiment_core.runtime import hardware
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists

TOKENS = 1_024  # of a batch, padding included: half of what is best for two threads that share one
# Shapes of batches whose preparations are kept: by default it is 5,000, which takes hundreds of MB in the end and
# saves no time that could be measured.
SHAPES = 100
# Kernels that oneDNN, which the plugin computes with, keeps for all shapes. By default it is 1,024, for which a service
# grew by 40 MB in its first minutes; as fast with these, and not with none.
KERNELS = 128
CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # the environment's variable for it, which is looked at once
# numbers of an activation that share a scale when multiplied in 8 bits: with 384, 1 in 600 labels was another; less
# than 128 was slower
INT8_GROUP = 128
# What 8 bits leave alone: with the attention's layers in 8 bits too, a model of three classes changed 0.56 % of the
# labels of 8,000 texts instead of 0.34 %, for 16 % more speed.
IN_ATTENTION = re.compile(r"att(entio)?n")


class OpenVino(PaddedRows):
    """OpenVINO's CPU plugin: fuses what torch runs one by one, 1.3 to 1.6 times as fast.

    Each thread computes a batch of its own: 10 % faster than sharing one, 17 % beside other processes, for whom the
    threads that share one wait at every layer.
    """

    def __init__(self, parts: Parts, dtype: torch.dtype, config: Any, threads: int | None, int8: bool) -> None:
        # importing and converting report to OpenVINO's makers over the network, unless this module is missing
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        try:
            import openvino
        except ImportError:
            raise Unfit("not installed; the extra `cpu` brings it") from None
        super().__init__(torch.device("cpu"))
        self.budget = TOKENS
        self.name = f"openvino {'int8' if int8 else hardware.dtype_name(dtype)}"
        self.pad_id = config.pad_token_id or 0
        example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        example["attention_mask"][0, -1] = 0  # with nothing to hide transformers would leave out the mask
        with warnings.catch_warnings(), aligned_attention(config):
            warnings.simplefilter("ignore")  # the tracer's, about shapes it takes for constant; `choose` checks them
            model = openvino.convert_model(parts.encoder, example_input=example)
        threads = threads or torch.get_num_threads()
        options = {
            "INFERENCE_PRECISION_HINT": {torch.bfloat16: "bf16", torch.float32: "f32"}[dtype],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": threads,
            "ENABLE_CPU_PINNING": False,  # else two processes sit on the same core
            "CPU_RUNTIME_CACHE_CAPACITY": SHAPES,
        }
        if int8:
            to_int8(model)
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = INT8_GROUP
        with few_kernels():
            compiled = openvino.Core().compile_model(model, "CPU", options)
        self.new_streams = lambda: openvino.AsyncInferQueue(compiled, threads)
        self.streams = self.new_streams()

    def __call__(self, tokens: TokenLists, batches: list[np.ndarray]) -> torch.Tensor:
        found: dict[int, np.ndarray] = {}
        self.streams.set_callback(lambda request, i: found.update({i: request.get_output_tensor().data.copy()}))
        try:
            for i, rows in enumerate(batches):
                self.streams.start_async(list(pad(tokens, rows, self.pad_id)), i)
            self.streams.wait_all()
        except Exception:
            self.streams = self.new_streams()  # the others may still be busy with requests
            raise
        return torch.from_numpy(np.concatenate([found[i] for i in range(len(batches))]))


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in transformers' interface, all (rows, heads, tokens, width), to keys whose number is filled up to a
    multiple of 16 with some that the mask hides. Without them the plugin's fused attention takes up to three times as
    long on an AMX chip, where 1.1 times as many rows are scored so; filling up the whole rows would cost as much."""
    missing = -key.size(2) % CPU_STEP
    # in the order in which the projections give them, the transposition is fused too
    keys, values = (
        nn.functional.pad(states.transpose(1, 2), (0, 0, 0, 0, 0, missing)).transpose(1, 2) for states in (key, value)
    )
    mask = nn.functional.pad(attention_mask, (0, missing), value=False)
    found = nn.functional.scaled_dot_product_attention(query, keys, values, mask, scale=scaling)
    return found.transpose(1, 2).contiguous(), None


ATTENTION = "sentiment_core_aligned"
AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@contextmanager
def aligned_attention(config: Any) -> Iterator[None]:
    """Within it a model of this configuration takes the attention above, if its family's own does no more."""
    before = config._attn_implementation
    if config.model_type in PLAIN_ATTENTION:
        config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def few_kernels() -> Iterator[None]:
    """A oneDNN that is first used within it keeps `KERNELS`, or what the user has set. Torch's own, used before or
    after, keeps its many."""
    if CAPACITY in os.environ:
        yield
        return
    os.environ[CAPACITY] = str(KERNELS)
    try:
        yield
    finally:
        del os.environ[CAPACITY]


def to_int8(model) -> None:
    """Keep the weights of linear layers, but those of the attention, as 8-bit numbers, scale and zero point for each
    output.

    The CPU plugin then also quantises what they are multiplied with, by groups of `INT8_GROUP` as it comes along, so
    that no calibration text is needed (dynamic quantisation; see DYNAMIC_QUANTIZATION_GROUP_SIZE in OpenVINO's manual).
    """
    import openvino.opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or (source := node.input_value(1).get_node()).get_type_name() != "Constant":
            continue
        if IN_ATTENTION.search(node.get_friendly_name()):
            continue
        weights = source.data.astype(np.float32)  # (outputs, inputs), or its transpose
        along = 1 if node.get_attributes()["transpose_b"] else 0
        lowest = weights.min(axis=along, keepdims=True)
        scale = np.maximum((weights.max(axis=along, keepdims=True) - lowest) / 255, np.finfo(np.float32).tiny)
        zero = np.clip(np.round(-lowest / scale), 0, 255)
        rounded = np.clip(np.round(weights / scale + zero), 0, 255)
        small, offset = (ops.convert(ops.constant(x.astype(np.uint8)), "f32") for x in (rounded, zero))
        restored = ops.multiply(ops.subtract(small, offset), ops.constant(scale))
        node.input(1).replace_source_output(restored.output(0))
