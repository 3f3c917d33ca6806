"""The registry of backends, and which of them runs a model right here.

To add a backend, write a module in `backends/`, a function here that makes it, and an entry in `BACKENDS` at its place:
they are tried in order. A backend whose library is missing raises `BackendUnavailable`, and imports it only when it is
made. A library that few need is an extra in `pyproject.toml`.
"""

import functools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from sentiment_core.inference.backends.base import Backend, BackendUnavailable, FirstToken, SplitClassifier
from sentiment_core.inference.backends.openvino import OpenVino
from sentiment_core.inference.backends.torch_padded import Padded
from sentiment_core.inference.tolerances import BF16_TOLERANCE, FP32_TOLERANCE, INT8_TOLERANCE
from sentiment_core.model import classifier, families, fitness
from sentiment_core.model.classifier import Classifier
from sentiment_core.model.objective import Objective
from sentiment_core.runtime import hardware
from sentiment_core.text.token_lists import TokenLists

REASON_CHARACTERS = 200  # of why a backend was passed over


@dataclass(frozen=True)
class BackendInputs:
    """Ingredients of a backend: the model, its device and its number type."""

    classifier: Classifier
    split: SplitClassifier
    device: torch.device
    dtype: torch.dtype
    threads: int | None  # on a CPU; None leaves the choice to the library

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.classifier.encoder.config

    @property
    def pad_id(self) -> int:
        """The token id that fills up rows."""
        return self.config.pad_token_id or 0

    @functools.cached_property
    def first_token_only(self) -> SplitClassifier:
        """The same model without work that the head does not look at.

        This changes the encoder itself. A backend that needs all tokens takes `split` and copies it, and stands in
        `BACKENDS` before those that take this.
        """
        classifier.compute_first_token_only(self.split.encoder, self.classifier.encoder)
        return self.split


@dataclass(frozen=True)
class BackendEntry:
    """A backend as `select_backend` knows it."""

    name: str
    device_types: tuple[str, ...]  # of torch, where it is tried without being asked for
    make: Callable[[BackendInputs], Backend]  # raises BackendUnavailable, or what its libraries raise
    tolerance: float = BF16_TOLERANCE
    tried: Literal["always", "for_long_runs", "on_request"] = "always"


def _make_packed(inputs: BackendInputs, compiled: bool = False) -> Backend:
    from sentiment_core.inference.backends.torch_packed import Packed  # two seconds, which CPUs need not spend

    return Packed(inputs.split, inputs.device, inputs.dtype, inputs.pad_id, compiled)


def _make_openvino(inputs: BackendInputs, int8: bool = False) -> Backend:
    return OpenVino(inputs.first_token_only, inputs.dtype, inputs.config, inputs.threads, int8)


def _make_padded(inputs: BackendInputs) -> Backend:
    return Padded(inputs.first_token_only, inputs.device, inputs.dtype, inputs.pad_id, inputs.threads)


# The fastest first; the last one runs every model.
BACKENDS = (
    BackendEntry("compiled", ("cuda",), functools.partial(_make_packed, compiled=True), tried="for_long_runs"),
    BackendEntry("packed", ("cuda",), _make_packed),
    BackendEntry("openvino", ("cpu",), _make_openvino),
    BackendEntry("int8", ("cpu",), functools.partial(_make_openvino, int8=True), INT8_TOLERANCE, tried="on_request"),
    BackendEntry("torch", ("cuda", "cpu"), _make_padded),
)


@dataclass(frozen=True)
class Selection:
    """The backend that was selected."""

    backend: Backend
    head: nn.Module  # to be applied to what the backend returns: (n, width) -> logits (n, classes)
    passed_over: list[str]  # why faster backends were not taken


def candidates(name: str | None, device_type: str, long_run: bool) -> list[BackendEntry]:
    """List the backends to try, the fastest first; only the one of that `name` where a name is given."""
    if name:
        return [find_backend(name)]
    tried = ("always", "for_long_runs") if long_run else ("always",)
    return [entry for entry in BACKENDS if device_type in entry.device_types and entry.tried in tried]


def find_backend(name: str) -> BackendEntry:
    """Find a backend in the registry. Raises ValueError for an unknown name."""
    for entry in BACKENDS:
        if entry.name == name:
            return entry
    raise ValueError(f"no backend {name!r}; expected one of {', '.join(entry.name for entry in BACKENDS)}")


def select_backend(
    model: Classifier,
    device: torch.device,
    threads: int | None,
    entries: Sequence[BackendEntry],
    objective: Objective,
) -> Selection:
    """Pick the first backend whose probabilities match plain torch on a probe batch.

    Where none does, raises what the last of the `entries` raised; and `UserError` for a model that cannot be padded.
    """
    config: Any = model.encoder.config
    probe = families.make_probe(config)
    fitness.check_padding(model.to(device))

    def difference(backend: Backend, head: nn.Module) -> float:
        return float(np.abs(_probabilities(backend, head, probe, objective) - expected).max())

    with torch.inference_mode():
        unsplit = SplitClassifier(model.to(device), nn.Identity(), is_whole=True)
        plain = Padded(unsplit, device, torch.float32, config.pad_token_id or 0, threads)
        expected = _probabilities(plain, unsplit.head, probe, objective)
        split = _split(model, device, difference) or unsplit
        inputs = BackendInputs(model, split, device, hardware.compute_dtype(device), threads)
        passed_over: list[str] = []
        for entry in entries:
            try:
                # its copies of the weights are plain tensors: those of inference mode, compiled, are little tested
                with torch.inference_mode(False), torch.no_grad():
                    backend = entry.make(inputs)
                largest = difference(backend, split.head)
                if not largest <= entry.tolerance:  # nor if it is not a number
                    raise BackendUnavailable(f"its probabilities differ by {largest:.2f} from those of plain torch")
                return Selection(backend, split.head, passed_over)
            except Exception as error:
                if entry is entries[-1]:
                    raise
                reason = textwrap.shorten(str(error), REASON_CHARACTERS, placeholder=" ...") or type(error).__name__
                passed_over.append(f"{entry.name}: {reason}")
    raise ValueError("no backend to select from")


def _split(
    model: Classifier, device: torch.device, difference: Callable[[Backend, nn.Module], float]
) -> SplitClassifier | None:
    """Cut the model behind its first token's last state; None where that gives other probabilities."""
    config: Any = model.encoder.config
    try:
        split = SplitClassifier(FirstToken(model.encoder), model.head(), is_whole=False)
        largest = difference(Padded(split, device, torch.float32, config.pad_token_id or 0, None), split.head)
    except (TypeError, ValueError, AttributeError, RuntimeError):  # families whose heads look at other states
        return None
    return split if largest < FP32_TOLERANCE else None


def _probabilities(backend: Backend, head: nn.Module, tokens: TokenLists, objective: Objective) -> np.ndarray:
    """Compute the probabilities of all rows, each of which has tokens, in their order."""
    batches = backend.batches(tokens.lengths)
    probabilities = objective.activate(head(backend(tokens, batches).float()).cpu().numpy())
    return probabilities[np.argsort(np.concatenate(batches))]
