"""The lock of a folder."""

import json
import os
import time

import pytest

from sentiment_core.nightly import lock


@pytest.mark.slow
def test_one_run_at_a_time_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(lock, "STALE_AFTER_S", 3)
    monkeypatch.setattr(lock, "SETTLE_S", 0.1)
    lock_file = tmp_path / "_nights" / "_running.json"
    path = str(lock_file)
    with lock.exclusive_run(path):
        with pytest.raises(lock.AlreadyRunning), lock.exclusive_run(path):
            pass
        assert lock_file.exists()
    assert not lock_file.exists()
    for left_behind in ({"host": "elsewhere", "pid": 1}, {"host": os.uname().nodename, "pid": 2**22 + 1}):
        lock_file.write_text(json.dumps(left_behind | {"run": "x", "beats": 3}))
        started = time.monotonic()
        with lock.exclusive_run(path):
            assert json.loads(lock_file.read_text())["run"] != "x"
        waited = time.monotonic() - started
        assert waited > 3 if left_behind["host"] == "elsewhere" else waited < 2
