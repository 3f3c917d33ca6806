"""Kill a training, and go on.

make chaos MINUTES=10
"""

import random
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from sentiment_core.errors import UserError
from sentiment_core.training.job import train
from sentiment_core.training.resume import SNAPSHOT
from sentiment_core.training.settings import TrainSettings

REPO = Path(__file__).resolve().parents[2]


def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(ray_here, tiny_encoder, labelled, tmp_path):
    """The whole job twice, then a worker, each at a random moment after a new checkpoint. Dropout included."""
    flags = {"data": labelled, "model": tiny_encoder, "lr": 1e-4, "batch_size": 8, "ema_decay": 0.9}
    # long enough that even on a fast machine three kills come before the end
    flags |= {"epochs": 10, "patience": 10, "data_pruning": 0.5}
    calm = train(TrainSettings(**flags, out=str(tmp_path / "calm")))
    flags |= {"out": str(tmp_path / "killed"), "checkpoint_minutes": 0.005}
    command = [sys.executable, str(REPO / "jobs" / "train.py")]
    command += [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))]
    work = tmp_path / "_training-killed"
    chance = random.Random(int(time.time()))

    def checkpoints() -> set[Path]:
        return set(work.glob("run/checkpoint_*/state-0.pt"))

    def wait_for_checkpoint(known: set[Path], job: psutil.Popen | None = None) -> None:
        """One besides those known, and a moment more."""
        stop = time.monotonic() + 120
        while not checkpoints() - known or not (work / "run" / SNAPSHOT).exists():
            assert time.monotonic() < stop
            assert job is None or job.poll() is None
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.7))

    for turn in range(2):
        known = checkpoints()  # all that the killed one left: what is new is this turn's
        with open(tmp_path / f"said{turn}", "w") as said:
            job = psutil.Popen(command, stdout=said, stderr=said)
            wait_for_checkpoint(known, job)
            for process in (*job.children(recursive=True), job):
                process.kill()
            assert job.wait() == -signal.SIGKILL  # it was not done
    with pytest.raises(UserError, match=r"checkpoint made with other settings \(lr: 0.0001 there, 0.1 now\)"):
        train(TrainSettings(**flags | {"lr": 0.1}))

    def kill_worker() -> None:
        wait_for_checkpoint(known)
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        killed.extend(p.pid for p in workers)
        for process in workers:
            process.kill()

    killed: list[int] = []
    known = checkpoints()
    killer = threading.Thread(target=kill_worker)
    killer.start()
    again = train(TrainSettings(**flags))
    killer.join()
    assert len(killed) == 1
    assert [record.losses for record in again.log] == [record.losses for record in calm.log]
    assert again.info.metrics == calm.info.metrics
    assert not work.exists()
