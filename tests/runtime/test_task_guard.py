"""Tasks whose process dies, hangs or takes too much memory, on real Ray."""

import os
import time
from pathlib import Path

import pytest
import ray

from sentiment_core.runtime import task_guard
from sentiment_core.runtime.task_guard import MAX_ATTEMPTS, TaskGuard, limit_memory


@ray.remote(max_retries=-1)
def work(guard: TaskGuard, log: Path, deaths: int, seconds: float) -> int:
    """Die in the first `deaths` attempts, else sleep; return the number of attempts."""
    with guard(("work", str(log))):
        with log.open("a") as file:
            file.write("begun\n")
        attempts = len(log.read_text().splitlines())
        if attempts <= deaths:
            os._exit(1)
        time.sleep(seconds)
    return attempts


@pytest.fixture(scope="module")
def guard(ray_here) -> TaskGuard:
    return TaskGuard.start(limit_s=1.0)


def test_a_task_whose_process_dies_is_tried_again(guard, tmp_path):
    assert ray.get(work.remote(guard, tmp_path / "log", MAX_ATTEMPTS - 1, 0)) == MAX_ATTEMPTS


@pytest.mark.parametrize(("deaths", "seconds"), [(99, 0), (0, 600)])
def test_a_task_that_always_dies_or_hangs_is_given_up(guard, tmp_path, deaths, seconds):
    with pytest.raises(ray.exceptions.RayTaskError, match=f"died or hung {MAX_ATTEMPTS} times"):
        ray.get(work.remote(guard, tmp_path / "log", deaths, seconds), timeout=120)
    assert len((tmp_path / "log").read_text().splitlines()) == MAX_ATTEMPTS


def test_a_finished_task_does_not_count_against_later_runs(guard, tmp_path):
    for _ in range(MAX_ATTEMPTS + 2):
        ray.get(work.remote(guard, tmp_path / "log", 0, 0))


@pytest.mark.slow
@pytest.mark.skipif(not task_guard.MEMORY_IN_USE.exists(), reason="only Linux bounds memory")
def test_work_that_takes_too_much_memory_fails_and_its_process_goes_on(monkeypatch):
    monkeypatch.setattr(task_guard, "MEMORY_LIMIT_BYTES", 1 << 30)
    with pytest.raises(MemoryError, match="more than 1 GB"), limit_memory():
        bytearray(2 << 30)
    with limit_memory():
        bytearray(1 << 20)
    assert len(bytearray(2 << 30)) == 2 << 30
