"""Batches of token lists."""

import functools
import itertools
import operator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sentiment_core.text import batching
from sentiment_core.text.token_lists import TokenLists

lengths = st.lists(st.integers(0, 60), max_size=200).map(np.array)


@given(lengths=lengths, budget=st.integers(1, 500), step=st.sampled_from([None, 1, 16]))
def test_batches_by_tokens_hold_every_row_with_tokens_once(lengths, budget, step):
    batches = batching.batches_by_tokens(lengths.astype(np.int64), budget, step)
    rows = np.concatenate([np.zeros(0, int), *batches])
    assert sorted(rows) == np.flatnonzero(lengths).tolist()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
        assert not step or len(set(lengths[batch] // step)) == 1


@given(lengths=lengths, budget=st.integers(1, 500))
def test_packs_by_tokens_hold_every_row_with_tokens_once(lengths, budget):
    packs = batching.packs_by_tokens(lengths.astype(np.int64), budget)
    rows = np.concatenate([np.zeros(0, int), *packs])
    assert sorted(rows) == np.flatnonzero(lengths).tolist()
    for pack, following in itertools.pairwise([*packs, None]):
        assert len(pack) == 1 or lengths[pack].sum() <= budget
        assert following is None or lengths[pack].sum() + lengths[following[0]] > budget


@given(lengths=lengths, batch_size=st.integers(1, 40), seed=st.integers(0, 9))
def test_batches_by_length_hold_every_row_once(lengths, batch_size, seed):
    batches = batching.batches_by_length(lengths, batch_size, np.random.default_rng(seed))
    assert sorted(np.concatenate([np.zeros(0, int), *batches])) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in batches)


def test_batches_by_length_pad_little():
    lengths = np.random.default_rng(0).integers(5, 60, 3000)
    batches = batching.batches_by_length(lengths, 32, np.random.default_rng(0))
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.05 * lengths.sum()


@settings(max_examples=50)
@given(lists=st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=20), data=st.data())
def test_pad_gives_the_rows_asked_for(lists, data):
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])])
    ragged = TokenLists(np.array(functools.reduce(operator.iadd, lists, []), np.int32), offsets)
    rows = np.array(data.draw(st.lists(st.integers(0, len(lists) - 1), min_size=1)))
    ids, mask = batching.pad(ragged, rows, 0)
    for i, row in enumerate(rows):
        assert ids[i][mask[i] == 1].tolist() == lists[row]
        assert not ids[i][mask[i] == 0].any()
