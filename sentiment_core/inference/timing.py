"""Measure which way to compute is the fastest on this chip, for scoring and for training.

What a chip's flags promise is often not so, see `runtime.hardware.number_types`. So each way that may be taken computes
the model, cut to two layers, on a fraction of a second of tokens.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sentiment_core.inference.backends.base import Backend, token_budget
from sentiment_core.model import classifier, families
from sentiment_core.model.classifier import Classifier
from sentiment_core.runtime import hardware
from sentiment_core.text.token_lists import TokenLists

# Times as fast as the choice before it that another one must be: one whose numbers are less exact, and one of the same
# number type, which may win or lose a few percent by chance.
LEAST_GAIN, LEAST_GAIN_OF_SAME_TYPE = 1.1, 1.05
# By which the rate of threads that share batches is divided before it is compared. They wait for one another in each
# layer, while a job's other processes hold them up: 1.12 times as fast alone, they scored 0.88 times as many rows a
# second in jobs (SST-2 phrases on a Zen 3).
SHARING_PENALTY = 1.25
LAYERS = 2  # of the model that is timed
ROUNDS = 3  # timed runs of a choice; the fastest counts, since other processes only slow a run down
ROUNDS_S = 1.0  # after which no further round begins
TOKENS_PER_THREAD = 1_024  # of a CPU: one batch for each
DEFAULT_LENGTH, SHORTEST = 64, 16  # tokens of a text where nothing is known of them, and at least
EXACTNESS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Choice:
    """A way to compute."""

    backend: str  # name in `selection.BACKENDS`
    number_type: str
    shares_batches: bool = False  # all threads compute one batch, instead of one each

    @property
    def dtype(self) -> torch.dtype:
        """The number type, as torch has it."""
        return getattr(torch, self.number_type)

    def __str__(self) -> str:
        return f"{self.backend} {self.number_type}{', threads sharing batches' if self.shares_batches else ''}"


class LackedMemory(MemoryError):
    """Memory ran out while choices were measured."""

    def __init__(self, rates: dict[str, float]) -> None:
        super().__init__("memory ran out while choices were measured")
        self.rates = rates  # tokens per second of those that ran


def race(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Run each of `runs` a few times, in turn; return the least seconds of each, without those that fail."""
    seconds: dict[str, float] = {}

    def run(name: str, best: float) -> None:
        started = time.perf_counter()
        try:
            runs[name]()
        except Exception:  # a library may fail in any way; `selection` gives the reason when it tries the choice
            seconds.pop(name, None)
        else:
            seconds[name] = min(best, time.perf_counter() - started)

    for name in runs:
        run(name, math.inf)  # which also prepares kernels for these shapes
    began = time.perf_counter()
    for number in range(ROUNDS):
        for name in list(seconds):
            if number == 0 or time.perf_counter() - began < ROUNDS_S:
                run(name, math.inf if number == 0 else seconds[name])
    return seconds


def measure(make: Callable[[Choice], Backend], choices: Sequence[Choice], tokens: TokenLists) -> dict[str, float]:
    """Measure the tokens per second of each choice, by its text; leave out those that fail.

    Raises `LackedMemory`, which holds the others, where memory ran out: another process may hold it now.
    """
    backends = functools.cache(make)
    lacked_memory = False

    def compute(choice: Choice) -> None:
        nonlocal lacked_memory
        try:
            backend = backends(choice)
            backend(tokens, backend.batches(tokens.lengths)).cpu()
        except RuntimeError as error:
            lacked_memory |= hardware.is_out_of_memory(error)
            raise

    seconds = race({str(choice): functools.partial(compute, choice) for choice in choices})
    rates = {name: len(tokens.ids) / least for name, least in seconds.items()}
    if lacked_memory:
        raise LackedMemory(rates)
    return rates


def fastest_first(choices: Sequence[Choice], rates: Mapping[str, float]) -> list[Choice]:
    """Order choices by their rates; those without one come last, in their order.

    The first one is faster by `LEAST_GAIN` than the best of more exact number types. Of one number type the first of
    the `choices` stays, unless another one is faster by `LEAST_GAIN_OF_SAME_TYPE`. Rates of threads that share batches
    count divided by `SHARING_PENALTY`.
    """
    worth = {
        choice: rates[str(choice)] / (SHARING_PENALTY if choice.shares_batches else 1)
        for choice in choices
        if str(choice) in rates
    }
    best: Choice | None = None
    for choice in sorted(worth, key=lambda choice: EXACTNESS.index(choice.number_type)):
        same_type = best is not None and choice.number_type == best.number_type
        gain = LEAST_GAIN_OF_SAME_TYPE if same_type else LEAST_GAIN
        if best is None or worth[choice] > gain * worth[best]:
            best = choice
    return sorted(choices, key=lambda choice: (choice != best, -worth.get(choice, 0.0)))


def describe_margin(best: Choice, rates: Mapping[str, float], beside: Sequence[Choice] = ()) -> str:
    """Say how fast a choice is beside the fastest other backend or number type; empty if there is none.

    With `beside` the others are these alone, and a choice that a flag insists on is slower than it need be.
    """
    own = str(Choice(best.backend, best.number_type))
    compared = {str(choice) for choice in beside} or set(rates)
    others = {name: rate for name, rate in rates.items() if name in compared and not name.startswith(own)}
    if str(best) not in rates or not others:
        return ""
    fastest = max(others, key=others.__getitem__)
    gain = rates[str(best)] / others[fastest]
    advice = f"; leave out --{best.backend} on this chip" if beside and gain < 1 else ""
    return f"{own} measured {gain:.2f} times as fast as {fastest}{advice}"


def work_length(mean_tokens: float | None, max_length: int) -> int:
    """Round the mean tokens of a text to a power of two, for which choices are measured and remembered."""
    length = 2 ** round(np.log2(max(SHORTEST, mean_tokens or DEFAULT_LENGTH)))
    return int(min(length, max_length))


def make_work(config: Any, mean_length: int, device: torch.device, threads: int) -> TokenLists:
    """Make random token lists of a half to one and a half of the mean length."""
    total = token_budget(device) if device.type == "cuda" else TOKENS_PER_THREAD * max(2, threads)
    rows = max(2, total // mean_length)
    random = np.random.default_rng(0)
    longest = max(1, min(mean_length * 3 // 2, families.longest_text(config, mean_length * 2)))
    lengths = np.minimum(random.integers(max(1, mean_length // 2), mean_length * 3 // 2 + 1, rows), longest)
    return families.make_random_lists(config, lengths)


def cut_layers(model: Classifier) -> Classifier:
    """Return the model with its first layers only; it shares the weights."""
    cut = classifier.copy_sharing_weights(model)
    layers = classifier.encoder_layers(cut.encoder)
    del layers[LAYERS:]
    config: Any = cut.encoder.config
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = min(LAYERS, config.num_hidden_layers)
    return cut
