"""Strata cover every row with text, and what is drawn from them estimates the corpus without bias."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentiment_core.analysis import strata
from sentiment_core.analysis.strata import BINS, allocate, design
from sentiment_core.errors import UserError


def histogram(**rows: int) -> np.ndarray:
    """Return counts by bin; `b150=3` are 3 rows in bin 150."""
    counts = np.zeros(BINS, np.int64)
    for name, number in rows.items():
        counts[int(name[1:])] = number
    return counts


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.floats(0.01, 100)), min_size=1, max_size=30),
    st.integers(1, 5_000),
    st.integers(1, 20),
)
def test_parts_are_within_their_limits_and_sum_to_the_total(parts, total, least):
    most, shares = np.array([size for size, _ in parts]), np.array([share for _, share in parts])
    numbers = allocate(total, shares, least, most)
    assert (numbers <= most).all()
    assert (numbers >= np.minimum(min(least, total // len(parts)), most)).all()
    assert numbers.sum() == min(total, most.sum())


def test_parts_are_in_proportion_where_limits_allow():
    assert allocate(100, np.array([1.0, 3.0, 6.0]), 1, np.array([1_000] * 3)).tolist() == [10, 30, 60]
    assert allocate(100, np.array([1.0, 3.0, 6.0]), 1, np.array([1_000, 1_000, 20])).tolist() == [20, 60, 20]


def test_a_small_corpus_is_drawn_whole():
    cells = {((), 0): histogram(b150=3, b190=4), ((), 1): histogram(b110=2)}
    assert [(stratum.rows, stratum.drawn) for stratum in design(cells, 100)] == [(9, 9)]
    large = {cell: 10 * counts for cell, counts in cells.items()}
    assert sum(stratum.drawn for stratum in design(large, 100)) == 90


def test_labels_and_bands_are_strata_where_rows_suffice():
    cells = {((), label): histogram(**{f"b{i}": 100 for i in range(100, 200)}) for label in (0, 1)}
    found = design(cells, 300)
    assert [(stratum.label, stratum.drawn >= 5) for stratum in found] == [(0, True)] * 4 + [(1, True)] * 4
    assert sum(stratum.drawn for stratum in found) == 300
    bands = [(stratum.first_bin, stratum.stop_bin) for stratum in found[:4]]
    assert bands[0][0] == 0
    assert bands[-1][1] == BINS
    assert all(stop == first for (_, stop), (first, _) in itertools.pairwise(bands))
    least_confident, most_confident = found[0], found[3]
    assert least_confident.drawn / least_confident.rows > 1.5 * most_confident.drawn / most_confident.rows


def test_many_labels_are_not_strata():
    cells = {((), label): histogram(b150=100, b199=100) for label in range(77)}
    assert {stratum.label for stratum in design(cells, 300)} == {None}


def test_small_groups_get_more_than_their_part():
    cells = {(("a",), 0): histogram(b180=10_000), (("b",), 0): histogram(b180=100), (("c",), 0): histogram(b180=4)}
    drawn = {stratum.group: stratum.drawn for stratum in design(cells, 114)}
    assert drawn == {("a",): 100, ("b",): 10, ("c",): 4}


def test_strata_are_named_by_what_differs():
    cells = {(("a", None), 0): histogram(b150=200, b199=500), (("a", None), -1): histogram(b110=50)}
    names = strata.name_strata(design(cells, 60), ("x", "y"), ["no"])
    assert names == [
        "x=a, y=null | no label",
        "x=a, y=null | no | confidence 0 to 0.755",
        "x=a, y=null | no | confidence 0.755 to 1",
    ]
    assert strata.name_strata(design({((), 0): histogram(b150=50)}, 5), (), ["no"]) == ["all"]


def test_different_strata_have_different_names():
    groups = [(("null", "a"), 0), ((None, "a"), 0), (("null (2)", "a"), 0), (("x, y=a", "b"), 0), (("x", "a, y=b"), 0)]
    parts = design({cell: histogram(b150=100) for cell in groups}, 50)
    names = strata.name_strata(parts, ("x", "y"), ["no"])
    assert len(set(names)) == len(parts) == 5
    assert {"x=null, y=a", "x=null, y=a (2)", "x=x, y=a, y=b", "x=x, y=a, y=b (2)"} < set(names)
    labels = {((), -1): histogram(b150=100), ((), 0): histogram(b150=100)}
    assert strata.name_strata(design(labels, 10), (), ["no label"]) == ["no label", "no label (2)"]


def test_names_have_no_white_space_at_their_ends():
    cells = {((value,), 0): histogram(b150=100) for value in ("en", "en ", "a\r\nb")}
    names = strata.name_strata(design(cells, 30), ("lang",), ["no"])
    assert names == ["lang=a b", "lang=en", "lang=en (2)"]


def test_too_many_groups_are_refused():
    cells = [{((str(i),), 0): histogram(b150=1)} for i in range(4)]
    assert len(strata.merge_counts(cells, 4)) == 4
    with pytest.raises(UserError, match="--by gives more than 3 groups"):
        strata.merge_counts(cells, 3)
