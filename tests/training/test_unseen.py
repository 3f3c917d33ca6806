"""Evaluation rows that a model has seen promise nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.model import bundle, encoder
from sentiment_core.model.known_texts import read_training_texts
from sentiment_core.model.records import TrainingRows
from sentiment_core.training.unseen import find_unseen
from tests.conftest import sentences


def rows(*texts: str) -> LabelledTexts:
    return LabelledTexts(list(texts), np.zeros(len(texts), int), ["no", "yes"])


def test_rows_of_the_training_part_are_seen(tiny_encoder):
    start = encoder.fetch(tiny_encoder)
    noted, unseen = find_unseen(start, rows("good", "dull"), rows("new", "good ", "also new"))
    assert unseen.tolist() == [True, False, True]
    assert noted.origin.remarks == [
        "1 of 3 evaluation rows have texts that this model was trained or evaluated on: its figures may look better "
        "than they are, and these rows promise no accuracy"
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
        assert remark.startswith(f"1 of 2 evaluation rows have texts that this model, or --model {first} before, was ")
    else:
        assert remark == (
            f"--model {first} is a bundle, and its training data {place} is not at hand: evaluation rows may be among "
            "it, so they promise no accuracy"
        )


def test_what_a_bundle_was_trained_further_from_counts(tiny_bundle, tmp_path):
    """The last of three trainings; the first data cannot be reached, as in a store without credentials."""
    paths = [tmp_path / name for name in ("first", "second")]
    data = [f"s3://nowhere.example/{tmp_path.name}/*.parquet", str(tmp_path / "second.parquet")]
    pq.write_table(sentences(20, seed=4), data[1])
    for path, place, encoder_name in zip(paths, data, ("encoder", str(paths[0])), strict=True):
        shutil.copytree(tiny_bundle, path)
        card = json.loads((path / bundle.CARD).read_text())
        training = {"data": {"place": place, "rows": 20}, "encoder": {"name": encoder_name}}
        (path / bundle.CARD).write_text(json.dumps(card | {"training": training}))
    texts, reasons = read_training_texts(bundle.read_info(str(paths[1])))
    assert len(texts) == len(set(sentences(20, seed=4)["text"].to_pylist()))
    assert len(reasons) == 1
    assert reasons[0].startswith(f"of {paths[0]}, which it started from: its training data cannot be read (")


def test_a_bundle_that_was_moved_to_where_it_started_from_is_read_once(tiny_bundle, tmp_path):
    place = tmp_path / "data.parquet"
    pq.write_table(sentences(20, seed=5), place)
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    card = json.loads((path / bundle.CARD).read_text())
    parts = {"data": {"place": str(tmp_path / "other"), "rows": 9}, "eval_data": {"place": str(place), "rows": 20}}
    (path / bundle.CARD).write_text(json.dumps(card | {"training": parts | {"encoder": {"name": str(path)}}}))
    texts, reasons = read_training_texts(bundle.read_info(str(path)), with_evaluation=False)
    assert (texts, len(reasons)) == (set(), 1)  # its evaluation rows are not those of another training
    (path / bundle.CARD).write_text(json.dumps(card | {"training": {"encoder": {"name": str(path)}}}))
    adopted = bundle.read_info(str(path))
    further = replace(adopted, training=replace(adopted.training, data=TrainingRows(place=str(place))))
    assert read_training_texts(further)[1] == []  # nothing is noted of the one that it started from
    (path / bundle.CARD).write_text("{}")
    assert "which it started from, cannot be read (" in read_training_texts(further)[1][0]
