"""Labelled rows are divided into parts and into folds, each label in proportion and each text in one of them."""

import numpy as np
import pytest

from sentiment_core.data import labelled, splits
from sentiment_core.errors import UserError


def test_a_split_is_seeded_stratified_and_complete():
    labels = np.array([0] * 80 + [1] * 20)
    data = labelled.LabelledTexts([str(i) for i in range(100)], labels, ["a", "b"])
    train, held = splits.hold_out(data, 0.2, seed=1)
    assert sorted(train.texts + held.texts, key=int) == data.texts
    assert np.bincount(held.labels).tolist() == [16, 4]
    assert splits.hold_out(data, 0.2, seed=1)[1].texts == held.texts != splits.hold_out(data, 0.2, seed=2)[1].texts


def test_rows_with_the_same_text_are_in_the_same_part():
    texts = [f"text {i % 40}" for i in range(100)]
    data = labelled.LabelledTexts(texts, np.arange(100) % 2, ["x", "y"])
    train, held = splits.hold_out(data, 0.25, 0)
    assert len(train) + len(held) == 100
    assert not set(train.texts) & set(held.texts)
    assert len(set(held.texts)) == 10


def test_a_split_of_too_few_rows_is_refused():
    data = labelled.LabelledTexts(["a", "b", "c"], np.array([0, 0, 1]), ["x", "y"])
    with pytest.raises(
        UserError, match=r"2 rows of 1 labels with two or more are too few; add rows or give --eval-data"
    ):
        splits.hold_out(data, 0.5, 0)


def test_a_split_of_few_rows_holds_out_one_of_each_label():
    names = ["a", "b", "c", "d"]
    data = labelled.LabelledTexts([f"text {i}" for i in range(16)], np.arange(16) % 4, names)
    train, evaluation = splits.hold_out(data, 0.1, 0)
    assert sorted(evaluation.labels.tolist()) == [0, 1, 2, 3]
    assert np.bincount(train.labels).tolist() == [3, 3, 3, 3]


def test_folds_hold_each_row_once_and_each_label_in_proportion():
    labels = np.array([0] * 60 + [1] * 20 + [2] * 10)
    data = labelled.LabelledTexts([f"text {i}" for i in range(90)], labels, ["a", "b", "c"])
    folds = splits.deal_folds(data, 5, seed=1)
    for fold in range(5):
        assert np.bincount(labels[folds == fold]).tolist() == [12, 4, 2]
    assert (splits.deal_folds(data, 5, seed=1) == folds).all()
    assert (splits.deal_folds(data, 5, seed=2) != folds).any()


def test_folds_keep_equal_texts_together():
    texts = [f"text {i % 20}" for i in range(60)]
    folds = splits.deal_folds(labelled.LabelledTexts(texts, np.arange(60) % 2, ["x", "y"]), 4, seed=0)
    assert set(folds) == {0, 1, 2, 3}
    assert all(len({folds[i], folds[i + 20], folds[i + 40]}) == 1 for i in range(20))


def test_a_label_with_one_text_is_in_no_fold_and_few_texts_make_few_folds():
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    texts = [*map(str, range(6)), "same", "same"]
    folds = splits.deal_folds(labelled.LabelledTexts(texts, labels, ["a", "b", "c"]), 5, seed=0)
    assert folds[6:].tolist() == [-1, -1]
    assert len(set(folds[:3])) == len(set(folds[3:6])) == 3
    assert sorted(np.bincount(folds[:6])) == [1, 1, 1, 1, 2]
    four = labelled.LabelledTexts(list("abcd"), np.array([0, 0, 1, 1]), ["x", "y"])
    assert sorted(splits.deal_folds(four, 5, seed=0)) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"2 rows of 1 labels with two or more are too few; add rows or give"):
        splits.deal_folds(labelled.LabelledTexts(["a", "b", "c"], np.array([0, 0, 1]), ["x", "y"]), 5, seed=0)


def test_folds_of_several_labels_a_row_hold_each_label_in_proportion():
    labels = np.zeros((100, 3), bool)
    labels[:50, 0] = labels[25:75, 1] = labels[90:, 2] = True
    data = labelled.LabelledTexts([f"text {i}" for i in range(100)], labels, ["a", "b", "c"])
    folds = splits.deal_folds(data, 5, seed=0)
    counts = np.array([labels[folds == fold].sum(axis=0) for fold in range(5)])
    assert (counts == [10, 10, 2]).all()


def test_folds_of_texts_with_a_label_of_their_own_are_of_equal_size():
    labels = np.hstack([np.ones((20, 1), bool), np.eye(20, dtype=bool)])
    data = labelled.LabelledTexts([f"text {i}" for i in range(20)], labels, [*"abcdefghijklmnopqrstu"])
    assert np.bincount(splits.deal_folds(data, 5, seed=0)).tolist() == [4] * 5


def test_a_large_evaluation_part_leaves_a_row_of_each_label_to_train_on():
    data = labelled.LabelledTexts([f"text {i}" for i in range(20)], np.array([0] * 18 + [1] * 2), ["many", "few"])
    for seed in range(5):
        train, evaluation = splits.hold_out(data, 0.9, seed)
        assert set(train.labels) == {0, 1}
        assert len(train) + len(evaluation) == 20


def test_labels_that_the_evaluation_part_lacks_are_named():
    names = [f"label {i}" for i in range(5)]
    data = labelled.LabelledTexts([f"text {i}" for i in range(100)], np.array([0] * 94 + [1, 1, 2, 2, 3, 4]), names)
    train, evaluation = splits.hold_out(data, 0.1, 0)
    missing = sorted({0, 1, 2, 3, 4} - set(evaluation.labels.tolist()))
    assert missing[-2:] == [3, 4]
    named = ", ".join(names[i] for i in missing)
    assert train.origin.remarks == [f"trained on but never evaluated, since they have too few texts: {named}"]


def test_texts_that_each_have_a_label_of_their_own_cannot_be_held_out():
    labels = np.concatenate([np.ones((40, 1), bool), np.eye(40, dtype=bool)], axis=1)
    data = labelled.LabelledTexts([f"text {i}" for i in range(40)], labels, [f"label {i}" for i in range(41)])
    with pytest.raises(UserError, match="too few; add rows or give --eval-data"):
        splits.hold_out(data, 0.1, 0)
