"""Contender processes and the matrix ceiling, for all benchmarks."""

import contextlib
import datetime
import multiprocessing
import os
import resource
import statistics
import textwrap
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn

RESULTS = Path(__file__).parent / "results"
CEILING_ROWS = {"cpu": 2_048, "cuda": 32_768}  # of the matrices: the tokens of an engine's batch
START_LIMIT_S = 300.0  # for a process to import its libraries and make its contender
CEILING_REPEATS, CEILING_PRODUCTS = 30, 5
PROCESSES = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA


class ContenderFailed(Exception):
    """A failure of a contender: it could not be made, raised, died or hung."""


class ContenderProcess:
    """A process that holds one contender and waits while others run.

    What a contender breaks, its GPU context for one, breaks with its process only.
    """

    def __init__(self, make: Callable[..., Callable], *arguments: Any, daemon: bool = True) -> None:
        """Start the process, which calls `make(*arguments)`, without waiting for it."""
        self._connection, child_end = PROCESSES.Pipe()
        self._process = PROCESSES.Process(target=_serve, args=(make, arguments, child_end), daemon=daemon)
        self._process.start()
        child_end.close()  # or the end of the process would not show here
        self._is_made = False

    def send(self, *arguments: Any) -> None:
        """Ask for a call of the contender without waiting for the answer."""
        with contextlib.suppress(OSError):  # a dead process: `receive` says so
            self._connection.send(arguments)

    def wait_until_made(self, limit_s: float | None = START_LIMIT_S) -> None:
        """Wait for the contender. Raises `ContenderFailed`."""
        if not self._is_made:
            self._next_answer(limit_s)
            self._is_made = True

    def receive(self, limit_s: float | None = None) -> Any:
        """Return the next answer.

        Raises `ContenderFailed` when there is none within `limit_s` seconds, those of the process's start aside.
        """
        self.wait_until_made()
        return self._next_answer(limit_s)

    def _next_answer(self, limit_s: float | None) -> Any:
        try:
            if not self._connection.poll(limit_s):
                self.kill()
                raise ContenderFailed(f"no answer within {limit_s:.0f} s")
            succeeded, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(10)
            raise ContenderFailed(f"its process died with exit code {self._process.exitcode}") from None
        if not succeeded:
            raise ContenderFailed(answer)
        return answer

    def call(self, *arguments: Any, limit_s: float | None = None) -> Any:
        """Call the contender and return its answer. Raises `ContenderFailed`."""
        self.send(*arguments)
        return self.receive(limit_s)

    def close(self) -> None:
        """Let the process end by itself; kill it when it does not."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(30)
        self.kill()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()


def _serve(make: Callable[..., Callable], arguments: tuple, connection: Connection) -> None:
    """Make the contender, then answer calls until None comes; drop warnings."""
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
        call: Callable = make
        while arguments is not None:
            try:
                answer = call(*arguments)
            except Exception as error:
                connection.send((False, describe(error)))
                if call is make:
                    return
            else:
                if call is make:
                    call, answer = answer, None
                connection.send((True, answer))
            try:
                arguments = connection.recv()
            except EOFError:  # the benchmark was killed
                return


def describe(error: Exception) -> str:
    """Return the error's type and first line; CUDA's last line is always the same."""
    first_line = str(error).strip().partition("\n")[0]
    return textwrap.shorten(f"{type(error).__name__}: {first_line}", 300, placeholder=" ...")


def peak_memory_mb(device: torch.device) -> float:
    """Return the most memory this process has held.

    On a GPU that is what torch allocated there, else resident memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def flop_per_token(encoder: nn.Module) -> float:
    """Count the operations of the encoder's linear layers, two for each weight.

    Attention's own are left out.
    """
    layers = [m for name, m in encoder.named_modules() if isinstance(m, nn.Linear) and "pooler" not in name]
    return 2.0 * sum(layer.weight.numel() for layer in layers)


def matrix_ceiling(hidden: int, inner: int, dtype: torch.dtype, device: torch.device, rows: int | None = None) -> float:
    """Measure bare matrix products at an encoder's shapes, in operations per second.

    `rows` are the tokens of a batch.
    """
    rows = rows or CEILING_ROWS[device.type]
    rates = []
    for inputs, outputs in ((hidden, hidden), (hidden, inner), (inner, hidden)):
        states, weights = (torch.randn(n, inputs, device=device).to(dtype) for n in (rows, outputs))
        seconds = []
        with torch.inference_mode():
            for _ in range(CEILING_REPEATS):
                started = time.perf_counter()
                for _ in range(CEILING_PRODUCTS):
                    nn.functional.linear(states, weights)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - started)
        rates.append(2 * rows * inputs * outputs * CEILING_PRODUCTS / statistics.median(seconds))
    return statistics.harmonic_mean(rates)


def today() -> str:
    """Return the date for a report."""
    return datetime.date.today().isoformat()
