"""Join the Ray cluster of a job: the one it was submitted to, or one started here."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import ray

from sentiment_core.runtime import cluster, preflight
from sentiment_core.runtime.cluster import DeviceChoice

LONGEST_TEMPORARY_FOLDER = 30  # characters: Ray adds up to 76 for a session and a socket
_HAS_SCHEDULER = hasattr(os, "sched_setscheduler")  # Linux


def connect() -> None:
    """Join the cluster of RAY_ADDRESS or the one running here, else start one here.

    Ray sets RAY_ADDRESS for submitted jobs. Raises `UserError` for a cluster that cannot be reached.
    """
    if ray.is_initialized():
        return
    preflight.check_reachable()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _hold_back_stderr(), _in_background():
            # the workers' lines would bury what the job prints; their errors come to the driver all the same
            ray.init(
                logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False, **_resources_to_start_with()
            )
    except SystemExit:  # what Ray makes of a SIGTERM while it starts
        raise KeyboardInterrupt(signal.SIGTERM) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray put a handler of its own there


def _resources_to_start_with() -> dict[str, Any]:
    """Return options for a Ray that is started here; none where one runs already, which has its own.

    Ray counts all CPUs of the machine, also those that taskset or Slurm keep from this process; in a container with
    less than one it counts none. It also counts GPUs that torch may not be able to use. Its sockets lie in the
    temporary folder, and their paths may have 107 bytes.
    """
    if os.environ.get("RAY_ADDRESS") or ray._private.utils.read_ray_address():
        return {}
    options: dict[str, Any] = {}
    counted = int(ray._private.utils.get_num_cpus())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else counted
    if not 0 < counted <= usable:
        options["num_cpus"] = max(1, min(counted, usable))
    if ray._private.accelerators.NvidiaGPUAcceleratorManager.get_current_node_num_accelerators():
        import torch  # seconds, which machines without GPUs need not spend

        options["num_gpus"] = torch.cuda.device_count()
    if len(tempfile.gettempdir()) > LONGEST_TEMPORARY_FOLDER and "RAY_TMPDIR" not in os.environ:
        options["_temp_dir"] = "/tmp/ray"
    return options


def connect_for(workers: int, folder: str, device: DeviceChoice) -> None:
    """Connect to a cluster whose workers can write to `folder`.

    Raises `UserError` where it cannot have so many workers, or one does not see the folder.
    """
    connect()
    preflight.check_workers(workers, cluster.device_kind(device))
    preflight.check_writable(folder)
    preflight.check_shared(folder, "--out", writable=True)


@contextlib.contextmanager
def _hold_back_stderr() -> Iterator[None]:
    """Hold back stderr while Ray starts; show it after all if that fails.

    Ray's C++ side writes there.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def _in_background() -> Iterator[None]:
    """Start processes in Linux's SCHED_BATCH: they do not interrupt what computes.

    Each of Ray's processes wakes a hundred times a second to look around, and all threads of a model wait for the one
    that was interrupted.
    """
    if not _HAS_SCHEDULER or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        leave_background()


def leave_background() -> None:
    """Put this thread, and those it starts, back in front of Ray's own processes."""
    if _HAS_SCHEDULER and os.sched_getscheduler(0) == os.SCHED_BATCH:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
