"""What the records of a run add up to, and when it stops."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from sentiment_core.data.shards import Unit
from sentiment_core.scoring import outputs
from sentiment_core.scoring.outputs import Counts
from sentiment_core.scoring.stages import STAGES
from sentiment_core.scoring.stream import FIRST_FAILURES, LATER_FAILURES, LOST_FAILURES, Tally

LABELS = ["no", "yes"]


def unit(i: int) -> Unit:
    return Unit(f"{i}.parquet", 0, 2, 2, 1, 1, 1)


def record(i: int, error: str = "", lost: bool = False) -> dict:
    counts = outputs.count(np.zeros(2, np.int8), np.full((2, 2), 0.5, np.float32), LABELS, np.array([3, 4]), 0, [])
    return {
        "output": unit(i).output, "source": unit(i).source, "rows": 2, "error": error, "lost": lost,
        "counts": "" if error else json.dumps(asdict(counts)), "seconds": dict.fromkeys(STAGES, 1.0), "tokens": 7,
        "padding_tokens": 1, "backend": "torch",
    }  # fmt: skip


@pytest.fixture
def tally() -> Tally:
    return Tally(Counts.none(LABELS))


def test_units_done_failed_and_lost_are_told_apart(tally):
    tally.add([record(0), record(1, "broken"), record(2, "died", lost=True)])
    assert (tally.totals.units, tally.totals.rows, tally.totals.tokens) == (1, 2, 7)
    assert [shard.source for shard in tally.failed] == ["1.parquet"]
    assert tally.lost([unit(i) for i in range(4)]) == [unit(2), unit(3)]
    assert not tally.stopped


def test_failures_in_a_row_stop_the_run(tally):
    for i in range(FIRST_FAILURES):
        assert not tally.stopped
        tally.add([record(i, "full")])
    assert f"the last {FIRST_FAILURES} units of {FIRST_FAILURES} shards all failed, at last with: full" in tally.stopped
    assert tally.lost([unit(99)]) == []


@pytest.mark.parametrize("before", [True, False])
def test_what_succeeded_once_is_given_more_time(before):
    tally = Tally(Counts.none(LABELS), some_done=before)
    if not before:
        tally.add([record(0)])
    for i in range(1, LATER_FAILURES):
        tally.add([record(i, "full")])
    assert not tally.stopped
    tally.add([record(LATER_FAILURES, "full")])
    assert tally.stopped


def test_a_success_starts_the_count_anew(tally):
    for i in range(LATER_FAILURES - 1):
        tally.add([record(2 * i, "full")])
        tally.add([record(2 * i + 1)])
    assert not tally.stopped
    assert len(tally.failed) == LATER_FAILURES - 1


def test_few_lost_tasks_stop_a_run(tally):
    for i in range(FIRST_FAILURES // LOST_FAILURES):
        assert not tally.stopped
        tally.add([record(i, "it hung", lost=True), record(100 + i, "it hung", lost=True)])
    assert "the last 5 tasks all failed, at last with: it hung" in tally.stopped


def test_units_of_few_shards_stop_a_run_too(tally):
    """A disk that is full when a corpus of some large shards is half done."""
    tally.add([record(0)])
    for i in range(LATER_FAILURES):
        assert not tally.stopped
        tally.add([record(1 + i % 7, "full")])
    assert f"{LATER_FAILURES} units of 7 shards" in tally.stopped


def test_what_no_worker_can_load_stops_a_run(tally):
    tally.broken = "no worker could load the model"
    assert tally.stopped == tally.broken
    assert tally.lost([unit(0)]) == []
