"""Bounds on a task of the cluster: how long one try may take, and how often it is tried when its process dies."""

import contextlib
import faulthandler
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from sentiment_core import cluster

TRIES = 4


class GivenUp(Exception):
    """Raised for a task that took its process along too often."""


@dataclass(frozen=True)
class Guard:
    """Travels to the tasks. Ray tries a task again whenever its process dies, without end: this ends it."""

    tries: ActorHandle
    limit_s: float

    @classmethod
    def start(cls, limit_s: float) -> "Guard":
        """In the driver, where the tries are counted."""
        tries: ActorHandle = ray.remote(num_cpus=0)(Tries).options(scheduling_strategy=cluster.here()).remote()  # type: ignore[assignment]
        return cls(tries, limit_s)

    @contextlib.contextmanager
    def __call__(self, key: Hashable) -> Iterator[None]:
        """Around the work of the task `key`. A try that takes longer than `limit_s` ends with its process, however it
        hangs; where it hung then stands in the worker's log. Raises `GivenUp`."""
        begun: int = ray.get(self.tries.begin.remote(key))  # type: ignore[assignment]
        if begun > TRIES:
            raise GivenUp(f"its process died or hung {TRIES} times")
        faulthandler.dump_traceback_later(self.limit_s, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.tries.end.remote(key)


class Tries:
    """An actor beside the driver: how often each task was begun that has not come to its end."""

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()

    def begin(self, key: Hashable) -> int:
        self._begun[key] += 1
        return self._begun[key]

    def end(self, key: Hashable) -> None:
        del self._begun[key]
