"""Folders as `Trainer` leaves them: scored, evaluated, served, verified, adopted and promoted like bundles."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

from sentiment_core import Classifier, UserError, evaluate, score, verify
from sentiment_core.adoption import AdoptSettings, adopt
from sentiment_core.errors import Notice
from sentiment_core.model import bundle, classifier, fitness
from sentiment_core.model.registry import PromoteSettings, promote
from sentiment_core.model.source import open_model
from sentiment_core.nightly.job import nightly
from sentiment_core.nightly.settings import NightlySettings
from sentiment_core.runtime import storage
from sentiment_core.serving import app
from sentiment_core.serving.model import ServedModel
from sentiment_core.serving.settings import ServeSettings
from tests.conftest import sentences, shard
from tests.ready_models import LABELS, Hub, make_classifier
from tests.scoring.runs import plan_folder, read_scored
from tests.serving.test_app import ask

pytestmark = pytest.mark.slow
REPO = Path(__file__).resolve().parents[1]
NAMES = {"negative": "bad", "positive": "good"}
ROWS = 60


@pytest.fixture(scope="module", params=["distilbert", "roberta", "deberta-v2"])
def trained(request, packaged_encoder, tmp_path_factory) -> str:
    """Train a small classifier for two steps; return the folder, which also holds a checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    start = make_classifier(request.param, folder / "start", packaged_encoder)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(start), AutoTokenizer.from_pretrained(start)
    rows = sentences(16, seed=1).to_pydict()
    data = Dataset.from_dict(
        {**tokenizer(rows["text"], truncation=True), "label": [0 if x == "negative" else 2 for x in rows["label"]]}
    )
    arguments = TrainingArguments(
        str(folder / "made"), max_steps=2, report_to=[], disable_tqdm=True, use_cpu=True, save_steps=1, logging_steps=1
    )
    trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    assert {"training_args.bin", "trainer_state.json", "checkpoint-2"} <= {p.name for p in (folder / "made").iterdir()}
    return str(folder / "made")


@pytest.fixture(scope="module")
def folder(packaged_encoder, tmp_path_factory) -> str:
    return make_classifier("distilbert", tmp_path_factory.mktemp("ready"), packaged_encoder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Labelled sentences, with the names that the classifiers have."""
    rows = sentences(200, seed=5)
    path = tmp_path_factory.mktemp("data") / "test.parquet"
    pq.write_table(pa.table({"text": rows["text"], "label": [NAMES[x] for x in rows["label"].to_pylist()]}), path)
    return str(path)


def ask_pipeline(path: str, texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Return label and probability of each text, as transformers gives them."""
    made = pipeline("text-classification", model=path, tokenizer=path, device="cpu", dtype=torch.float32)
    answers = [made(text, truncation=True)[0] for text in texts]
    return [answer["label"] for answer in answers], np.array([answer["score"] for answer in answers])


@pytest.mark.slow
def test_a_trainers_folder_is_scored_evaluated_served_and_verified(trained, data, in_process, tmp_path):
    shard(tmp_path / "in", "part=1/a.parquet", ROWS, seed=2)
    places = {"input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    with pytest.warns(Notice, match="is not calibrated"):
        assert score(model=trained, **places, precision="float32").exit_code == 0
    scored = read_scored(tmp_path / "out")
    texts = pq.read_table(tmp_path / "in" / "part=1" / "a.parquet")["text"].to_pylist()
    labels, confidences = ask_pipeline(trained, texts)
    assert scored["label"].to_pylist() == labels
    np.testing.assert_allclose(scored["confidence"].to_numpy(), confidences, atol=1e-5)
    assert json.loads((tmp_path / "out" / "_run.json").read_text())["model"] == trained
    findings = verify(**places, full=True)
    assert (findings.exit_code, findings.rows_out, findings.compared) == (0, ROWS, ROWS)
    again = score(model=trained, **places, precision="float32")
    assert again.summary["run"]["rows"] == 0

    rows = pq.read_table(data)
    labels, _ = ask_pipeline(trained, rows["text"].to_pylist())
    metrics = evaluate(model=trained, data=data, precision="float32")
    assert metrics["accuracy"] == np.mean(np.array(labels) == np.array(rows["label"].to_pylist()))
    assert metrics["bundle"] == bundle.digest_of(open_model(trained).files)

    (answer,) = ServedModel(open_model(trained).files, 1, min_confidence=0.0, precision="float32").answer([texts])
    np.testing.assert_allclose([result.confidence for result in answer.results], confidences, atol=1e-5)


@pytest.fixture(scope="module")
def several(packaged_encoder, tmp_path_factory) -> str:
    """Make a classifier that gives a text any number of its labels."""
    place = tmp_path_factory.mktemp("several") / "m"
    return make_classifier("bert", place, packaged_encoder, problem_type="multi_label_classification")


def ask_pipeline_for_each_label(path: str, texts: list[str]) -> tuple[np.ndarray, list[list[str]]]:
    """Return the probability of each label, as transformers gives it, and the labels of half and more."""
    made = pipeline("text-classification", model=path, tokenizer=path, device="cpu", dtype=torch.float32, top_k=None)
    answers = [{answer["label"]: answer["score"] for answer in row} for row in made(texts)]
    probabilities = np.array([[answer[label] for label in LABELS] for answer in answers])
    return probabilities, [[label for label, p in zip(LABELS, row, strict=True) if p >= 0.5] for row in probabilities]


def test_a_classifier_of_several_labels_is_adopted_with_labels_in_one_text(several, tmp_path):
    path = tmp_path / "several.csv"
    rows = zip(sentences(60, seed=6)["text"].to_pylist(), 15 * ["good", "bad|so so", "good|bad", "|"], strict=True)
    path.write_text("text,label\n" + "".join(f"{text},{labels}\n" for text, labels in rows))
    with pytest.raises(UserError, match=r"has one label a row; expected lists of labels.* give --label-separator"):
        adopt(AdoptSettings(model=several, out=str(tmp_path / "b"), data=str(path)))
    made = adopt(AdoptSettings(model=several, out=str(tmp_path / "b"), data=str(path), label_separator="|"))
    rows_by_label = {name: label.rows for name, label in made.info.metrics.by_label.items()}
    assert rows_by_label == {"good": 30, "bad": 30, "so so": 15}
    assert made.info.training.eval_data.eval_rows == 60
    metrics = evaluate(model=str(tmp_path / "b"), data=str(path))  # which takes the bundle's separator
    assert metrics["micro_f1"] == pytest.approx(made.info.metrics.micro_f1, abs=0.01)
    with pytest.raises(UserError, match="--label-separator is ' '"):
        AdoptSettings(model=several, out=str(tmp_path / "c"), label_separator=" ")


def test_a_classifier_of_several_labels_is_used_and_adopted(several, data, tmp_path):
    path, texts = several, pq.read_table(data)["text"].to_pylist()[:20]
    expected, chosen = ask_pipeline_for_each_label(path, texts)
    with pytest.warns(Notice, match="is not calibrated"):
        model = Classifier.load(path, precision="float32")
    np.testing.assert_allclose(model.predict_proba(texts), expected, atol=1e-5)
    assert [list(prediction.labels) for prediction in model.predict(texts)] == chosen

    labels = [["good"] if label == "good" else ["bad", "so so"] for label in pq.read_table(data)["label"].to_pylist()]
    pq.write_table(pa.table({"text": pq.read_table(data)["text"], "label": labels}), tmp_path / "several.parquet")
    adopted = adopt(AdoptSettings(model=path, out=str(tmp_path / "b"), data=str(tmp_path / "several.parquet")))
    assert adopted.info.objective.several
    assert adopted.info.calibration.ece_after < adopted.info.calibration.ece_before
    assert len(adopted.info.objective.thresholds) == len(LABELS)
    before = evaluate(model=path, data=str(tmp_path / "several.parquet"))
    after = evaluate(model=str(tmp_path / "b"), data=str(tmp_path / "several.parquet"))
    assert after["micro_f1"] > before["micro_f1"]
    assert after["micro_f1"] == pytest.approx(adopted.info.metrics.micro_f1, abs=0.01)


def test_a_service_answers_as_the_pipeline_does(several, ray_here):
    """With the labels of each text, a list. `serving/test_app.py` has a model of one label a text."""
    texts = ["a wonderful film", "dull and awful", "the book"]
    try:
        address = app.start(ServeSettings(model=several, port=0))
        code, answer = ask(address + "score", {"texts": [*texts, ""]})
        explained = ask(address + "explain", {"text": texts[0]})
    finally:
        app.stop()
    assert code == 200
    *results, empty = answer["results"]
    probabilities, chosen = ask_pipeline_for_each_label(several, texts)
    assert [result["labels"] for result in results] == chosen
    assert all(list(result["probabilities"]) == list(LABELS) for result in results)
    np.testing.assert_allclose([[*result["probabilities"].values()] for result in results], probabilities, atol=0.01)
    confidences = np.maximum(probabilities, 1 - probabilities).min(axis=1)  # of the least certain decision
    np.testing.assert_allclose([result["confidence"] for result in results], confidences, atol=0.01)
    assert empty == {"labels": None, "confidence": None, "probabilities": None, "status": "empty"}
    assert (explained[0], explained[1]["labels"]) == (200, chosen[0])
    assert [word for word, _ in explained[1]["words"]] == texts[0].split()


def test_that_nothing_is_calibrated_is_said_once(packaged_encoder, tmp_path):
    folder = make_classifier("distilbert", tmp_path, packaged_encoder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            assert Classifier.load(folder).labels == ["bad", "so so", "good"]
    (sentence,) = [str(w.message) for w in caught if w.category is Notice]
    assert sentence.startswith(f"--model {folder} is not calibrated: confidences are as the model gives them. ")


@pytest.mark.slow
def test_a_command_says_it_in_one_line(folder, data):
    flags = [sys.executable, "jobs/evaluate.py", "--model", folder, "--data", data]
    done = subprocess.run(flags, cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"note: --model {folder} is not calibrated")
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_command_refuses_in_one_line(folder, labelled, tmp_path, command):
    code, _, stderr = command("evaluate", "--model", folder, "--data", labelled)
    assert code == 2
    assert "has the label 'negative'; expected one of bad, so so, good" in stderr
    assert stderr.count("\n") == 1, stderr
    code, _, stderr = command("adopt", "--model", folder, "--out", tmp_path / "b", "--label-names", "a,b")
    assert code == 2
    assert "--label-names has 2 names; expected one for each of the 3 labels" in stderr
    assert stderr.count("\n") == 1, stderr
    assert not (tmp_path / "b").exists()


def test_labels_of_data_meet_the_models_by_a_mapping(folder, labelled):
    with pytest.raises(UserError, match="has the label 'negative'; expected one of bad, so so, good"):
        evaluate(model=folder, data=labelled)
    metrics = evaluate(model=folder, data=labelled, label_map=[f"{theirs}={ours}" for theirs, ours in NAMES.items()])
    assert metrics["n"] == 640
    assert np.sum(metrics["confusion"], axis=1).tolist()[1] == 0


def test_int8_is_refused_with_the_remedy(folder, tmp_path):
    shard(tmp_path / "in", "a.parquet", 2, seed=2)
    with pytest.raises(UserError, match=r"--int8: .* was not checked in 8 bits .*sentiment-core adopt --data"):
        plan_folder(folder, tmp_path / "in", tmp_path / "out", int8=True)


def test_a_model_of_the_hub_is_noted_with_its_revision(folder, packaged_encoder, in_process, tmp_path, monkeypatch):
    hub = Hub(folder, tmp_path / "cache", monkeypatch)
    hub.folders["b" * 40] = make_classifier("electra", tmp_path / "changed", packaged_encoder)
    shard(tmp_path / "in", "a.parquet", ROWS, seed=1)
    places = {"input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    assert score(model="me/mine", **places).summary["run"]["rows"] == ROWS
    noted = json.loads((tmp_path / "out" / "_run.json").read_text())["model"]
    assert noted == f"me/mine@{'a' * 40}"
    hub.sha = "b" * 40
    with pytest.raises(UserError, match=r"was made with other settings \(bundle: "):
        score(model="me/mine", **places)
    assert score(model=noted, **places).summary["run"]["rows"] == 0
    hub.reachable = False
    assert verify(**places, full=True).compared == ROWS


def test_a_night_with_a_ready_classifier_and_with_its_successor(folder, packaged_encoder, in_process, tmp_path):
    """Promotion tells them apart by what decides their labels; outputs of the first stay."""
    models = tmp_path / "models"
    make_classifier("electra", models / "second", packaged_encoder)
    make_classifier("distilbert", models / "first", packaged_encoder)
    make_classifier("distilbert", models / "other", packaged_encoder, labels=("a", "b"))
    promote(PromoteSettings(models=str(models), bundle="first"))
    shard(tmp_path / "in", "date=1/a.parquet", ROWS, seed=1)
    places = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    night = nightly(NightlySettings(**places, night="n1"))
    assert (night.state, night.exit_code, night.rows, night.labels) == ("done", 0, ROWS, ["bad", "so so", "good"])
    promote(PromoteSettings(models=str(models), bundle="second"))
    shard(tmp_path / "in", "date=2/b.parquet", ROWS, seed=2)
    night = nightly(NightlySettings(**places, night="n2"))
    assert (night.state, night.rows, any(night.verified.values())) == ("done", ROWS, False)
    findings = verify(input=places["input"], out=places["out"], full=True)
    assert (findings.exit_code, findings.compared, findings.scored_by_other_bundles) == (0, ROWS, ROWS)
    with pytest.raises(UserError, match="has the labels a, b; expected those of the current one, bad, so so, good"):
        promote(PromoteSettings(models=str(models), bundle="other"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["roberta", "electra", "gpt2"])
def test_an_adopted_bundle_is_calibrated_for_whoever_loads_it(packaged_encoder, data, tmp_path, family):
    start = make_classifier(family, tmp_path / "start", packaged_encoder)
    texts = pq.read_table(data)["text"].to_pylist()[:20]
    labels, before = ask_pipeline(start, texts)
    made = adopt(AdoptSettings(model=start, out=str(tmp_path / "b"), data=data))
    info = bundle.read_info(str(tmp_path / "b"))
    assert info.metrics == made.info.metrics
    assert (info.labels, info.metrics.n, info.reference.rows, info.calibration.rows) == (
        ["bad", "so so", "good"],
        200,
        200,
        200,
    )
    assert info.calibration.temperature != pytest.approx(1.0, abs=0.05)
    assert info.int8.rows or info.int8.reason
    assert (info.guarantee.rows, info.guarantee.comparisons) == (200, 1)
    assert info.guarantee.right_above[-1] == pytest.approx(200 * info.metrics.accuracy)
    assert info.training.eval_data.fingerprint
    assert info.training.encoder.name == start
    assert evaluate(model=str(tmp_path / "b"), data=data)["ece"] == pytest.approx(info.metrics.ece, abs=0.01)
    after_labels, after = ask_pipeline(str(tmp_path / "b"), texts)
    assert after_labels == labels
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(
        Classifier.load(tmp_path / "b", precision="float32").predict_proba(texts).max(axis=1), after, atol=1e-4
    )
    assert "confidences are as the model gives them" not in made.summary()
    assert f": temperature {info.calibration.temperature:.2f}" in made.summary()
    card = (tmp_path / "b" / "README.md").read_text()
    assert f"Adopted from `{start}`" in card
    assert "on 200 labelled rows" in card
    assert "## Training" not in card


def test_without_data_a_bundle_has_the_models_confidences(folder, tmp_path):
    made = adopt(AdoptSettings(model=folder, out=str(tmp_path / "b"), label_names=("x", "y", "z"), max_length=20))
    assert (made.info.labels, made.info.max_length, made.info.calibration.rows) == (["x", "y", "z"], 20, 0)
    assert "confidences are as the model gives them, not calibrated: give labelled text with --data" in made.summary()
    assert not list((tmp_path / "b").glob("*.png"))
    texts = ["a wonderful film", "dull"]
    labels, confidences = ask_pipeline(folder, texts)
    new_labels, new_confidences = ask_pipeline(str(tmp_path / "b"), texts)
    assert new_labels == [dict(zip(("bad", "so so", "good"), "xyz", strict=True))[label] for label in labels]
    np.testing.assert_allclose(new_confidences, confidences, atol=1e-6)


def test_a_mapping_of_labels_stays_in_the_bundle(folder, labelled, tmp_path):
    mapping = tuple(f"{theirs}={ours}" for theirs, ours in NAMES.items())
    made = adopt(AdoptSettings(model=folder, out=str(tmp_path / "b"), data=labelled, label_map=mapping))
    assert made.info.label_scheme.mapping == NAMES
    assert evaluate(model=str(tmp_path / "b"), data=labelled)["n"] == 640


def test_two_labels_of_one_name_are_told_apart_by_new_names(packaged_encoder, tmp_path):
    start = make_classifier("distilbert", tmp_path / "start", packaged_encoder, labels=("a", "b", "a"))
    with pytest.raises(UserError, match="several labels named 'a'"):
        adopt(AdoptSettings(model=start, out=str(tmp_path / "b")))
    assert adopt(AdoptSettings(model=start, out=str(tmp_path / "b"), label_names=("a", "b", "c"))).info.labels[2] == "c"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 65}, "--max-length is 65; .* takes 3 to 64 tokens"),
        ({"max_length": 2}, "--max-length is 2; .* takes 3 to 64 tokens"),
        ({"label_names": ("a", "b")}, "--label-names has 2 names; expected one for each of the 3 labels"),
        ({"data": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_what_cannot_be_adopted_is_refused_before_any_work(folder, tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        adopt(AdoptSettings(model=folder, out=str(tmp_path / "b"), **settings))
    assert not (tmp_path / "b").exists()
    with pytest.raises(UserError, match="--label-names is 'a,a'"):
        AdoptSettings(model=folder, out="b", label_names=("a", "a"))


def test_a_bundle_is_not_adopted_and_none_is_overwritten(tiny_bundle, folder, tmp_path):
    with pytest.raises(UserError, match="is a bundle already"):
        adopt(AdoptSettings(model=tiny_bundle, out=str(tmp_path / "b")))
    with pytest.raises(UserError, match="already holds something"):
        adopt(AdoptSettings(model=folder, out=tiny_bundle))


def test_logits_that_no_last_layer_makes_are_not_calibrated(folder, data, tmp_path, monkeypatch):
    def first_layer(model: torch.nn.Module, classes: int) -> torch.nn.Linear:
        return next(module for module in model.modules() if isinstance(module, torch.nn.Linear))

    expected = fitness.probe_logits(open_bundle(folder))
    monkeypatch.setattr(classifier, "last_layer", first_layer)
    made = adopt(AdoptSettings(model=folder, out=str(tmp_path / "b"), data=data))
    assert made.info.calibration == bundle.Calibration()
    assert "not calibrated: no last linear layer makes its logits" in made.summary()
    torch.testing.assert_close(fitness.probe_logits(bundle.load(str(tmp_path / "b"))[0]), expected)
    assert made.info.metrics.n == 200


def open_bundle(path: str) -> torch.nn.Module:
    with storage.unpack_files(open_model(path).files) as unpacked:
        return bundle.load(unpacked)[0]
