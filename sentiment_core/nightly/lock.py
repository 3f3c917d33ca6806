"""Let one run at a time work on an output folder, or renew a folder of bundles: a lock file with a heartbeat.

The file stands in the folder, so that it excludes runs on all machines that write there. A run that was killed
leaves it behind; its heartbeat has stopped then, and the next run takes the lock over.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

from sentiment_core.runtime import storage
from sentiment_core.runtime.progress import repeat_every

LOCK_FILE, RENEWAL_LOCK_FILE = "_running.json", "_renewing.json"
HEARTBEAT_S = 20  # between two heartbeats
STALE_AFTER_S = 60  # without a heartbeat, until a lock is taken over
SETTLE_S = 1  # until a lock file that was written is visible to all


class AlreadyRunning(Exception):
    """Another run works on the same folder."""


@contextlib.contextmanager
def exclusive_run(path: str) -> Iterator[None]:
    """Hold the lock whose file is at a path.

    A lock whose process is not known to have ended is watched for `STALE_AFTER_S`. Two runs can hold the lock at once
    only if they stall at the wrong moments; then they do the same work twice, which does no harm.

    Raises:
        AlreadyRunning: Another run shows a heartbeat, or took the lock at the same moment.
    """
    _wait_until_stale(path)
    lock: dict[str, Any] = {"run": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "beats": 0}

    def is_ours() -> bool:
        return (_read_lock(path) or {}).get("run") == lock["run"]

    def beat() -> None:
        with contextlib.suppress(OSError):  # the next heartbeat may succeed
            if is_ours():  # else another run took it for stale and holds it now
                lock["beats"] += 1
                storage.write_file(path, json.dumps(lock).encode())

    storage.write_file(path, json.dumps(lock).encode())
    time.sleep(SETTLE_S)
    if _read_lock(path) != lock:
        raise AlreadyRunning
    try:
        with repeat_every(HEARTBEAT_S, beat):
            yield
    finally:
        with contextlib.suppress(OSError):
            if is_ours():
                storage.delete_file(path)


def _wait_until_stale(path: str) -> None:
    """Return once there is no lock, or only a stale one. Raises AlreadyRunning for one that changes."""
    first = lock = _read_lock(path)
    deadline = time.monotonic() + STALE_AFTER_S
    while lock and not _has_ended(lock) and time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        lock = _read_lock(path)
        if lock and lock != first:
            raise AlreadyRunning


def _read_lock(path: str) -> dict[str, Any] | None:
    try:
        return json.loads(storage.read_file(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _has_ended(lock: dict[str, Any]) -> bool:
    """Tell whether the process that holds the lock is known to have ended: on this machine, by its id."""
    is_here = lock.get("host") == socket.gethostname() and os.path.exists("/proc/self")
    return is_here and not os.path.exists(f"/proc/{lock.get('pid')}")
