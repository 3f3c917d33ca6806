"""Which searches for settings are refused, and what they compare; `chaos/test_tuning.py` kills some."""

import json

import pyarrow.parquet as pq
import pytest

from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.training.tuning import TuneSettings, tune
from tests.training.test_multi_label import topics


@pytest.mark.parametrize(
    "part",
    [
        "lr",
        "lr=1e-4..1e-5",
        "lr=0..1e-4",
        "size=1/2",
        "out=a/b",
        "dropout=0/1",
        "head=standard/odd",
        "epochs=2/3",
        "seed=0/1",
        "min_label_rows=1/50",
    ],
)
def test_a_search_that_cannot_be_is_refused(part):
    with pytest.raises(UserError):
        TuneSettings(data="d", model="m", out="o", search=(part,))


@pytest.mark.journey
def test_trials_with_several_labels_a_row_are_compared_by_micro_f1(ray_here, tiny_encoder, tmp_path, capsys):
    pq.write_table(topics(160, seed=0), tmp_path / "train.parquet")
    out = tmp_path / "best"
    summary = tune(
        TuneSettings(
            data=str(tmp_path / "train.parquet"), model=tiny_encoder, out=str(out), epochs=1, trials=1, max_length=32,
            search=("head_lr=1e-3..1e-2",),
        )
    )  # fmt: skip
    assert bundle.read_info(str(out)).objective.several
    (trial,) = map(json.loads, (out / "tuning.jsonl").read_text().splitlines())
    (epoch,) = map(json.loads, (out / bundle.LOG).read_text().splitlines())
    assert trial["scores"] == [epoch["eval"]["micro_f1"]]
    head, line, *_ = summary.splitlines()
    assert head.split() == ["micro_f1", "epochs", "settings"]
    assert line.split()[:2] == [f"{trial['scores'][0]:.4f}", "1"]
    assert f"trial 1 of 1, epoch 1: micro_f1 {trial['scores'][0]:.4f} with --head-lr" in capsys.readouterr().err
    assert (out / "tuning.png").exists()


def test_trials_are_compared_by_a_metric():
    message = "--select-by is 'last'; expected accuracy, macro_f1 or loss, by which trials are compared"
    with pytest.raises(UserError, match=message):
        TuneSettings(data="d", model="m", out="o", select_by="last")
