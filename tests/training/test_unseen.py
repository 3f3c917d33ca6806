"""Evaluation rows that a model has seen promise nothing."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.model import bundle, encoder
from sentiment_core.training.unseen import find_unseen
from tests.conftest import sentences


def rows(*texts: str) -> LabelledTexts:
    return LabelledTexts(list(texts), np.zeros(len(texts), int), ["no", "yes"])


def test_rows_of_the_training_part_are_seen(tiny_encoder):
    start = encoder.fetch(tiny_encoder)
    noted, unseen = find_unseen(start, rows("good", "dull"), rows("new", "good ", "also new"))
    assert unseen.tolist() == [True, False, True]
    assert noted.origin.remarks == [
        "1 of 3 evaluation rows have texts that the model was trained on: they make its figures look better, and "
        "promise no accuracy"
    ]
    noted, unseen = find_unseen(start, None, rows("good", "dull"))  # of cross-validation
    assert (noted.origin.remarks, unseen.all()) == ([], True)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_bundle_has_seen_the_rows_of_its_first_training(tiny_bundle, tmp_path, is_there):
    place, first = tmp_path / "first.parquet", tmp_path / "bundle"
    table = sentences(20, seed=3)
    if is_there:
        pq.write_table(table, place)
    shutil.copytree(tiny_bundle, first)
    card = json.loads((first / bundle.CARD).read_text())
    (first / bundle.CARD).write_text(json.dumps(card | {"training": {"data": {"place": str(place), "rows": 20}}}))
    noted, unseen = find_unseen(encoder.fetch(str(first)), None, rows(table["text"][0].as_py(), "new"))
    assert unseen.tolist() == [False, is_there]
    (remark,) = noted.origin.remarks
    if is_there:
        assert remark.startswith("1 of 2 evaluation rows have texts that the model was trained on")
    else:
        assert remark == (
            f"--model {first} is a bundle, and its training data {place} is not at hand: evaluation rows may be among "
            "it, so they promise no accuracy"
        )
