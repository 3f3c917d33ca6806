"""Ways to run an encoder: rows of token lists in, one vector per row out. All give what plain torch in float32 gives,
to the precision of their number type; `choose` checks that on each model it loads.
"""

import copy
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface

from sentiment_core import hardware
from sentiment_core.classifier import Classifier
from sentiment_core.tokens import TokenLists, batches_by_tokens, pad

# Tokens of a batch, padding included. A CPU is fastest while activations stay in its caches: 1,000 to 2,000 tokens on a
# Zen 5 core, 15 % slower at 512 and 4,096. A GPU wants enough to fill its multiprocessors.
CPU_TOKENS, CUDA_TOKENS = 2_048, 32_768
# CPU kernels take 16 numbers at a time and the rest one by one. A batch whose lengths lie between two multiples of 16
# treats each row as it would alone, to the last bit; others differ by up to 0.003 in a probability.
CPU_STEP = 16
PROBE_LENGTHS = (1, 2, 15, 16, 40)  # of the token lists that a backend is checked with
SAME, CLOSE = 1e-4, 0.05  # greatest difference of a probability, in float32 and in bf16
FASTEST_FIRST = {"cuda": ("packed", "torch"), "cpu": ("openvino", "torch")}


class Backend(Protocol):
    name: str

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        """All rows with tokens once, in batches."""

    def __call__(self, tokens: TokenLists, rows: np.ndarray) -> torch.Tensor:
        """(rows, width) float on the device, in the order of `rows`; may still be computing."""

    def computed(self, lengths: np.ndarray) -> int:
        """Tokens computed for a batch of these lengths, with padding."""


@dataclass(frozen=True)
class Parts:
    """A classifier cut in two, so that the little behind the encoder stays in float32 whatever computes the encoder."""

    encoder: nn.Module  # (input_ids, attention_mask) -> (n, width)
    head: nn.Module  # (n, width) float32 -> logits (n, classes)
    whole: bool  # the family cannot be cut behind its first token: `encoder` is all of it


class FirstToken(nn.Module):
    """An encoder, giving the last hidden state of the first token of each row, (n, hidden)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]


class Padded:
    """Plain torch on rows padded to the longest of their batch. Runs every model on every device."""

    def __init__(self, parts: Parts, device: torch.device, dtype: torch.dtype, pad_id: int) -> None:
        self.name = f"torch {hardware.short_name(dtype)}"
        self.encoder = parts.encoder if dtype == torch.float32 else copy.deepcopy(parts.encoder).to(dtype)
        self.device, self.pad_id = device, pad_id

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        if self.device.type == "cuda":
            return batches_by_tokens(lengths, CUDA_TOKENS)
        return batches_by_tokens(lengths, CPU_TOKENS, CPU_STEP)

    def __call__(self, tokens: TokenLists, rows: np.ndarray) -> torch.Tensor:
        return self.encoder(*hardware.put(self.device, *pad(tokens, rows, self.pad_id)))

    def computed(self, lengths: np.ndarray) -> int:
        return len(lengths) * int(lengths.max())


class Packed:
    """Torch on the tokens of all rows one behind the other, without padding: all but the attention treats tokens alone,
    and that keeps to each row's own (`torch.nn.attention.varlen`). Meant for GPUs; a CPU gets the same the slow way."""

    def __init__(self, parts: Parts, device: torch.device, dtype: torch.dtype, pad_id: int) -> None:
        if parts.whole:
            raise Unfit("this family's head looks at more than the first token")
        self.name = f"packed {hardware.short_name(dtype)}"
        self.device = device
        encoder: Any = copy.deepcopy(parts.encoder.encoder)
        encoder.config._attn_implementation = PACKED_ATTENTION
        self.encoder = encoder.to(dtype)
        # RoBERTa and its kin count positions from behind the padding id
        embeddings = getattr(self.encoder, "embeddings", None)
        self.first_position = pad_id + 1 if hasattr(embeddings, "create_position_ids_from_input_ids") else 0

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        number = np.cumsum(lengths[order]) // CUDA_TOKENS
        return np.split(order, np.flatnonzero(np.diff(number)) + 1) if len(order) else []

    def __call__(self, tokens: TokenLists, rows: np.ndarray) -> torch.Tensor:
        picked = tokens.take(rows)
        starts = np.repeat(picked.offsets[:-1], picked.lengths)
        ids, positions, offsets = hardware.put(
            self.device,
            picked.ids.astype(np.int64),
            np.arange(len(starts)) - starts + self.first_position,
            picked.offsets.astype(np.int32),
        )
        longest = int(picked.lengths.max())
        states = self.encoder(
            input_ids=ids[None],
            position_ids=positions[None],
            cu_seq_lens_q=offsets,
            cu_seq_lens_k=offsets,
            max_length_q=longest,
            max_length_k=longest,
        ).last_hidden_state[0]
        return states[offsets[:-1].long()]

    def computed(self, lengths: np.ndarray) -> int:
        return int(lengths.sum())


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **_,
) -> tuple[torch.Tensor, None]:
    """Attention in transformers' interface: `query`, `key` and `value` are (1, heads, tokens, size), each row's tokens
    attend to that row's only; gives (1, tokens, heads, size)."""
    if sliding_window is not None:
        raise Unfit("this family attends within a sliding window")
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn  # takes a second, which CPUs need not spend

        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        of_rows = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        found: torch.Tensor = varlen_attn(q, k, v, *of_rows, scale=scaling)  # type: ignore[assignment]
    else:
        sizes = torch.diff(cu_seq_lens_q).tolist()
        rows = zip(*(states[0].split(sizes, dim=1) for states in (query, key, value)), strict=True)
        attend = nn.functional.scaled_dot_product_attention
        found = torch.cat([attend(q, k, v, scale=scaling) for q, k, v in rows], dim=1).transpose(0, 1)
    return found.unsqueeze(0), None


PACKED_ATTENTION = "sentiment_core_packed"
AttentionInterface.register(PACKED_ATTENTION, packed_attention)


class OpenVino:
    """OpenVINO's CPU plugin on padded rows: fuses what torch runs one by one, 1.3 to 1.6 times as fast."""

    def __init__(self, parts: Parts, dtype: torch.dtype, pad_id: int, threads: int | None) -> None:
        # importing and converting report to OpenVINO's makers over the network, unless this module is missing
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        try:
            import openvino
        except ImportError:
            raise Unfit("not installed; the extra `cpu` brings it") from None
        self.name = f"openvino {hardware.short_name(dtype)}"
        self.pad_id = pad_id
        example = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, about shapes it takes for constant; `choose` checks them
            model = openvino.convert_model(parts.encoder, example_input=example)
        options = {
            "INFERENCE_PRECISION_HINT": {torch.bfloat16: "bf16", torch.float32: "f32"}[dtype],
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # else two processes sit on the same core
        }
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        self.request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def batches(self, lengths: np.ndarray) -> list[np.ndarray]:
        return batches_by_tokens(lengths, CPU_TOKENS, CPU_STEP)

    def __call__(self, tokens: TokenLists, rows: np.ndarray) -> torch.Tensor:
        found = self.request.infer(list(pad(tokens, rows, self.pad_id)), share_inputs=True)[0]
        return torch.from_numpy(found.copy())

    def computed(self, lengths: np.ndarray) -> int:
        return len(lengths) * int(lengths.max())


class Unfit(Exception):
    """A backend that cannot run this model here; the message says why."""


def choose(
    model: Classifier, device: torch.device, threads: int | None, wanted: str | None
) -> tuple[Backend, nn.Module, list[str]]:
    """The fastest backend that runs `model` right on `device` (or the `wanted` one, else `Unfit`), the head behind it,
    and why faster ones were not taken."""
    dtype = hardware.compute_dtype(device)
    config: Any = model.encoder.config
    pad_id = config.pad_token_id or 0
    probe = _probe(config.vocab_size, pad_id)
    with torch.inference_mode():
        whole = Parts(model.to(device), nn.Identity(), True)
        expected = _probabilities(Padded(whole, device, torch.float32, pad_id), whole.head, probe)
        parts = _cut(model, device, pad_id, probe, expected) or whole
        candidates: dict[str, Callable[[], Backend]] = {
            "packed": lambda: Packed(parts, device, dtype, pad_id),
            "openvino": lambda: OpenVino(parts, dtype, pad_id, threads),
            "torch": lambda: Padded(parts, device, dtype, pad_id),
        }
        passed_over: list[str] = []
        for name in [wanted] if wanted else FASTEST_FIRST[device.type]:
            try:
                backend = candidates[name]()
                difference = np.abs(_probabilities(backend, parts.head, probe) - expected).max()
                if difference > CLOSE:
                    raise Unfit(f"its probabilities differ by {difference:.2f} from those of plain torch")
                return backend, parts.head, passed_over
            except Exception as error:
                if wanted or name == "torch":
                    raise
                passed_over.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
    raise AssertionError("plain torch runs every model")


def _cut(model: Classifier, device: torch.device, pad_id: int, probe: TokenLists, expected: np.ndarray) -> Parts | None:
    """The model cut behind its first token's last state, if that gives the same; not all families can be cut there."""
    try:
        parts = Parts(FirstToken(model.encoder), model.head(), False)
        found = _probabilities(Padded(parts, device, torch.float32, pad_id), parts.head, probe)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return None
    return parts if np.abs(found - expected).max() < SAME else None


def _probe(vocabulary: int, pad_id: int) -> TokenLists:
    """Token lists of several lengths, random but for special tokens, which vocabularies keep at either end."""
    ids = np.random.default_rng(0).integers(vocabulary // 4, 3 * vocabulary // 4, sum(PROBE_LENGTHS), dtype=np.int32)
    ids[ids == pad_id] += 1
    return TokenLists(ids, np.concatenate([[0], np.cumsum(PROBE_LENGTHS)]))


def _probabilities(backend: Backend, head: nn.Module, tokens: TokenLists) -> np.ndarray:
    """Of all rows as one batch."""
    return torch.softmax(head(backend(tokens, np.arange(len(tokens))).float()), dim=1).cpu().numpy()
