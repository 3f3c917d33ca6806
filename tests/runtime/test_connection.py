"""A Ray that is started here takes what this process may use."""

import os
import subprocess
import sys

import pytest

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


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_cpus_are_those_that_the_process_may_use_whatever_the_temporary_folder_is_called(tmp_path):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    one_cpu = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n"
    assert start_ray(one_cpu, TMPDIR=str(folder)) == "1"
