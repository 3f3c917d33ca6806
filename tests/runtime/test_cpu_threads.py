"""Count the threads that may compute, and start pools that leave other threads their number."""

import threading
from pathlib import Path

import pytest
import torch

from sentiment_core.runtime import cpu_threads


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 4),
        ({"cpu.max": "max 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({}, 4),
    ],
)
def test_no_more_threads_compute_than_a_container_has_cpus(four_threads, monkeypatch, tmp_path, files, expected):
    for name, content in files.items():
        Path(tmp_path, name).parent.mkdir(exist_ok=True)
        Path(tmp_path, name).write_text(content)
    monkeypatch.setattr(cpu_threads, "CGROUPS", tmp_path)
    assert cpu_threads.count_usable() == expected


def test_a_pool_that_cannot_start_its_threads_leaves_none_waiting(four_threads, monkeypatch):
    start, started = threading.Thread.start, []

    def refuse_the_second(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        cpu_threads.start_pool("test", 3, 1)
    started[0].join(60)
    assert not started[0].is_alive()
    assert torch.get_num_threads() == 4


def test_a_pool_leaves_the_threads_of_others_their_number(four_threads):
    pool = cpu_threads.start_pool("test", 3, 1)
    all_there = threading.Barrier(3)

    def count(_: int) -> int:
        all_there.wait(60)
        return torch.get_num_threads()

    assert list(pool.map(count, range(3))) == [1, 1, 1]
    counted: list[int] = []
    later = threading.Thread(target=lambda: counted.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (counted, torch.get_num_threads()) == ([4], 4)
