"""CPU threads of this process: how many may compute, and pools of threads that compute with torch."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

CGROUPS = Path("/sys/fs/cgroup")  # of a container, on Linux


def count_usable() -> int:
    """Count the threads to compute with: torch's, and no more than the CPUs that the container may use.

    torch counts the cores that the process may run on. `docker run --cpus=2` leaves all of them, and stops the process
    for a part of each tenth of a second.
    """
    return max(1, math.ceil(min(torch.get_num_threads(), _cpu_quota())))


def _cpu_quota() -> float:
    """Return the CPUs that the container may use at a time; infinite without a limit.

    Reads `cpu.max` of cgroup v2, or the two files of v1 (https://docs.kernel.org/admin-guide/cgroup-v2.html).
    """
    try:
        limit, period = (CGROUPS / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit, period = ((CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        quota = int(limit) / int(period)
    except ValueError:  # max
        return math.inf
    return quota if quota > 0 else math.inf  # v1 says -1


def start_pool(name: str, threads: int, torch_threads: int) -> ThreadPoolExecutor:
    """Start a pool whose threads each compute with so many threads of torch.

    torch's other threads, and those that come later, keep their number. `torch.set_num_threads` also sets what a thread
    starts with that uses torch for the first time (ATen/ParallelOpenMP.cpp), so it is set back once all have started.
    """
    before = torch.get_num_threads()
    all_started = threading.Barrier(threads)

    def start() -> None:
        torch.set_num_threads(torch_threads)
        torch.get_num_threads()  # the first use of torch in this thread, which takes that number
        all_started.wait()

    pool = ThreadPoolExecutor(threads, name)
    try:
        for future in [pool.submit(start) for _ in range(threads)]:
            future.result()
    except BaseException:  # the system allows no further thread
        all_started.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(before)
    return pool
