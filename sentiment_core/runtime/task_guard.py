"""Bounds on a task of the cluster: how long one try may take and how much memory, and how often it is tried when its
process dies."""

import contextlib
import faulthandler
import resource
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.actor import ActorHandle

from sentiment_core.runtime import cluster

TRIES = 4
MEMORY = 4 << 30  # bytes that a task which reads or writes may take; one text of 10 MB needs a quarter of that
MEMORY_IN_USE = Path("/proc/self/statm")  # Linux only, as is the limit


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
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tries)  # if it dies, it counts anew
        tries: ActorHandle = actor.options(scheduling_strategy=cluster.here()).remote()  # type: ignore[assignment]
        return cls(tries, limit_s)

    @contextlib.contextmanager
    def __call__(self, key: Hashable, least_s: float = 0.0) -> Iterator[None]:
        """Around the work of the task `key`. A try that takes longer than `limit_s`, or `least_s` if that is more, ends
        with its process, however it hangs; where it hung then stands in the worker's log. Raises `GivenUp`."""
        begun: int = ray.get(self.tries.begin.remote(key))  # type: ignore[assignment]
        if begun > TRIES:
            raise GivenUp(f"its process died or hung {TRIES} times")
        faulthandler.dump_traceback_later(max(self.limit_s, least_s), exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.tries.end.remote(key)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """What takes more than `MEMORY` raises `MemoryError`, or ends with its process if it cannot: a few bytes of Parquet
    may stand for any number."""
    if not MEMORY_IN_USE.exists():
        yield
        return
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(MEMORY_IN_USE.read_text().split()[5]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit if before == resource.RLIM_INFINITY else min(limit, before), most))
    try:
        yield
    except MemoryError:
        raise MemoryError(f"it takes more than {MEMORY >> 30} GB of memory at once") from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


class Tries:
    """An actor beside the driver: how often each task was begun that has not come to its end."""

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()

    def begin(self, key: Hashable) -> int:
        self._begun[key] += 1
        return self._begun[key]

    def end(self, key: Hashable) -> None:
        del self._begun[key]
