"""A bundle on a device: token lists in, calibrated probabilities out. Knows nothing of Ray or of files to score.

Of the ways to compute it takes the fastest that runs the model right: each is held to what plain torch gives.
"""

import copy
import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from sentiment_core.inference.backends.base import Backend, FirstToken, Padded, Parts, Unfit
from sentiment_core.inference.backends.openvino import OpenVino
from sentiment_core.model import bundle, classifier
from sentiment_core.model.classifier import Classifier
from sentiment_core.model.objective import Objective
from sentiment_core.runtime import hardware
from sentiment_core.text.token_lists import TokenLists, deduplicate, mean_over_windows

FASTEST_FIRST = {"cuda": ("packed", "torch"), "cpu": ("openvino", "torch")}
LONG_RUN_FIRST = {"cuda": ("compiled", *FASTEST_FIRST["cuda"]), "cpu": FASTEST_FIRST["cpu"]}
ON_CPU = ("openvino", "int8")  # also where there is a GPU
LEAST_TOKENS = 512  # of a batch: about the longest row that most encoders take
SAME, CLOSE, NEAR = 1e-4, 0.05, 0.25  # greatest difference of a probability to be right, in float32, bf16 and 8 bits


class Engine:
    def __init__(
        self,
        model: Classifier,
        classes: int,
        max_length: int,
        threads: int | None = None,
        backend: str | None = None,
        long_run: bool = False,
        objective: Objective = Objective(),  # noqa: B008 (frozen)
    ) -> None:
        """`max_length`: how many tokens of a list the model is given at a time; the logits of a list's pieces
        are averaged. `threads` (CPU only): how many to compute with; None leaves the library's choice.
        `backend`: "compiled" or "packed" (GPU), "openvino" or "int8" (CPU), or "torch"; None takes the fastest
        that runs this model right here, `passed_over` tells why not others. "int8" is taken only when asked
        for, "compiled", which takes its time to compile, only for a `long_run`. Raises `Unfit` if the one asked
        for does not run the model right.
        """
        self.device = torch.device("cpu") if backend in ON_CPU else hardware.device()
        self.threads = threads if self.device.type == "cpu" else None
        self.classes = classes
        self.objective = objective
        self.max_length = max_length
        self._limit_threads()
        names = (backend,) if backend else (LONG_RUN_FIRST if long_run else FASTEST_FIRST)[self.device.type]
        self.backend, head, self.passed_over = choose(model, self.device, self.threads, names, objective)
        # in float64, whose rounding, which depends on the batch, float32 does not show
        self.head = copy.deepcopy(head).double()
        self._budget = self.backend.budget

    @classmethod
    def load(
        cls, folder: str, threads: int | None = None, backend: str | None = None, long_run: bool = False
    ) -> "Engine":
        """The engine of the bundle in a local folder."""
        model, info = bundle.load(folder)
        return cls(model, len(info.labels), info.max_length, threads, backend, long_run, info.objective)

    def probabilities(self, tokens: TokenLists) -> tuple[np.ndarray, int]:
        """Probabilities (n, classes) float32 in the order of `tokens`, NaN for rows without tokens, and how many tokens
        of padding were computed for them. Rows of the same tokens are computed once. Out of memory, it goes on with
        half the budget, and keeps to that."""
        self._limit_threads()
        first, which = deduplicate(tokens)
        some = tokens.take(first)
        while True:
            try:
                found, padding = self._compute(some)
                return found[which], padding
            except torch.OutOfMemoryError:
                if self.backend.budget <= LEAST_TOKENS:
                    raise
            # with what it took released
            self.backend.budget //= 2
            torch.cuda.empty_cache()

    @property
    def remarks(self) -> list[str]:
        """What is worth telling about how it computes."""
        halved = self.backend.budget < self._budget
        return [*self.passed_over, *[f"out of memory, so batches of {self.backend.budget:,} tokens"] * halved]

    def _compute(self, tokens: TokenLists) -> tuple[np.ndarray, int]:
        pieces, first = tokens.windows(self.max_length)
        batches = self.backend.batches(pieces.lengths)
        logits = np.full((len(pieces), self.classes), np.nan)
        if batches:
            with torch.inference_mode():
                logits[np.concatenate(batches)] = self.head(self.backend(pieces, batches).double()).cpu().numpy()
        found = self.objective.activate(mean_over_windows(logits, first)).astype(np.float32)
        return found, sum(self.backend.padding(pieces.lengths[batch]) for batch in batches)

    def _limit_threads(self) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)  # holds for the calling thread only


def choose(
    model: Classifier, device: torch.device, threads: int | None, names: Sequence[str], objective: Objective
) -> tuple[Backend, nn.Module, list[str]]:
    """The first backend of those `names` that runs `model` right on `device` (or what the last of them raises), the
    head behind it, and why those before it were not taken."""
    dtype = hardware.compute_dtype(device)
    config: Any = model.encoder.config
    pad_id = config.pad_token_id or 0
    probe = classifier.probe(config)
    with torch.inference_mode():
        whole = Parts(model.to(device), nn.Identity(), True)
        expected = _probabilities(Padded(whole, device, torch.float32, pad_id, threads), whole.head, probe, objective)
        parts = _cut(model, device, pad_id, probe, expected, objective) or whole

        @functools.cache
        def spared() -> Parts:  # changes the encoder, of which the packed ones, that come first, have copies
            classifier.spare_other_tokens(parts.encoder, model.encoder)
            return parts

        candidates: dict[str, Callable[[], Backend]] = {
            "compiled": lambda: _packed(parts, device, dtype, pad_id, compiled=True),
            "packed": lambda: _packed(parts, device, dtype, pad_id, compiled=False),
            "openvino": lambda: OpenVino(spared(), dtype, config, threads, int8=False),
            "int8": lambda: OpenVino(spared(), dtype, config, threads, int8=True),
            "torch": lambda: Padded(spared(), device, dtype, pad_id, threads),
        }
        passed_over: list[str] = []
        for name in names:
            try:
                backend = candidates[name]()
                difference = np.abs(_probabilities(backend, parts.head, probe, objective) - expected).max()
                if not difference <= (NEAR if name == "int8" else CLOSE):  # nor if it is no number
                    raise Unfit(f"its probabilities differ by {difference:.2f} from those of plain torch")
                return backend, parts.head, passed_over
            except Exception as error:
                if name == names[-1]:
                    raise
                reason = textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
                passed_over.append(f"{name}: {reason}")
    raise ValueError("no backend to choose from")


def _packed(parts: Parts, device: torch.device, dtype: torch.dtype, pad_id: int, compiled: bool) -> Backend:
    from sentiment_core.inference.backends.packed import Packed  # two seconds, which CPUs need not spend

    return Packed(parts, device, dtype, pad_id, compiled)


def _cut(
    model: Classifier,
    device: torch.device,
    pad_id: int,
    probe: TokenLists,
    expected: np.ndarray,
    objective: Objective,
) -> Parts | None:
    """The model cut behind its first token's last state, if that gives the same; not all families can be cut there."""
    try:
        parts = Parts(FirstToken(model.encoder), model.head(), False)
        found = _probabilities(Padded(parts, device, torch.float32, pad_id, None), parts.head, probe, objective)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return None
    return parts if np.abs(found - expected).max() < SAME else None


def _probabilities(backend: Backend, head: nn.Module, tokens: TokenLists, objective: Objective) -> np.ndarray:
    """Of all rows, which have tokens, in their order."""
    batches = backend.batches(tokens.lengths)
    found = objective.activate(head(backend(tokens, batches).float()).cpu().numpy())
    return found[np.argsort(np.concatenate(batches))]
