"""A Ray that is started here takes what this process may use."""

import os
import subprocess
import sys

import pytest
import ray

from sentiment_core.runtime import connection

START = """
import ray
from sentiment_core.runtime import connection
connection.connect()
print(int(ray.cluster_resources()["CPU"]), int(ray.cluster_resources().get("GPU", 0)))
ray.shutdown()
"""


def start_ray(before: str, **environment: str) -> str:
    """Start Ray in a process of its own; return what it counts."""
    done = subprocess.run(
        [sys.executable, "-c", before + START],
        env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[0]


def test_where_ray_counts_no_cpu_it_starts_with_one(monkeypatch):
    """As in a container that may use half of one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray._private.utils, "read_ray_address", lambda: None)
    monkeypatch.setattr(ray._private.utils, "get_num_cpus", lambda: 0)
    assert connection._resources_to_start_with()["num_cpus"] == 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cpus_are_those_that_the_process_may_use_whatever_the_temporary_folder_is_called(tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    one_cpu = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    assert start_ray(one_cpu, TMPDIR=str(folder)) == "1"
