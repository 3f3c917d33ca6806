"""Training with several labels a row: it learns, and the bundle gives them to whoever loads it."""

import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import pipeline

from sentiment_core import Classifier
from sentiment_core.errors import UserError
from sentiment_core.evaluation import EvaluateSettings, describe_evaluation, evaluate
from sentiment_core.model import bundle, registry
from sentiment_core.model.objective import MultiLabel
from sentiment_core.model.registry import PromoteSettings, promote
from sentiment_core.nightly.job import nightly
from sentiment_core.nightly.settings import NightlySettings
from sentiment_core.training.data import read_parts
from sentiment_core.training.job import TrainResult, train
from sentiment_core.training.settings import TrainSettings
from tests.scoring.runs import read_scored, write_shard

WORDS = {"joy": ["happy", "glad"], "love": ["darling", "beloved"], "anger": ["furious", "angry"]}
NAMES = sorted(WORDS)
# without dropout, whose masks are each worker's own
FLAGS = {"epochs": 3, "lr": 3e-4, "head_lr": 3e-3, "focal_gamma": 1.0, "max_length": 32, "precision": "float32"}
FLAGS |= {"dropout": 0.0, "classifier_dropout": 0.0, "data_pruning": 0.5, "batch_size": 11, "select_by": "accuracy"}


def topics(rows: int, seed: int) -> pa.Table:
    """Make sentences with up to three labels. A word shows each label."""
    rng = np.random.default_rng(seed)
    chosen = [[name for name in NAMES if rng.random() < 0.4] for _ in range(rows)]
    texts = [
        " ".join(["the day was long", *(str(rng.choice(WORDS[name])) for name in names), f"and we left at {i}"])
        for i, names in enumerate(chosen)
    ]
    return pa.table({"text": texts, "label": pa.array(chosen, pa.list_(pa.string()))})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("topics") / "train.parquet"
    pq.write_table(topics(480, seed=0), path)
    return str(path)


@pytest.fixture(scope="module")
def trained(ray_here, short_encoder, data, tmp_path_factory) -> TrainResult:
    out = str(tmp_path_factory.mktemp("trained") / "bundle")
    return train(TrainSettings(data=data, model=short_encoder, out=out, **FLAGS))


def test_training_learns_and_the_bundle_says_what_it_gives(trained):
    metrics = trained.info.metrics
    assert metrics.micro_f1 > 0.9
    assert metrics.exact_match > 0.7
    assert list(metrics.by_label) == trained.info.labels == NAMES
    assert trained.info.objective == MultiLabel(tuple(trained.info.thresholds))
    assert [label.threshold for label in metrics.by_label.values()] == trained.info.thresholds
    assert len(trained.info.calibration.scales) == 3
    info = bundle.read_info(trained.place)
    assert (info.metrics, info.calibration, info.objective) == (
        metrics,
        trained.info.calibration,
        trained.info.objective,
    )
    config = json.loads((bundle.storage.read_file(f"{trained.place}/config.json")).decode())
    assert config["problem_type"] == "multi_label_classification"
    assert trained.info.reference.predicted_shares["joy"] == pytest.approx(0.4, abs=0.15)
    assert trained.info.training.label_shares["joy"] == pytest.approx(0.4, abs=0.1)
    assert "micro-F1" in trained.summary()
    assert "no better" not in trained.summary()


def test_epochs_are_compared_by_micro_f1(trained):
    assert [record.selected_by for record in trained.log] == [record.eval.micro_f1 for record in trained.log]
    log = [json.loads(line) for line in bundle.storage.read_file(f"{trained.place}/{bundle.LOG}").splitlines()]
    assert set(log[0]["eval"]) == {"loss", "micro_f1", "macro_f1", "exact_match", "ece"}


def test_report_and_card_show_each_label(trained):
    page, card = (bundle.storage.read_file(f"{trained.place}/{name}").decode() for name in ("report.html", "README.md"))
    joy = trained.info.metrics.by_label["joy"]
    assert f"| joy | {joy.rows:,} | {joy.threshold:.3f} |" in card
    assert "<h2>Labels</h2>" in page
    assert 'alt="F1 by label"' in page
    assert 'alt="Reliability by label"' in page
    assert "Confusion" not in page


def test_a_pipeline_gives_the_same_probabilities(trained):
    texts = ["the day was happy and we left", "my darling was furious", "nothing at all"]
    expected = Classifier.load(trained.place, precision="float32").predict_proba(texts)
    answers = pipeline("text-classification", trained.place)(texts, top_k=None)
    for row, answer in zip(expected, answers, strict=True):
        scores = {item["label"]: item["score"] for item in answer}
        assert [scores[name] for name in NAMES] == pytest.approx(row.tolist(), abs=1e-4)


def test_a_prediction_has_labels_and_the_least_certain_decision(trained):
    classifier = Classifier.load(trained.place)
    texts = ["we were happy, my darling", "the day was long", "", None]
    both, none, empty, null = classifier.predict(texts)
    assert (both.label, both.labels, both.status) == (None, ["joy", "love"], "ok")
    assert none.labels == []
    assert (empty.labels, empty.confidence, empty.status, null.status) == (None, None, "empty", "null")
    probabilities = classifier.predict_proba(texts)[0]
    chosen = probabilities >= np.array(trained.info.thresholds)
    assert both.confidence == pytest.approx(np.where(chosen, probabilities, 1 - probabilities).min())


def test_evaluation_gives_the_metrics_of_the_evaluation_rows_again(trained, data, tmp_path):
    settings = TrainSettings(data=data, model="", out="")
    held_out = read_parts(settings)[1]
    labels = [";".join(NAMES[i] for i in np.flatnonzero(row)) or ";" for row in held_out.labels]
    pq.write_table(pa.table({"text": held_out.texts, "label": labels}), tmp_path / "text.parquet")
    options = {"model": trained.place, "data": str(tmp_path / "text.parquet")}
    result = evaluate(EvaluateSettings(**options, label_separator=";", out=str(tmp_path / "metrics.json")))
    assert result.metrics.micro_f1 == pytest.approx(trained.info.metrics.micro_f1, abs=0.01)
    assert result.metrics.mean_average_precision == pytest.approx(trained.info.metrics.mean_average_precision, abs=0.01)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert {"n", "micro_f1", "macro_f1", "mean_average_precision", "exact_match", "ece", "by_label"} <= set(content)
    lines = describe_evaluation(result).splitlines()
    assert lines[0].startswith(f"{len(held_out):,} rows: micro-F1 {result.metrics.micro_f1:.4f}, macro-F1 ")
    assert [line.split()[0] for line in lines[2:5]] == NAMES
    with pytest.raises(UserError, match="one label a row; expected lists of labels"):
        evaluate(EvaluateSettings(**options))


@pytest.mark.journey
def test_a_night_promotes_a_better_candidate_whose_two_workers_lose_what_one_loses(
    in_process, trained, multi_label_bundle, short_encoder, data, tmp_path
):
    """They leave out the same rows, else one would wait for the other. The next night scores by it and trains none."""
    models = str(tmp_path / "models")
    shutil.copytree(multi_label_bundle, tmp_path / "models" / "first")
    promote(PromoteSettings(models=models, bundle="first"))
    pq.write_table(topics(200, seed=1), tmp_path / "test.parquet")
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({"data": data, "model": short_encoder, "workers": 2} | FLAGS))
    flags = {"train_config": str(tmp_path / "train.yaml"), "test_data": str(tmp_path / "test.parquet")}
    flags |= {"model": models, "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    write_shard(tmp_path / "in", "a.parquet", topics(30, seed=2).select(["text"]))
    first = nightly(NightlySettings(night="n1", **flags))
    assert (first.state, first.exit_code, first.alarms) == ("done", 0, [])
    assert first.renewal.promoted, first.renewal.reason
    assert re.match(
        r"micro-F1 [01]\.\d+ against 0\.\d+ \(p = 0\.0001\), exact match [01]\.\d+ against", first.renewal.reason
    )
    candidate = registry.resolve(models)
    info = bundle.read_info(candidate)
    assert (info.labels, info.training.settings["workers"]) == (NAMES, 2)
    log = [json.loads(line) for line in bundle.storage.read_file(f"{candidate}/{bundle.LOG}").splitlines()]
    np.testing.assert_allclose(log[0]["losses"], trained.log[0].losses, atol=1e-3)
    assert log[1]["rows"] < 0.95 * log[0]["rows"]
    assert [len(epoch["losses"]) for epoch in log] == [-(-epoch["rows"] // 11) for epoch in log]
    assert np.mean(log[1]["losses"]) < np.mean(log[0]["losses"])

    later = topics(30, seed=3)
    write_shard(tmp_path / "in", "b.parquet", later.select(["text"]))
    second = nightly(NightlySettings(night="n2", **flags))
    assert (second.state, second.model, second.rows, second.renewal) == ("done", candidate, 30, None)
    scored = read_scored(tmp_path / "out")
    labels = scored.filter(pc.field("source") == "b.parquet")["labels"].to_pylist()
    assert np.mean([a == b for a, b in zip(labels, later["label"].to_pylist(), strict=True)]) > 0.7


@pytest.mark.parametrize(
    ("labels", "flags", "message"),
    [
        ([["joy"], ["love"], []], {"ordinal": True}, "--ordinal: column 'label' .* has several labels a row"),
        ([["joy"], ["joy"], []], {}, "has the one label 'joy'; expected two or more"),
        ([[], [], []], {}, "has only rows without labels; expected two or more"),
    ],
)
def test_data_that_cannot_train_several_labels_is_refused(tmp_path, labels, flags, message):
    kind = pa.list_(pa.string())
    pq.write_table(pa.table({"text": list("abc"), "label": pa.array(labels, kind)}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        read_parts(TrainSettings(data=str(tmp_path / "a.parquet"), model="", out="", **flags))
