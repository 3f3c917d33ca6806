"""Answers of someone are read as they are; texts are learned once, and those of evaluation rows not at all."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.api import Classifier
from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.distillation.comparison import compare
from sentiment_core.distillation.parts import LabelledParts, make_parts, read_labelled
from sentiment_core.distillation.settings import DistillSettings
from sentiment_core.distillation.teachers import open_teacher
from sentiment_core.errors import UserError
from sentiment_core.model import source
from sentiment_core.training.job import prepare
from sentiment_core.training.settings import TrainSettings
from tests.conftest import sentences

TEXTS = ["one", "two", "three", None]
VALUES = [[0.9, 0.1], [0.2, 0.8], None, [0.5, 0.5]]
FORMS = {
    "map": (
        pa.array(
            [row and [("no", row[0]), ("yes", row[1])] for row in VALUES], pa.map_(pa.string(), pa.float64())
        ),
        (),
    ),
    "struct": (pa.array([row and {"no": row[0], "yes": row[1]} for row in VALUES]), ()),
    "list": (pa.array(VALUES), ("no", "yes")),
}  # fmt: skip


def settings_for(path: object, **settings: Any) -> DistillSettings:
    return DistillSettings(texts=str(path), model="m", out="o", **{"text_column": ("text",)} | settings)


def numbered(count: int, first: int = 0) -> LabelledTexts:
    texts = [f"text {i}" for i in range(first, first + count)]
    return LabelledTexts(texts, np.arange(count) % 2, ["no", "yes"])


@pytest.mark.parametrize("form", FORMS)
def test_probabilities_are_read_from_mappings_and_lists(tmp_path, form):
    column, label_names = FORMS[form]
    path = tmp_path / "answers.parquet"
    pq.write_table(pa.table({"text": TEXTS, "probabilities": column, "label": ["?"] * 4}), path)
    teacher = open_teacher(settings_for(path, label_names=label_names))
    answers = teacher.answers
    assert (teacher.name, teacher.kind_of_answers, teacher.label_names) == (str(path), "probabilities", ["no", "yes"])
    assert answers.texts == ["one", "two"]
    np.testing.assert_allclose(answers.soft_labels, [[0.9, 0.1], [0.2, 0.8]], rtol=1e-6)
    assert answers.labels.tolist() == [0, 1]
    assert (answers.origin.dropped.without_text, answers.origin.dropped.without_label) == (1, 1)


def test_files_may_name_labels_in_any_order_and_leave_out_those_that_are_not_probable(tmp_path):
    rows = {"a": [{"no": 1.0}], "b": [{"yes": 0.7, "no": 0.3}, {"maybe": 0.6, "yes": 0.4}]}
    for name, own in rows.items():
        lines = [json.dumps({"text": f"{name}{i}", "probabilities": row}) for i, row in enumerate(own)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    answers = open_teacher(settings_for(tmp_path)).answers
    assert answers.label_names == ["maybe", "no", "yes"]  # in the order of labels of rows
    by_name = dict(zip(answers.label_names, answers.soft_labels.T.tolist(), strict=True))
    np.testing.assert_allclose(by_name["no"], [1, 0.3, 0], rtol=1e-6)
    np.testing.assert_allclose(by_name["maybe"], [0, 0, 0.6], rtol=1e-6)


def test_labels_of_mappings_are_mapped_and_those_of_one_name_are_added_up(tmp_path):
    rows = [{"no": 0.5, "nope": 0.25, "yes": 0.25}, None]
    pq.write_table(pa.table({"text": ["a", "b"], "probabilities": rows}), tmp_path / "a.parquet")
    answers = open_teacher(settings_for(tmp_path, label_map=("nope=no", "yes=positive"))).answers
    assert answers.label_names == ["no", "positive"]
    assert answers.soft_labels.tolist() == [[0.75, 0.25]]


@pytest.mark.parametrize("first", ["a", "z"])
def test_files_with_probabilities_beside_files_without_are_refused(tmp_path, first):
    with_probabilities = {"text": ["x"], "label": ["no"], "probabilities": [{"no": 0.5, "yes": 0.5}]}
    pq.write_table(pa.table(with_probabilities), tmp_path / f"{first}.parquet")
    pq.write_table(pa.table({"text": ["y"], "label": ["yes"]}), tmp_path / "m.parquet")
    with pytest.raises(UserError) as error:
        open_teacher(settings_for(tmp_path))
    assert str(error.value) == (
        f"--texts {tmp_path} has files with the column 'probabilities', such as {tmp_path}/{first}.parquet, and files "
        "without it; expected it in all or none. Distill from one kind of them, or add the column."
    )


def test_a_table_of_a_catalog_is_read_as_one_and_not_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        open_teacher(settings_for("iceberg://nowhere/reviews.texts"))
    assert "cannot be accessed" not in str(error.value)
    assert "nowhere" in str(error.value)


def test_labels_of_someone_are_answers_that_are_certain(tmp_path, labelled):
    teacher = open_teacher(settings_for(labelled))
    assert (teacher.kind_of_answers, teacher.label_names) == ("labels", ["negative", "positive"])
    assert teacher.answers.soft_labels is None


@pytest.mark.parametrize(
    ("columns", "settings", "sentence"),
    [
        (
            {"text": ["a", "b"], "probabilities": [{"no": 0.5, "yes": 0.5}, {"no": 0.5, "yes": 0.3}]},
            {},
            "column 'probabilities' of {path} has numbers in row 2 that sum to 0.8, the least 0.3; expected "
            "probabilities of one label a row, which sum to 1",
        ),
        (
            {"text": ["a"], "probabilities": [{"no": -0.5, "yes": 1.5}]},
            {},
            "column 'probabilities' of {path} has numbers in row 1 that sum to 1, the least -0.5; expected "
            "probabilities of one label a row, which sum to 1",
        ),
        (
            {"text": ["a"], "probabilities": [[0.5, 0.5]]},
            {},
            "column 'probabilities' of {path} has lists, which do not say whose probabilities they are. Name their "
            "labels in order: --label-names A,B,...",
        ),
        (
            {"text": ["a"], "probabilities": [[0.5, 0.5]]},
            {"label_names": ("x", "y", "z")},
            "column 'probabilities' of {path} has a list of 2; expected 3 numbers, one for each of --label-names",
        ),
        (
            {"text": ["a"], "probabilities": [{"no": 0.5, "yes": 0.5}]},
            {"label_names": ("no", "maybe")},
            "column 'probabilities' of {path} has the label 'yes'; expected one of --label-names: no, maybe",
        ),
        (
            {"text": ["a"], "probabilities": [{"no": 1.0}]},
            {},
            "column 'probabilities' of {path} has the labels no; expected two or more",
        ),
        (
            {"text": ["a"], "probabilities": [0.5]},
            {},
            "column 'probabilities' of {path} holds double; expected a mapping from labels to numbers, or a list of "
            "numbers with --label-names",
        ),
        (
            {"text": ["a"], "probabilities": [{"no": "much", "yes": "little"}]},
            {},
            "column 'probabilities' of {path} holds struct<no: string, yes: string>; expected numbers for the labels",
        ),
        (
            {"text": [" ", "a"], "probabilities": [{"no": 0.5, "yes": 0.5}, None]},
            {},
            "--texts {path} has no row with text and an answer in 'text'. Give texts to learn from.",
        ),
        (
            {"text": ["a"], "other": [1]},
            {},
            "--texts {path} has no answers: a file has neither the column 'probabilities' nor 'label'; it has text, "
            "other. Give --teacher, or texts with answers.",
        ),
    ],
)
def test_answers_that_cannot_be_learned_are_refused(tmp_path, columns, settings, sentence):
    path = tmp_path / "answers.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(UserError) as error:
        open_teacher(settings_for(path, **settings))
    assert str(error.value) == sentence.format(path=path)


def test_equal_texts_are_learned_once_evaluated_ones_never_and_labelled_ones_by_both():
    answers = numbered(10)
    copies = [*answers.texts, "text  3", "text 9 "]
    soft = np.tile([0.25, 0.75], (12, 1)).astype(np.float32)
    taught = LabelledTexts(copies, np.ones(12, np.int64), ["no", "yes"], soft_labels=soft)
    rows = LabelledParts(numbered(3), numbered(2, first=3))
    parts = make_parts(settings_for("p"), taught, rows)
    assert parts.train.texts == ["text 0", "text 1", "text 2", *(f"text {i}" for i in range(5, 10))]
    # labels no, yes, no, each with the teacher's 0.25 and 0.75
    mixed = [[0.625, 0.375], [0.125, 0.875], [0.625, 0.375]]
    np.testing.assert_allclose(parts.train.targets[:4], [*mixed, [0.25, 0.75]])
    assert parts.train.labels.tolist() == [0, 1, 0, 1, 1, 1, 1, 1]
    assert parts.evaluation.texts == ["text 3", "text 4"]
    told = parts.texts
    assert (told.rows, told.copies, told.evaluation_texts, told.labelled_texts) == (5, 1, 3, 3)
    assert parts.train.origin.remarks == ["3 rows of --texts have texts of evaluation rows and were left out"]
    assert (parts.labelled_rows, parts.is_by_teacher) == (3, False)


def test_texts_that_all_have_labels_are_learned_by_both():
    soft = np.tile([0.5, 0.5], (3, 1)).astype(np.float32)
    parts = make_parts(
        settings_for("p"), replace(numbered(3), soft_labels=soft), LabelledParts(numbered(3), numbered(2, 3))
    )
    assert parts.train.texts == ["text 0", "text 1", "text 2"]
    np.testing.assert_allclose(parts.train.targets, [[0.75, 0.25], [0.25, 0.75], [0.75, 0.25]])
    assert (parts.texts.rows, parts.texts.labelled_texts) == (0, 3)


def test_held_out_answers_keep_their_probabilities_by_which_a_student_is_calibrated():
    answers = replace(numbered(20), soft_labels=np.tile([0.25, 0.75], (20, 1)).astype(np.float32))
    parts = make_parts(settings_for("p"), answers, LabelledParts(None, None))
    assert parts.is_by_teacher
    assert parts.evaluation.targets.tolist() == [[0.25, 0.75]] * 2


def test_labels_that_a_teacher_decides_are_counted_for_class_weights(tmp_path, tiny_encoder):
    soft = np.tile([0.4, 0.6], (20, 1)).astype(np.float32)
    soft[:5] = [1, 0]
    data = LabelledTexts([f"text {i}" for i in range(20)], soft.argmax(axis=1), ["no", "yes"], soft_labels=soft)
    settings = TrainSettings(data="p", model=tiny_encoder, out=str(tmp_path / "b"))
    prepared = prepare(settings, settings.out, (data, data))
    assert prepared.label_counts.tolist() == [5, 15]


@pytest.mark.slow
def test_a_teacher_whose_answers_are_there_computes_no_agreement(tiny_bundle):
    model = source.open_model(tiny_bundle)
    texts = sentences(40, seed=3)["text"].to_pylist()
    decided = Classifier(model.files).predict_proba(texts).argmax(axis=1)
    rows = LabelledTexts(texts, 1 - decided, model.info.labels)  # answers that it does not give
    by_teacher = compare(model, model, rows, is_by_teacher=True)
    assert (by_teacher.rows, by_teacher.agreement, by_teacher.student.accuracy) == (40, 0.0, None)
    assert by_teacher.teacher.rows_per_second > 0
    by_labels = compare(model, model, rows, is_by_teacher=False)
    assert (by_labels.agreement, by_labels.student.accuracy, by_labels.teacher.accuracy) == (1.0, 0.0, 0.0)
    assert compare(model, None, rows, is_by_teacher=False).agreement is None


def test_labels_of_someone_for_texts_that_all_have_labels_are_refused():
    with pytest.raises(UserError) as error:
        make_parts(settings_for("p"), numbered(3), LabelledParts(None, numbered(5)))
    assert str(error.value) == (
        "--texts p has no text that is not in --data or --eval-data. Give texts without labels."
    )


def test_data_with_labels_that_the_teacher_does_not_have_is_refused(tmp_path, labelled):
    pq.write_table(
        pa.table({"text": ["a", "b"], "probabilities": [{"no": 0.5, "yes": 0.5}] * 2}), tmp_path / "p.parquet"
    )
    settings = settings_for(tmp_path / "p.parquet", data=labelled)
    with pytest.raises(UserError) as error:
        read_labelled(settings, open_teacher(settings).scheme)
    assert str(error.value) == (
        f"column 'label' of {labelled} has the label 'negative'; expected one of no, yes; leave those cells empty, "
        "train with data that has this label, or map it with --label-map negative=no"
    )
    mapped = settings_for(tmp_path / "p.parquet", data=labelled, label_map=("negative=no", "positive=yes"))
    parts = read_labelled(mapped, open_teacher(settings).scheme)
    assert parts.train.label_names == ["no", "yes"]
    assert len(parts.train) + len(parts.evaluation) == 640


def test_soft_labels_follow_their_rows_and_are_part_of_the_fingerprint(tmp_path):
    pq.write_table(sentences(40, seed=1), tmp_path / "d.parquet")
    data = labelled.read(str(tmp_path / "d.parquet"))
    first = LabelledTexts(data.texts, data.labels, data.label_names, soft_labels=np.full((40, 2), 0.5, np.float32))
    second = LabelledTexts(data.texts, data.labels, data.label_names, soft_labels=np.full((40, 2), 0.4, np.float32))
    assert len({data.fingerprint(), first.fingerprint(), second.fingerprint()}) == 3
    numbers = np.arange(80, dtype=np.float32).reshape(40, 2)
    taken = LabelledTexts(data.texts, data.labels, data.label_names, soft_labels=numbers).take(np.array([3, 1]))
    assert taken.targets.tolist() == [[6, 7], [2, 3]]


@pytest.mark.parametrize("kind", [pa.map_(pa.string(), pa.float64()), pa.struct({"no": pa.float64()}), pa.null()])
def test_a_file_without_any_answer_is_counted_and_left_out(tmp_path, kind):
    pq.write_table(
        pa.table({"text": ["a"], "probabilities": [{"no": 0.25, "yes": 0.75}]}), tmp_path / "answers.parquet"
    )
    pq.write_table(
        pa.table({"text": ["b", "c"], "probabilities": pa.array([None, None], kind)}), tmp_path / "failed.parquet"
    )
    answers = open_teacher(settings_for(tmp_path)).answers
    assert (answers.texts, answers.soft_labels.tolist()) == (["a"], [[0.25, 0.75]])
    assert answers.origin.dropped.without_label == 2


def test_long_texts_that_differ_at_their_end_are_different(tmp_path):
    texts = [f"{'the same words ' * 4000}{end}" for end in ("one", "two")]
    probabilities = [{"no": 0.25, "yes": 0.75}, {"no": 0.75, "yes": 0.25}]
    pq.write_table(pa.table({"text": [*texts, "x", "y"], "probabilities": probabilities * 2}), tmp_path / "a.parquet")
    settings = settings_for(tmp_path, eval_fraction=0.5)
    parts = make_parts(settings, open_teacher(settings).answers, LabelledParts(None, None))
    assert (len(parts.train) + len(parts.evaluation), parts.texts.copies) == (4, 0)
