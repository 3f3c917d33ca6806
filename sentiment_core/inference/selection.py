"""The registry of backends, and which of them runs a model right here.

To add a backend, write a module in `backends/`, a function here that makes it, and an entry in `BACKENDS` at its place:
they are tried in order. A backend whose library is missing raises `BackendUnavailable`, and imports it only when it is
made. A library that few need is an extra in `pyproject.toml`.
"""

import functools
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from sentiment_core.inference import timing
from sentiment_core.inference.backends.base import Backend, BackendUnavailable, FirstToken, SplitClassifier
from sentiment_core.inference.backends.openvino import OpenVino, convert, openvino_version
from sentiment_core.inference.backends.torch_padded import Padded
from sentiment_core.inference.int8_layers import Int8Layers
from sentiment_core.inference.timing import Choice
from sentiment_core.inference.tolerances import BF16_TOLERANCE, FP32_TOLERANCE, INT8_TOLERANCE, STATES_TOLERANCE
from sentiment_core.model import bundle, classifier, families, fitness
from sentiment_core.model.classifier import Classifier
from sentiment_core.model.objective import Objective
from sentiment_core.runtime import cpu_threads, hardware, measurements
from sentiment_core.runtime.precision import Precision
from sentiment_core.text.token_lists import TokenLists

REASON_CHARACTERS = 200  # of why a backend was passed over
COMPILED = "compiled"
PACKED = (COMPILED, "packed")  # backends that compute the same
NO_LAYERS: Int8Layers = MappingProxyType({})
# Of computing without compiling, from which on compiling is expected to pay: it takes a minute and saves a tenth.
COMPILING_PAYS_S = 600.0


@dataclass(frozen=True)
class BackendInputs:
    """Ingredients of a backend: the model and its device."""

    classifier: Classifier
    split: SplitClassifier
    device: torch.device
    threads: int | None  # on a CPU; None leaves the choice to the library
    int8_layers: Int8Layers = field(default_factory=dict)  # of the encoder, that can be computed in 8 bits

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
        """The same model without work that the head does not look at."""
        encoder: Any = classifier.copy_sharing_weights(self.split.encoder)
        classifier.compute_first_token_only(encoder, encoder.encoder)
        return replace(self.split, encoder=encoder)

    @functools.cached_property
    def openvino_model(self) -> Any:
        """The encoder as an `openvino.Model`, which OpenVINO compiles for each number type."""
        encoder: Any = self.first_token_only.encoder
        return convert(self.first_token_only, encoder.encoder.config)  # the copy's own, which says how it attends


@dataclass(frozen=True)
class BackendEntry:
    """A backend as `select_backend` knows it."""

    name: str
    device_types: tuple[str, ...]  # of torch, where it is tried without being asked for
    make: Callable[[BackendInputs, Choice], Backend]  # raises BackendUnavailable, or what its libraries raise
    tolerance: float = BF16_TOLERANCE  # of probabilities
    states_tolerance: float = STATES_TOLERANCE
    tried: Literal["always", "on_request"] = "always"
    may_share_batches: bool = False  # of several threads each can compute a batch, or all the same


def _make_packed(inputs: BackendInputs, choice: Choice, compiled: bool = False) -> Backend:
    from sentiment_core.inference.backends.torch_packed import Packed  # two seconds, which CPUs need not spend

    return Packed(inputs.split, inputs.device, choice.dtype, inputs.pad_id, compiled)


def _make_openvino(inputs: BackendInputs, choice: Choice) -> Backend:
    return OpenVino(inputs.openvino_model, choice.dtype, inputs.pad_id, inputs.threads, choice.shares_batches)


def _make_int8(inputs: BackendInputs, choice: Choice) -> Backend:
    if not inputs.int8_layers:
        raise BackendUnavailable(f"the bundle has no {bundle.INT8}, which training makes")
    return OpenVino(
        inputs.openvino_model, choice.dtype, inputs.pad_id, inputs.threads, choice.shares_batches, inputs.int8_layers
    )


def _make_padded(inputs: BackendInputs, choice: Choice) -> Backend:
    return Padded(inputs.first_token_only, inputs.device, choice.dtype, inputs.pad_id, inputs.threads)


# Those that are the fastest on most chips first; the last one runs every model.
BACKENDS = (
    BackendEntry(COMPILED, ("cuda",), functools.partial(_make_packed, compiled=True)),
    BackendEntry("packed", ("cuda",), _make_packed),
    BackendEntry("openvino", ("cpu",), _make_openvino, may_share_batches=True),
    BackendEntry("int8", ("cpu",), _make_int8, INT8_TOLERANCE, math.inf, tried="on_request", may_share_batches=True),
    BackendEntry("torch", ("cuda", "cpu"), _make_padded),
)


@dataclass(frozen=True)
class Selection:
    """The backend that was selected."""

    backend: Backend
    choice: Choice
    head: nn.Module  # to be applied to what the backend returns: (n, width) -> logits (n, classes)
    passed_over: list[str]  # why others that stood before it were not taken
    margin: str  # how much faster than others it was measured to be; empty where nothing was measured


def list_choices(name: str | None, device: torch.device, threads: int, precision: Precision) -> list[Choice]:
    """List the ways to compute that may be taken, in the order in which they are tried where nothing is measured.

    Args:
        name: The backend's, where one is insisted on.
        device: Of the model.
        threads: CPU threads to compute with.
        precision: As `hardware.allowed_number_types` takes it.

    Raises:
        UserError: The device does not compute that number type.
    """
    types = hardware.allowed_number_types(device, precision)
    # where 16 bits do not give what 32 give; that they are slower on a GPU need not be measured
    in_any_case = [Choice("torch", "float32")] if device.type == "cuda" and precision == "auto" and not name else []
    entries = [entry for entry in BACKENDS if device.type in entry.device_types and entry.tried == "always"]
    return [
        Choice(entry.name, hardware.dtype_name(dtype), shares_batches)
        for entry in ([find_backend(name)] if name else entries)
        for dtype in reversed(types)
        for shares_batches in ((False, True) if entry.may_share_batches and threads > 1 else (False,))
    ] + in_any_case


def find_backend(name: str) -> BackendEntry:
    """Find a backend in the registry. Raises ValueError for an unknown name."""
    for entry in BACKENDS:
        if entry.name == name:
            return entry
    raise ValueError(f"no backend {name!r}; expected one of {', '.join(entry.name for entry in BACKENDS)}")


def select_as_noted(
    noted: str,
    choices: Sequence[Choice],
    mean_length: int | None,
    select: Callable[[Sequence[Choice], int | None], Selection],
) -> Selection:
    """Select the choice that an earlier run noted; if there is none, or it does not run, the fastest one.

    Args:
        noted: The choice's text; empty if there is none.
        choices: Ways to compute.
        mean_length: As `select_backend` takes it.
        select: Calls `select_backend` with some of the choices and a mean length.

    Raises:
        Exception: As `select_backend`.
    """
    again = _find_noted(noted, choices)
    others = [choice for choice in choices if choice not in again]
    if not again:
        return select(others, mean_length)
    try:
        # one choice is not measured; of packed rows the rate says whether compiling pays
        return select(again, mean_length if len(again) > 1 else None)
    except Exception as error:
        if not others:
            raise
        selected = select(others, mean_length)
        return replace(selected, passed_over=[_reason(again[-1], error), *selected.passed_over])


def _find_noted(noted: str, choices: Sequence[Choice]) -> list[Choice]:
    """Find the choice with this text; with another number of threads, that of the same backend and number type.

    Of packed rows, compiled or not, there are two: the work decides between them, and each run has its own.
    """
    alike = [choice for choice in choices if noted.startswith(f"{choice.backend} {choice.number_type}")]
    same = sorted(alike, key=lambda choice: str(choice) != noted)[:1]
    if same and same[0].backend in PACKED:
        return [c for c in choices if c.backend in PACKED and c.number_type == same[0].number_type]
    return same


def select_backend(
    model: Classifier,
    device: torch.device,
    threads: int | None,
    choices: Sequence[Choice],
    objective: Objective,
    mean_length: int | None,
    work_tokens: float = 0.0,
    int8_layers: Int8Layers = NO_LAYERS,
    beside: Sequence[Choice] = (),
) -> Selection:
    """Pick the fastest choice whose probabilities match plain torch on a probe batch.

    Args:
        model: The classifier.
        device: Where it computes.
        threads: CPU threads to compute with; None leaves the number to the library.
        choices: Ways to compute.
        objective: How logits become probabilities.
        mean_length: Tokens of the work's texts, for which the choices are measured; None takes them in their order.
        work_tokens: Tokens to compute. Compiling takes a minute, so that it must be many.
        int8_layers: Layers that the backend `int8` computes in 8 bits.
        beside: Other choices that are only measured, for the margin.

    Raises:
        Exception: No choice runs the model right: what the last one raised.
        UserError: The model cannot be padded.
    """
    config: Any = model.encoder.config
    probe = families.make_probe(config, beyond_window=True)
    fitness.check_padding(model.to(device))

    with torch.inference_mode():
        unsplit = _unsplit(model)
        plain = Padded(unsplit, device, torch.float32, config.pad_token_id or 0, threads)
        whole_states = _states(plain, probe)
        expected = _activate(whole_states, unsplit.head, objective)
        split, expected_states = _split(model, device, probe, whole_states) or (unsplit, whole_states)
        rates = {}
        inputs = BackendInputs(model, split, device, threads, int8_layers)
        if mean_length and len(choices) + len(beside) > 1:
            rates = _rates(inputs, [*choices, *beside], mean_length)
        layers = getattr(config, "num_hidden_layers", timing.LAYERS)
        passed_over: list[str] = []
        ordered = order_choices(choices, rates, device, work_tokens, layers) if mean_length else list(choices)
        for choice in ordered:
            try:
                # its copies of the weights are plain tensors: those of inference mode, compiled, are little tested
                with torch.inference_mode(False), torch.no_grad():
                    backend = _make(inputs, choice)
                states = _states(backend, probe)
                entry = find_backend(choice.backend)
                largest = float(np.abs(_activate(states, split.head, objective) - expected).max())
                if not largest <= entry.tolerance:  # nor if it is not a number
                    raise BackendUnavailable(f"its probabilities differ by {largest:.2f} from those of plain torch")
                # of a whole model these are logits, which may be next to nothing
                share = float((states - expected_states).norm() / expected_states.norm().clamp(min=1.0))
                if not share <= entry.states_tolerance:
                    raise BackendUnavailable(f"its states differ by {100 * share:.0f} % from those of plain torch")
                margin = timing.describe_margin(choice, rates, beside)
                return Selection(
                    backend, choice, split.head, [*_why_not_measured(inputs, choices, rates), *passed_over], margin
                )
            except Exception as error:
                if choice is ordered[-1]:
                    raise
                passed_over.append(_reason(choice, error))
    raise ValueError("no backend to select from")


def _why_not_measured(inputs: BackendInputs, choices: Sequence[Choice], rates: dict[str, float]) -> list[str]:
    """Say why backends that were to be measured cannot be made here, such as one whose library is missing."""
    measured = {name.partition(" ")[0] for name in rates} | {COMPILED}
    reasons: dict[str, str] = {}
    for choice in choices if rates else ():
        if choice.backend not in measured | set(reasons):
            try:
                _make(inputs, choice)
            except Exception as error:
                reasons[choice.backend] = _reason(choice, error)
    return list(reasons.values())


def _reason(choice: Choice, error: Exception) -> str:
    reason = textwrap.shorten(str(error), REASON_CHARACTERS, placeholder=" ...") or type(error).__name__
    return f"{choice.backend}: {reason}"


def order_choices(
    choices: Sequence[Choice], rates: dict[str, float], device: torch.device, work_tokens: float, layers: int
) -> list[Choice]:
    """Order choices, the one to try first in front.

    What must be compiled comes first where so much work makes up for it, and is else left out if there is another.
    Where nothing could be measured on a CPU, nothing says that a less exact number type is faster.
    """
    if not rates and device.type == "cpu":
        choices = sorted(choices, key=lambda choice: timing.EXACTNESS.index(choice.number_type))
    others = [choice for choice in choices if choice.backend != COMPILED]
    ordered = timing.fastest_first(others, rates) if others else []
    compiled = [choice for choice in choices if choice.backend == COMPILED]
    if not ordered:
        return compiled
    rate = rates.get(str(ordered[0]), math.inf) * timing.LAYERS / layers
    pays = ordered[0].backend == "packed" and work_tokens / rate >= COMPILING_PAYS_S
    return [*compiled, *ordered] if pays else ordered


def _rates(inputs: BackendInputs, choices: Sequence[Choice], mean_length: int) -> dict[str, float]:
    """Return the tokens per second of each choice that runs, as measured on this machine now or before.

    What must be compiled is not measured: it takes a minute. Nor is float32 on a GPU beside other types.
    """
    config, device = inputs.config, inputs.device
    threads = inputs.threads or cpu_threads.count_usable()
    types = {choice.number_type for choice in choices}
    measured = [
        choice
        for choice in choices
        if choice.backend != COMPILED
        and not (device.type == "cuda" and choice.number_type == "float32" and len(types) > 1)
    ]

    def measure() -> dict[str, float]:
        work = timing.make_work(config, mean_length, device, threads)
        if len(classifier.encoder_layers(inputs.classifier.encoder)) <= timing.LAYERS:
            return timing.measure(functools.partial(_make, inputs), measured, work)  # what is converted serves again
        cut = timing.cut_layers(inputs.classifier)
        split = SplitClassifier(FirstToken(cut.encoder), cut.head(), is_whole=False)
        left = {name for name, _ in cut.encoder.named_modules()}
        cut_inputs = replace(
            inputs,
            classifier=cut,
            split=_unsplit(cut) if inputs.split.is_whole else split,
            int8_layers={name: layer for name, layer in inputs.int8_layers.items() if name in left},
        )
        return timing.measure(functools.partial(_make, cut_inputs), measured, work)

    key = {
        "what": "inference",
        "chip": hardware.chip_id(device),
        "threads": threads,
        "libraries": bundle.library_versions() | {"openvino": openvino_version()},
        "choices": [str(choice) for choice in measured],
        "family": config.model_type,
        "sizes": [getattr(config, name, None) for name in ("hidden_size", "intermediate_size", "num_attention_heads")],
        "mean_length": mean_length,
    }
    if inputs.int8_layers:
        key["int8_layers"] = sorted(inputs.int8_layers)
    try:
        return measurements.remember(key, measure)
    except timing.LackedMemory as error:  # which is not remembered
        return error.rates
    except Exception:  # an encoder that cannot be cut, or memory that ran out: the choices are tried in their order
        return {}


def _make(inputs: BackendInputs, choice: Choice) -> Backend:
    return find_backend(choice.backend).make(inputs, choice)


def _unsplit(model: Classifier) -> SplitClassifier:
    return SplitClassifier(model, nn.Identity(), is_whole=True)


def _split(
    model: Classifier, device: torch.device, probe: TokenLists, expected: torch.Tensor
) -> tuple[SplitClassifier, torch.Tensor] | None:
    """Cut the model behind its first token's last state; None where that gives other logits than `expected`.

    Probabilities would not do: a model that is sure of the probe's rows gives 1, whatever its head looks at. Returns
    the model in two parts, and the probe's states, (rows, width).
    """
    config: Any = model.encoder.config
    try:
        split = SplitClassifier(FirstToken(model.encoder), model.head(), is_whole=False)
        states = _states(Padded(split, device, torch.float32, config.pad_token_id or 0, None), probe)
        largest = float((split.head(states) - expected).abs().max())
    except (TypeError, ValueError, AttributeError, RuntimeError):  # families whose heads look at other states
        return None
    return (split, states) if largest < FP32_TOLERANCE * max(1.0, float(expected.abs().max())) else None


def _states(backend: Backend, tokens: TokenLists) -> torch.Tensor:
    """Compute the states of all rows, (rows, width) float32, in their order. No row may be without tokens."""
    batches = backend.batches(tokens.lengths)
    states = backend(tokens, batches).float()
    return states[torch.from_numpy(np.argsort(np.concatenate(batches))).to(states.device)]


def _activate(states: torch.Tensor, head: nn.Module, objective: Objective) -> np.ndarray:
    """Return the probabilities that the head makes of states, (rows, classes)."""
    return objective.activate(head(states).cpu().numpy())
