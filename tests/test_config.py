"""Flags, YAML, and what is said about wrong ones."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sentiment_core.analysis.sample import SampleSettings
from sentiment_core.config import command_line, from_keywords, parse
from sentiment_core.errors import UserError
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.training.settings import TrainSettings

NEEDED = ["--data", "d.csv", "--model", "m", "--out", "o"]


def test_arrays_and_columns_are_lists_and_tables_are_refused():
    keep = ("id", "day")
    for names in (pd.Index(keep), pd.Series(keep), np.array(keep), pl.Series(keep), pa.array(keep)):
        settings = from_keywords(ScoreSettings, "score", {"model": "m", "input": "i", "out": "o", "keep": names})
        assert settings.keep == keep
    given = {"model": "m", "input": "i", "out": "o"}
    for table in (pd.DataFrame({"id": [1, 2]}), pl.DataFrame({"id": [1, 2]})):
        for name, words in (("keep", "a list of names"), ("device", "one of auto, cpu, gpu")):
            with pytest.raises(UserError, match=words):
                from_keywords(ScoreSettings, "score", given | {name: table})
    assert from_keywords(ScoreSettings, "score", given | {"limit": np.int64(3)}).limit == 3


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text("data: d.csv\nmodel: m\nout: o\nlr: 3e-5\nhead-lr: 1\nepochs: 5\nlabel_names: [no, yes]\n")
    settings = parse(TrainSettings, "", ["--config", str(config), "--epochs", "7"])
    assert (settings.epochs, settings.lr, settings.head_lr, settings.warmup) == (7, 3e-5, 1.0, 0.1)
    assert settings.label_names == ("no", "yes")  # as written, though YAML makes false and true of them


def test_merge_keys_of_yaml_are_followed(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("<<: {label_names: [no, yes], epochs: 3}\nepochs: 5\n")
    settings = parse(TrainSettings, "", [*NEEDED, "--config", str(config)])
    assert (settings.label_names, settings.epochs) == (("no", "yes"), 5)
    config.write_text(
        "<<: {model: &base {<<: {a: models/w, b: models/x}, b: 01}, out: p}\n"
        "model:\n  c: models/c\n  <<: [*base, {b: models/y, c: models/z, no: 2026-11-30}]\n"
        "input: i\nout: o\n"
    )
    settings = parse(ScoreSettings, "", ["--config", str(config)])
    assert settings.model == {"a": "models/w", "b": "01", "c": "models/c", "no": "2026-11-30"}
    assert settings.out == "o"
    config.write_text('"<<": {epochs: 3}\n')  # a name, for its quotes
    with pytest.raises(UserError, match="unknown setting '<<'"):
        parse(TrainSettings, "", [*NEEDED, "--config", str(config)])


def test_keep_tells_nothing_from_default():
    needed = ["--model", "m", "--input", "i", "--out", "o"]
    assert parse(ScoreSettings, "", needed).keep is None
    assert parse(ScoreSettings, "", [*needed, "--keep", ""]).keep == ()
    assert parse(ScoreSettings, "", [*needed, "--keep", "id, date"]).keep == ("id", "date")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--data, --model, --out", "must be given"]),
        ([*NEEDED, "--head", "big"], ["--head", "'big'", "standard", "mlp"]),
        ([*NEEDED, "--epochs", "many"], ["--epochs", "'many'"]),
        ([*NEEDED, "--epochs", "0"], ["--epochs", "0", "1 or more"]),
        ([*NEEDED, "--lr", "nan"], ["--lr", "nan", "above 0"]),
        ([*NEEDED, "--dropout", "1"], ["--dropout", "1.0"]),
        ([*NEEDED, "--epoch", "3"], ["--epoch"]),
    ],
)
def test_wrong_flags_are_named(flags, words):
    with pytest.raises(UserError) as error:
        parse(TrainSettings, "", flags)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", ["'epoch'", "did you mean 'epochs'"]),
        ("epochs: three", ["epochs", "'three'", "whole number"]),
        ("epochs: true", ["epochs", "True", "whole number"]),
        ("head: big", ["head", "'big'", "mlp"]),
        ("- a list", ["list", "name: value"]),
        ("a: [", ["not YAML"]),
        ("tensorboard: 2026-02-30", ["not YAML", "day is out of range"]),
        ("label_names: [a, [b]]", ["label_names", "a list of names"]),
        (f"lr: 1{400 * '0'}", ["lr", "a number"]),
    ],
)
def test_wrong_yaml_is_named(tmp_path, text, words):
    config = tmp_path / "train.yaml"
    config.write_text(text)
    with pytest.raises(UserError) as error:
        parse(TrainSettings, "", [*NEEDED, "--config", str(config)])
    assert all(word in str(error.value) for word in [str(config), *words]), error.value


def test_help_tells_every_default(capsys):
    with pytest.raises(SystemExit):
        parse(TrainSettings, "", ["--help"])
    told = capsys.readouterr().out
    assert told.count("(default: ") > 15
    assert re.search(r"--seed N +seed of [^(]*\(default:\s+0\)", told)


def test_a_setting_may_be_called_by_a_word_of_python(tmp_path):
    (tmp_path / "sample.yaml").write_text("scored: out\nrows: 9\nto: s.csv\nfor: training\n")
    settings = parse(SampleSettings, "", ["--config", str(tmp_path / "sample.yaml")])
    assert settings.for_ == "training"
    assert parse(SampleSettings, "", ["--config", str(tmp_path / "sample.yaml"), "--for", "shares"]).for_ == "shares"
    assert "--for training" in command_line("sample", settings)
