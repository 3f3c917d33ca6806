"""Bound what one task of the cluster may take.

Bounded are time and memory of an attempt, and the number of attempts when its process dies.
"""

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

MAX_ATTEMPTS = 4
MEMORY_LIMIT_BYTES = 4 << 30  # of a task that reads or writes; one text of 10 MB needs a quarter of that
MEMORY_IN_USE = Path("/proc/self/statm")  # Linux only, and so is the limit


class AttemptsExhausted(Exception):
    """Raised for a task whose process died too often."""


@dataclass(frozen=True)
class TaskGuard:
    """Limits on time and attempts that travel to the tasks.

    Ray tries a task again whenever its process dies, without end; this ends it.
    """

    attempts: ActorHandle  # an AttemptCounter
    limit_s: float  # of one attempt

    @classmethod
    def start(cls, limit_s: float) -> "TaskGuard":
        """Start the counter of attempts beside the driver. If it dies it starts again at 0."""
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(AttemptCounter)
        attempts: ActorHandle = actor.options(  # type: ignore[assignment]
            scheduling_strategy=cluster.pin_to_this_node()
        ).remote()
        return cls(attempts, limit_s)

    @contextlib.contextmanager
    def __call__(self, key: Hashable, least_s: float = 0.0) -> Iterator[None]:
        """Guard the work of the task `key` inside the block.

        An attempt that takes longer than `limit_s`, or `least_s` if that is more, ends with its process, however it
        hangs; the worker's log then shows where it hung. Raises `AttemptsExhausted`.
        """
        attempt: int = ray.get(self.attempts.begin.remote(key))  # type: ignore[assignment]
        if attempt > MAX_ATTEMPTS:
            raise AttemptsExhausted(f"its process died or hung {MAX_ATTEMPTS} times")
        faulthandler.dump_traceback_later(max(self.limit_s, least_s), exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        self.attempts.end.remote(key)


@contextlib.contextmanager
def limit_memory() -> Iterator[None]:
    """Cap memory growth inside the block, so that a decompression bomb fails alone.

    A few bytes of Parquet may stand for any number. Raises `MemoryError` above `MEMORY_LIMIT_BYTES`; code that cannot
    raise it ends with its process.
    """
    if not MEMORY_IN_USE.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = int(MEMORY_IN_USE.read_text().split()[5]) * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
    try:
        yield
    except MemoryError:
        raise MemoryError(f"it takes more than {MEMORY_LIMIT_BYTES >> 30} GB of memory at once") from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


class AttemptCounter:
    """An actor that counts how often each unfinished task was begun."""

    def __init__(self) -> None:
        self._attempts: Counter[Hashable] = Counter()

    def begin(self, key: Hashable) -> int:
        """Count an attempt; return its number, from 1."""
        self._attempts[key] += 1
        return self._attempts[key]

    def end(self, key: Hashable) -> None:
        """Forget a task that came to its end."""
        del self._attempts[key]
