"""Requests that `distill` refuses: one sentence each, and no file is left."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.distillation.job import distill
from sentiment_core.distillation.settings import DistillSettings
from sentiment_core.errors import UserError
from tests.conftest import make_bundle
from tests.scoring.runs import score_folder


@pytest.fixture
def texts(tmp_path) -> str:
    path = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"text": ["a film", "a book"]}), path)
    return str(path)


def refuse(tmp_path: Path, **settings: object) -> str:
    """Return the sentence of a refusal; nothing may be written."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        distill(DistillSettings(**{"out": str(tmp_path / "out")} | settings))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return str(error.value)


def test_more_layers_than_the_encoder_has(tmp_path, texts, tiny_bundle, tiny_encoder):
    sentence = refuse(tmp_path, teacher=tiny_bundle, texts=texts, model=tiny_encoder, layers=3)
    assert sentence == f"--layers is 3; --model {tiny_encoder} has 2 layers. Lower it."


def test_labels_that_the_teacher_does_not_have(tmp_path, texts, tiny_encoder, labelled):
    teacher = make_bundle(tiny_encoder, tmp_path / "teacher", labels=("bad", "good"))
    sentence = refuse(tmp_path, teacher=teacher, texts=texts, model=tiny_encoder, data=labelled)
    assert sentence == (
        f"column 'label' of {labelled} has the label 'negative'; expected one of bad, good; leave those cells empty, "
        "train with data that has this label, or map it with --label-map negative=bad"
    )


def test_a_teacher_that_is_no_model(tmp_path, texts, tiny_encoder):
    sentence = refuse(tmp_path, teacher=str(tmp_path / "nowhere"), texts=texts, model=tiny_encoder)
    assert sentence == (
        f"--teacher {tmp_path / 'nowhere'} is not a bundle: the folder does not exist. Give a folder made by "
        "sentiment-core train, or a Hugging Face classifier."
    )


def test_texts_that_a_teacher_cannot_score(tmp_path, texts, tiny_bundle, tiny_encoder):
    sentence = refuse(tmp_path, teacher=tiny_bundle, texts=texts, model=tiny_encoder, text_column=("body",))
    assert sentence == "texts.parquet has no column 'body'; it has text; choose with --text-column"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_length": 513}, "--max-length is 513; {model} takes at most 512 tokens. Lower it."),
        (
            {"max_length": 2},
            "--max-length is 2; expected at least 3: the special tokens and one token of the text",
        ),
        (
            {"recipe": "none", "workers": 64},
            "--batch-size is 32; expected at least one row for each of 64 workers",
        ),
    ],
)
def test_a_student_that_cannot_be_trained_is_refused_before_texts_are_scored(
    tmp_path, texts, tiny_bundle, tiny_encoder, settings, sentence
):
    refused = refuse(tmp_path, teacher=tiny_bundle, texts=texts, model=tiny_encoder, **settings)
    assert refused == sentence.format(model=tiny_encoder)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"teacher": "t", "label_names": ("a", "b")},
            "--label-names names the labels of answers in --texts, and a --teacher has names of its own. Leave it out, "
            "or map labels of --data with --label-map.",
        ),
        (
            {"min_label_rows": 2},
            "--min-label-rows is 2; expected 1 (leave it out): the teacher says which labels there are",
        ),
        ({"layers": 0}, "--layers is 0; expected 1 or more"),
    ],
)
def test_settings_that_do_not_fit_together(settings, sentence):
    with pytest.raises(UserError) as error:
        DistillSettings(texts="p", model="m", out="o", **settings)
    assert str(error.value) == sentence


def test_texts_without_text(in_process, tmp_path, tiny_bundle, tiny_encoder):
    path = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"text": pa.array([None, "  "], pa.string())}), path)
    sentence = refuse(tmp_path, teacher=tiny_bundle, texts=str(path), model=tiny_encoder)
    assert sentence == f"--texts {path} has no row with text and an answer in 'text'. Give texts to learn from."


def test_texts_that_are_the_evaluation_rows(in_process, tmp_path, texts, tiny_bundle, tiny_encoder):
    path = tmp_path / "eval.csv"
    path.write_text("text,label\na film,positive\na book,negative\n")
    sentence = refuse(tmp_path, teacher=tiny_bundle, texts=texts, model=tiny_encoder, eval_data=str(path))
    assert sentence == (f"--texts {texts} has no text that is not in --data or --eval-data. Give texts without labels.")


def test_outputs_of_score_that_cannot_teach(in_process, tmp_path, texts, tiny_bundle, tiny_encoder):
    plain, no_text, two = (str(tmp_path / name) for name in ("plain", "no_text", "two"))
    score_folder(tiny_bundle, texts, plain, keep=("text",))
    score_folder(tiny_bundle, texts, no_text, probabilities=True)
    score_folder({"a": tiny_bundle, "b": tiny_bundle}, texts, two, probabilities=True, keep=("text",))
    assert refuse(tmp_path, texts=plain, model=tiny_encoder) == (
        f"--texts {plain} was scored without probabilities. Score again with --probabilities, or give --teacher and "
        "the texts."
    )
    assert refuse(tmp_path, texts=no_text, model=tiny_encoder) == (
        f"--texts {no_text} has no column 'text': score keeps no texts unless asked to. Score with --keep text, or "
        "choose with --text-column."
    )
    assert refuse(tmp_path, texts=two, model=tiny_encoder) == (
        f"--texts {two} was scored by several models (a, b); expected one teacher. Score the texts with that model "
        "alone, or give it as --teacher."
    )


def test_a_stopped_run_is_not_resumed_for_another_teacher(tmp_path, texts, tiny_bundle, tiny_encoder):
    work = tmp_path / "_distilling-out"
    (work / "scored").mkdir(parents=True)
    (work / "scored" / "_run.json").write_text("{}")
    request = {"teacher_sha256": "another"}
    (work / "request.json").write_text(json.dumps(request))
    sentence = refuse(tmp_path, teacher=tiny_bundle, texts=texts, model=tiny_encoder)
    assert sentence.startswith(f"{work} holds a checkpoint made with other settings (")
    assert "teacher_sha256: 'another' there, " in sentence
    assert (work / "scored").exists()


@pytest.mark.slow
def test_texts_that_cannot_be_read_are_told_with_their_reason(in_process, tmp_path, texts, tiny_bundle, tiny_encoder):
    content = bytearray(Path(texts).read_bytes())
    content[4:60] = bytes(56)  # the footer is whole
    Path(texts).write_bytes(content)
    sentence = refuse(tmp_path, teacher=tiny_bundle, texts=texts, model=tiny_encoder)
    assert sentence.startswith("texts.parquet of --texts could not be scored: ")
