"""A task's table: values come back as they were put in."""

import numpy as np
import pytest

from sentiment_core.data.shards import Unit
from sentiment_core.scoring.task_table import CLASSIFY, FINISH, READ, TaskTable
from sentiment_core.text.token_lists import TokenLists

UNITS = [Unit(f"{name}.parquet", 0, rows, rows, 1, 1, 1) for name, rows in (("a", 2), ("b", 3), ("c", 1))]


@pytest.fixture
def task() -> TaskTable:
    """A task whose second unit failed, so that it has the rows of the first and the third."""
    lists = TokenLists(np.array([1, 2, 3, 4], np.int32), np.array([0, 3, 4, 4]))
    status = np.array([0, 3, 0], np.int8)
    task = TaskTable.build(UNITS).replace(errors=["", "broken", ""], lost=False, counts=["{}", "{}", "{}"])
    return task.replace("", status=status, lists=lists, inverse=[0, 2, 1])


def test_values_come_back(task):
    assert task.units == UNITS
    assert (task.errors, task.lost, task.counts) == (["", "broken", ""], False, ["{}", "{}", "{}"])
    assert task.status("").tolist() == [0, 3, 0]
    assert task.tokens("").lists.ids.tolist() == [1, 2, 3, 4]
    assert task.tokens("").lengths.tolist() == [3, 0, 1]
    assert task.table.num_rows == 1


def test_columns_are_replaced_and_dropped(task):
    probabilities = np.array([[0.25, 0.75], [np.nan, np.nan], [1, 0]], np.float32)
    lengths = task.tokens("").lengths
    later = task.replace(lost=True)
    later = later.replace("", lists=None, inverse=None, lengths=lengths, probabilities=probabilities)
    assert not {"lists of ", "inverse of "} & set(later.table.column_names)
    assert {"lists of ", "inverse of "} <= set(task.table.column_names)
    assert later.lost
    assert not task.lost
    assert later.lengths("").tolist() == [3, 0, 1]
    np.testing.assert_array_equal(later.probabilities("", 2), probabilities)


def test_rows_belong_to_the_units_without_an_error(task):
    assert [(i, rows.tolist()) for i, rows in task.rows_of_units()] == [(0, [0, 1]), (2, [2])]


def test_seconds_are_noted_by_stage(task):
    later = task.add_seconds(READ, 0.0).add_seconds(CLASSIFY, 0.0)
    assert later.seconds[READ] > 0
    assert later.seconds[CLASSIFY] > 0
    assert later.seconds[FINISH] == 0


def test_a_task_without_rows_has_a_table_too():
    nothing = TokenLists(np.zeros(0, np.int32), np.zeros(1, np.int64))
    task = TaskTable.build(UNITS[:1]).replace(errors=["broken"], lost=True)
    task = task.replace(
        "",
        status=np.zeros(0, np.int8),
        lists=nothing,
        inverse=[],
        probabilities=np.zeros((0, 2), np.float32),
    )
    assert (len(task.status("")), len(task.tokens("").inverse), task.probabilities("", 2).shape) == (0, 0, (0, 2))
    assert list(task.rows_of_units()) == []
