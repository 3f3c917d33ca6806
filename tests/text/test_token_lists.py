"""Token lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sentiment_core.text.token_lists import DistinctLists, TokenLists


def to_tokens(lists: list[list[int]]) -> TokenLists:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    return TokenLists(np.array(sum(lists, []), np.int32), offsets)  # noqa: RUF017


def to_lists(tokens: TokenLists) -> list[list[int]]:
    return [row.tolist() for row in np.split(tokens.ids, tokens.offsets[1:-1])] if len(tokens) else []


@given(lists=st.lists(st.lists(st.integers(1, 2), max_size=3), max_size=20))
def test_each_distinct_list_is_found_once_the_longest_first(lists):
    distinct = DistinctLists.find(to_tokens(lists))
    assert to_lists(distinct.lists.take(distinct.inverse)) == lists
    assert distinct.lengths.tolist() == [len(row) for row in lists]
    in_order_of_appearance = list(dict.fromkeys(map(tuple, lists)))
    assert [tuple(row) for row in to_lists(distinct.lists)] == sorted(in_order_of_appearance, key=len, reverse=True)


@given(lists=st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=9), data=st.data())
def test_rows_are_taken_consecutive_or_not(lists, data):
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(lists) - 1)] * 2)))
    chosen = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=9))
    for rows in (list(range(first, last + 1)), chosen):
        assert to_lists(to_tokens(lists).take(np.array(rows, np.int64))) == [lists[row] for row in rows]
