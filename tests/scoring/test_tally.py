"""What the records of a run add up to, and when the run stops."""

import json

import numpy as np
import pytest

from sentiment_core.data.shards import Unit
from sentiment_core.model.objective import SingleLabel
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.scoring.tally import FIRST_FAILURES, LATER_FAILURES, LOST_FAILURES, Tally
from sentiment_core.scoring.task_table import STAGES, ModelRecord, TaskRecord, UnitRecord

LABELS = ["no", "yes"]
MARGIN = "torch float32 measured 1.2 times as fast as sleep"
ROWS = ScoredRows(SingleLabel(), LABELS, np.zeros(2, np.int8), np.full((2, 2), 0.5, np.float32), np.array([3, 4]))
COUNTS = json.dumps(PassCounts.zero({"": LABELS}).add_unit({"": ROWS}).to_json())


def unit(i: int) -> Unit:
    return Unit(f"{i}.parquet", 0, 2, 2, 1, 1, 1)


def done(i: int) -> UnitRecord:
    return UnitRecord(unit(i).output, unit(i).source, 2, "", COUNTS)


def failed(i: int, error: str) -> UnitRecord:
    return UnitRecord(unit(i).output, unit(i).source, 2, error, "")


def task(*units: UnitRecord, lost: bool = False) -> TaskRecord:
    return TaskRecord(
        list(units),
        lost,
        dict.fromkeys(STAGES, 1.0),
        [ModelRecord("", 7, 1, "torch", ["chip", "torch float32", MARGIN])],
    )


@pytest.fixture
def tally() -> Tally:
    return Tally(PassCounts.zero({"": LABELS}))


def test_a_record_survives_its_table():
    record = task(done(0), failed(1, "broken"))
    assert TaskRecord.from_table(record.to_table()) == record


def test_done_failed_and_lost_units_are_told_apart(tally):
    tally.add(task(done(0), failed(1, "broken")))
    tally.add(task(failed(2, "died"), lost=True))
    assert (tally.totals.units, tally.totals.rows, tally.totals.tokens) == (1, 2, 7)
    assert [shard.source for shard in tally.failed] == ["1.parquet"]
    assert tally.unsettled([unit(i) for i in range(4)]) == [unit(2), unit(3)]
    assert not tally.stopped


def test_seconds_and_tokens_of_a_task_count_once(tally):
    tally.add(task(done(0), done(1)))
    assert (tally.models[""].tokens, tally.models[""].padding_tokens) == (7, 1)
    assert tally.computed_by == ["torch", MARGIN]
    assert set(tally.busy_seconds.values()) == {1.0}


def test_failures_in_a_row_stop_the_run(tally):
    for i in range(FIRST_FAILURES):
        assert not tally.stopped
        tally.add(task(failed(i, "full")))
    assert f"the last {FIRST_FAILURES} units of {FIRST_FAILURES} shards all failed" in tally.stopped
    assert "the latest error: full" in tally.stopped
    assert tally.unsettled([unit(99)]) == []


@pytest.mark.parametrize("scored_before", [True, False])
def test_a_run_that_succeeded_once_may_fail_more_often(scored_before):
    tally = Tally(PassCounts.zero({"": LABELS}), scored_before)
    if not scored_before:
        tally.add(task(done(0)))
    for i in range(1, LATER_FAILURES):
        tally.add(task(failed(i, "full")))
    assert not tally.stopped
    tally.add(task(failed(LATER_FAILURES, "full")))
    assert tally.stopped


def test_a_success_restarts_the_count(tally):
    for i in range(LATER_FAILURES - 1):
        tally.add(task(failed(2 * i, "full")))
        tally.add(task(done(2 * i + 1)))
    assert not tally.stopped
    assert len(tally.failed) == LATER_FAILURES - 1


def test_a_few_lost_tasks_stop_a_run(tally):
    for i in range(FIRST_FAILURES // LOST_FAILURES):
        assert not tally.stopped
        tally.add(task(failed(i, "it hung"), failed(100 + i, "it hung"), lost=True))
    assert "the last 5 tasks all failed; the latest error: it hung" in tally.stopped


def test_units_of_a_few_shards_stop_a_run_too(tally):
    """A disk that is full when a corpus of a few large shards is half done."""
    tally.add(task(done(0)))
    for i in range(LATER_FAILURES):
        assert not tally.stopped
        tally.add(task(failed(1 + i % 7, "full")))
    assert f"{LATER_FAILURES} units of 7 shards" in tally.stopped


def test_a_model_that_no_worker_can_load_stops_a_run(tally):
    tally.broken = "no worker could load the model"
    assert tally.stopped == tally.broken
    assert tally.unsettled([unit(0)]) == []
