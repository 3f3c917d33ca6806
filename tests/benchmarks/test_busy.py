"""The simulation of a busy GPU runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.journey
@pytest.mark.ray
def test_the_busy_share_is_printed():
    command = [sys.executable, str(REPO / "benchmarks" / "busy.py"), "--tasks", "20", "--task-ms", "20"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(REPO)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^busy 0\.\d+ with 20 ms a task; pause: median [\d.]+ ms", done.stdout, re.MULTILINE)
