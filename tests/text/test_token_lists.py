"""Token lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sentiment_core.text import token_lists
from sentiment_core.text.token_lists import TokenLists


@given(lists=st.lists(st.lists(st.integers(1, 2), max_size=3), max_size=20))
def test_deduplicate_lists_each_distinct_list_once(lists):
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(np.int64)
    first_rows, inverse = token_lists.deduplicate(TokenLists(np.array(sum(lists, []), np.int32), offsets))  # noqa: RUF017
    assert [lists[first_rows[i]] for i in inverse] == lists
    assert len(first_rows) == len({tuple(row) for row in lists})
