"""Values of partition folders are read and compared as what they are."""

import pytest

from sentiment_core.data import partitions
from sentiment_core.errors import UserError


def test_values_are_decoded():
    path = "city=S%C3%A3o%20Paulo/time=12%3A00/empty=/x=__HIVE_DEFAULT_PARTITION__/y=a=b/n=1.parquet"
    assert partitions.partition_values(path) == {
        "city": "São Paulo", "time": "12:00", "empty": "", "x": None, "y": "a=b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "other"),
    [
        ("2026-11-30", "2026-11-30"),
        ("2026-1-5", "2026-01-05"),
        ("20260105", "2026-1-5"),
        ("2026-01-05 00:00:00", "20260105"),
        ("2026-01-05T01:00:00+01:00", "2026-01-05"),
        ("7", "07"),
        ("1.0", "1"),
        ("week 3", "week 3"),
    ],
)
def test_the_same_value_may_be_written_in_several_ways(value, other):
    assert partitions.is_same(value, other)
    assert partitions.is_from_on(value, other, "p")


@pytest.mark.parametrize(
    ("earlier", "later"),
    [("9", "10"), ("2026-2-1", "2026-10-01"), ("20260201", "2026-02-02"), ("-3", "2"), ("2026-09", "2026-10")],
)
def test_order_is_that_of_dates_and_numbers(earlier, later):
    assert partitions.is_from_on(later, earlier, "p")
    assert not partitions.is_from_on(earlier, later, "p")
    assert not partitions.is_same(earlier, later)


def test_long_numbers_differ_in_their_last_digit():
    assert not partitions.is_same("20261130123000123", "20261130123000124")


@pytest.mark.parametrize(("value", "least"), [("old", "2026-11-01"), ("2026-13-01", "2026-11-01"), ("x", "3")])
def test_a_value_that_cannot_be_compared_is_refused(value, least):
    with pytest.raises(
        UserError, match=f"of d={value}/a.parquet has the value '{value}'; expected one to compare with"
    ):
        partitions.is_from_on(value, least, f"d={value}/a.parquet")
    assert not partitions.is_same(value, least)
