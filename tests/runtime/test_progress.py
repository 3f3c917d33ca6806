"""Progress in a log, on a terminal, and when nothing moves."""

import sys
import time
from types import SimpleNamespace

import pytest

from sentiment_core.runtime import progress
from sentiment_core.runtime.progress import Progress, repeat_every


@pytest.fixture(autouse=True)
def watched_closely(monkeypatch):
    monkeypatch.setattr(progress, "WATCH_EVERY_S", 0.01)


def wait_for(text: str, capsys) -> str:
    """Return what stderr holds once `text` is in it."""
    err = ""
    for _ in range(500):
        err += capsys.readouterr().err
        if text in err:
            return err
        time.sleep(0.01)
    raise AssertionError(f"{text!r} did not come: {err!r}")


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY_S", 0.05)
    with Progress("score", 2_000, "rows", lambda: "workers") as bar:
        bar.add(1_000)
        line = wait_for("1,000 of 2,000 rows", capsys)
        assert "rows/s, 0:00 left" in line
        bar.add(1_000)
    assert "score: 2,000 of 2,000 rows in 0:0" in capsys.readouterr().err


def test_a_log_gets_its_first_line_soon_after_the_first_progress(capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_LINE_S", 0.05)
    with Progress("train", 2_000, "rows", lambda: "workers") as bar:
        bar.add(500)
        wait_for("train: 500 of 2,000 rows", capsys)
        time.sleep(0.1)
        assert capsys.readouterr().err == ""  # the next one after `LOG_EVERY_S`


def test_the_time_left_does_not_count_the_start_of_the_workers(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    clock = SimpleNamespace(now=100.0)
    bar = Progress("train", 1_000, "rows", lambda: "workers")
    clock.now += 20  # workers start
    bar.set(100)
    clock.now += 10
    bar.set(200)
    assert bar._line() == "train: 200 of 1,000 rows in 0:30, 6.7 rows/s, 1:20 left"


def test_a_failed_run_does_not_end_with_a_line(capsys):
    with pytest.raises(OSError, match="disk"), Progress("score", 10, "rows", lambda: "workers"):
        raise OSError("disk")
    assert capsys.readouterr().err == ""


def test_a_stalled_run_says_what_it_waits_for(capsys, monkeypatch):
    monkeypatch.setattr(progress, "STALLED_AFTER_S", 0.05)
    with Progress("train", 10, "rows", lambda: "its workers; free on 1 nodes: 0 of 2 CPUs"):
        err = wait_for("no progress", capsys)
    assert "train: no progress for 0:00; waiting for its workers; free on 1 nodes: 0 of 2 CPUs" in err


def test_work_of_an_earlier_run_does_not_count_for_the_speed(capsys, monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    clock = SimpleNamespace(now=100.0)
    bar = Progress("train", 1_000, "rows", lambda: "workers")
    bar.resume_at(600)
    clock.now += 10
    bar.add(100)
    assert bar._line() == "train: 700 of 1,000 rows in 0:10, 10.0 rows/s, 0:30 left"


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("score", 10, "rows", lambda: "workers") as bar:
        bar.add(10)
        bar.say("failed: a.parquet")
    err = capsys.readouterr().err
    assert "score: 100%" in err
    assert "failed: a.parquet\n" in err


def test_a_notebook_is_recognized_by_its_kernel(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not progress.in_notebook()
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert progress.in_notebook()
    shell.config = {}
    assert not progress.in_notebook()


def test_an_action_is_repeated_until_the_block_ends():
    calls: list[int] = []
    with repeat_every(0.01, lambda: calls.append(1)):
        time.sleep(0.2)
    count = len(calls)
    assert count >= 2
    time.sleep(0.05)
    assert len(calls) == count


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3_600, "1:00:00"), (86_399.6, "24:00:00")])
def test_a_duration_is_written_in_minutes_or_hours(seconds, text):
    assert progress._duration(seconds) == text
