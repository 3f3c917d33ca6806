"""Read `--model`: one model, or several with names."""

import pytest

from sentiment_core import evaluate
from sentiment_core.adoption import AdoptSettings, adopt
from sentiment_core.api import Classifier
from sentiment_core.config import parse
from sentiment_core.errors import UserError
from sentiment_core.model import encoder
from sentiment_core.model.naming import read_models
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.serving.app import start
from sentiment_core.serving.settings import ServeSettings


@pytest.mark.parametrize(
    ("model", "paths"),
    [
        ("models/a", {"": "models/a"}),
        ("s3://b/lr=1/a", {"": "s3://b/lr=1/a"}),
        ("runs/lr=1,2", {"": "runs/lr=1,2"}),
        ("topic=models/b, sentiment=s3://b/lr=1/a", {"sentiment": "s3://b/lr=1/a", "topic": "models/b"}),
        ("topic=models/b", {"topic": "models/b"}),
        ("topic=" + 300 * "b", {"topic": 300 * "b"}),  # which is too long for the name of a file
        ({"topic": "models/b,c", "größe": "d"}, {"größe": "d", "topic": "models/b,c"}),
    ],
)
def test_names_stand_before_the_first_equals_sign(model, paths):
    assert list(read_models(model).items()) == list(paths.items())


def test_a_folder_that_exists_as_it_is_written_is_one_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_models("a=b") == {"a": "b"}
    (tmp_path / "a=b").mkdir()
    assert read_models("a=b") == {"": "a=b"}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("a=", ["--model a= has no model behind the name", "NAME=MODEL"]),
        ("a=x,b=", ["--model b= has no model"]),
        ("a=x,y", ["a part without a name, 'y'", "--config"]),
        ("a=x,a=y", ["gives two models the name a; ", "columns would be the same"]),
        ("a=x,A=y", ["the names a and A, which differ in case only"]),
        ({"a b": "x"}, ["the name 'a b'", "letters"]),
        ({"": "x"}, ["the name ''"]),
        ({}, ["gives no model"]),
    ],
)
def test_names_that_cannot_be_used_are_refused(model, words):
    with pytest.raises(UserError) as error:
        read_models(model)
    assert all(word in str(error.value) for word in words), error.value


def test_commands_that_take_one_model_say_so(tmp_path):
    refusals = [
        lambda: Classifier.load("a=x,b=y"),
        lambda: Classifier.load("a=s3://x/y,b=s3://x/z"),
        lambda: encoder.fetch("a=x,b=y"),
        lambda: adopt(AdoptSettings(model="a=x", out=str(tmp_path / "out"))),
        lambda: start(ServeSettings(model="a=x,b=y")),
        lambda: evaluate(model="a=x,b=y", data="d"),
    ]
    for refusal in refusals:
        with pytest.raises(UserError, match=r"--model a=.* is not the place of one model; expected a folder"):
            refusal()


def test_settings_have_names_from_flags_yaml_and_python(tmp_path):
    flags = ["--input", "i", "--out", "o"]
    assert parse(ScoreSettings, None, ["--model", "a=x,b=y", *flags]).model == "a=x,b=y"
    config = tmp_path / "score.yaml"
    config.write_text("model:\n  no: models/2026-11-29\n  b: 7\n")
    assert parse(ScoreSettings, None, ["--config", str(config), *flags]).model == {"no": "models/2026-11-29", "b": "7"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model:\n  a: x\n  a: y\n", "is not YAML: line 3 has the name a for the second time"),
        ("model: {a: ~}\n", "model has nothing under 'a'; expected a text for each name"),
        ("model:\n  <<: {a: x, b: y,\n  a: z}\n", "is not YAML: line 3 has the name a for the second time"),
        ("model:\n  <<: {a: x}\n  <<: {b: y}\n", "is not YAML: line 3 has the name << for the second time"),
        ("model: {<<: x, b: y}\n", "is not YAML: .*expected a mapping or list of mappings for merging"),
        ("model: {<<: {a: [x]}, b: y}\n", r"model has \['x'\] under 'a'; expected a text for each name"),
        ("keep: [a]\nkeep: [b]\n", "is not YAML: line 2 has the name keep for the second time"),
        ("model: {a: [x, y]}\n", r"model has \['x', 'y'\] under 'a'; expected a text for each name"),
        ("model: [x, y]\n", "model is .* expected a text"),
        ("out: {a: x}\n", "out is .* expected a text"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_named(tmp_path, text, words):
    config = tmp_path / "score.yaml"
    config.write_text(text)
    with pytest.raises(UserError, match=words):
        parse(ScoreSettings, None, ["--config", str(config), "--model", "m", "--input", "i", "--out", "o"])
