"""Skipping what is learned already: which rows, and what the others count. `test_multi_label.py` has two workers."""

import copy

import numpy as np
import pytest
import torch

from sentiment_core.training.data_pruning import DataPruning


def test_what_is_left_out_is_learned_and_counted_by_others():
    rows = np.arange(1000)
    pruning = DataPruning(len(rows), 0.75, 0, torch.device("cpu"))
    assert np.array_equal(pruning.rows, rows)
    losses = torch.linspace(0.1, 1.1, len(rows)) ** 2  # 535 below the mean
    assert torch.equal(pruning.weigh(rows, losses), losses)
    learned = int((losses < losses.mean()).sum())
    estimates, seen = [], []
    for epoch in range(2, 42):
        pruning.choose(epoch)
        kept = pruning.rows
        assert np.isin(rows[learned:], kept).all()
        weighed = pruning.weigh(kept, losses[kept])
        counts = weighed / losses[kept]
        torch.testing.assert_close(counts[kept < learned], 4 * counts[-1].expand(len(kept) - len(rows) + learned))
        estimates.append(float(weighed.mean()))
        seen.append(np.isin(rows[:learned], kept))
    assert np.mean(estimates) == pytest.approx(float(losses.mean()), rel=0.01)
    assert np.mean(seen) == pytest.approx(0.25, abs=0.01)
    assert np.any(seen, axis=0).all()  # others each time
    # what a checkpoint keeps is enough to go on the same; what is learned no more is back
    again = DataPruning(len(rows), 0.75, 0, torch.device("cpu"))
    again.load_state_dict(copy.deepcopy(pruning.state_dict()))
    before = pruning.rows
    for one in (pruning, again):
        one.weigh(one.rows, 2 - losses[one.rows])
        one.choose(99)
    assert torch.equal(again.weights, pruning.weights)
    assert np.isin(before[before < learned], pruning.rows).all()
    assert len(pruning.rows) < len(rows)  # those that were left out before still count as learned
