"""The lock of a folder."""

import json
import os
import time
from types import SimpleNamespace

import pytest

from sentiment_core.nightly import job, lock
from sentiment_core.nightly.record import Night
from sentiment_core.nightly.settings import NightlySettings
from sentiment_core.training.settings import TrainSettings


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


@pytest.mark.slow
def test_one_night_at_a_time_renews_a_folder_of_models(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(lock, "SETTLE_S", 0.1)
    night = Night("n")
    plan = SimpleNamespace(settings=NightlySettings(model=str(tmp_path), input="i", out="o"))
    with lock.exclusive_run(str(tmp_path / "_renewing.json")):
        job._renew(plan, night, TrainSettings(data="d", model="m", out="o"))
    assert (night.not_renewed, night.alarms) == ("another night is renewing the model", [])
    assert "model: not renewed: another night is renewing the model" in job.describe_night(night)
