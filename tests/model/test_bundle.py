"""A bundle is a Hugging Face model folder, whole or not there, and gives others what it gives us."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from sentiment_core.errors import UserError
from sentiment_core.inference.engine import Engine
from sentiment_core.model import bundle
from sentiment_core.model.records import Metrics
from sentiment_core.runtime import storage
from tests.conftest import make_bundle

LEAST = {"format_version": 1, "head": "standard", "labels": ["no", "yes"], "max_length": 32}  # that makes a bundle
TEXTS = ["a wonderful film", "dreadful", "it is what it is, " * 30, "naïve café 😀", "one two three four five six"] * 8


@pytest.fixture(scope="module")
def real_bundle(short_encoder, tmp_path_factory) -> str:
    return make_bundle(
        short_encoder, tmp_path_factory.mktemp("real") / "b", labels=("bad", "meh", "good"), max_length=64
    )


def engine_probabilities(place: str) -> np.ndarray:
    engine = Engine.load(place)
    return engine.probabilities(bundle.load_tokenizer(place).encode(TEXTS)[0])[0]


@pytest.fixture(scope="module")
def ours(real_bundle) -> np.ndarray:
    return engine_probabilities(real_bundle)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_transformers_gives_the_same(real_bundle, ours, dtype):
    model = AutoModelForSequenceClassification.from_pretrained(real_bundle, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(real_bundle)
    batch = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = torch.softmax(model(**batch).logits.float(), 1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pipeline_gives_the_same(real_bundle, ours, dtype):
    found = pipeline("text-classification", real_bundle, dtype=dtype)(TEXTS, truncation=True, top_k=None)
    labels = ["bad", "meh", "good"]
    theirs = np.array([[next(r["score"] for r in row if r["label"] == name) for name in labels] for row in found])
    np.testing.assert_allclose(ours, theirs, atol=0.01)


@pytest.mark.slow
def test_the_mlp_head_comes_back_as_it_was(tiny_encoder, tmp_path):
    place = make_bundle(tiny_encoder, tmp_path / "b", head="mlp")
    first = engine_probabilities(place)
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, engine_probabilities(place))
    weights = (tmp_path / "b" / bundle.WEIGHTS).read_bytes()
    assert weights[8:9] == b"{"  # safetensors, not pickle


def test_a_bundle_appears_whole_or_not_at_all(tiny_encoder, tmp_path, monkeypatch):
    real_rename = bundle.os.rename

    def power_cut(source, target):
        assert not Path(target).exists()
        raise OSError("power cut")

    monkeypatch.setattr(bundle.os, "rename", power_cut)
    with pytest.raises(OSError, match="power cut"):
        make_bundle(tiny_encoder, tmp_path / "b")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(bundle.os, "rename", real_rename)
    make_bundle(tiny_encoder, tmp_path / "b")
    assert (tmp_path / "b").stat().st_mode & 0o077 == 0o055  # others may read it


def test_the_digest_follows_what_decides_a_label_and_nothing_else(tiny_bundle):
    files = storage.read_folder(tiny_bundle)
    digest = bundle.digest_of(files)
    for name in ("README.md", bundle.METRICS, ".gitattributes"):
        assert bundle.digest_of(files | {name: b"another"}) == digest
    assert bundle.digest_of(files | {bundle.WEIGHTS: files[bundle.WEIGHTS][:-1] + b"x"}) != digest
    assert bundle.digest_of(files | {bundle.INT8: b"labels of --int8"}) != digest
    card = json.loads(files[bundle.CARD])
    assert bundle.digest_of(files | {bundle.CARD: json.dumps(card | {"max_length": 9}).encode()}) != digest
    assert bundle.digest_of(files | {bundle.CARD: json.dumps(card | {"metrics": {"n": 1}}).encode()}) == digest


def test_bundles_that_make_the_same_tokens_are_known(tiny_bundle):
    files = storage.read_folder(tiny_bundle)
    digest = bundle.tokens_digest_of(files)
    others = {bundle.WEIGHTS: b"others", bundle.CONFIG: b"other", bundle.INT8: b"more"}
    assert bundle.tokens_digest_of(files | others) == digest
    assert bundle.tokens_digest_of(files | {"tokenizer.json": b"another"}) != digest
    card = json.loads(files[bundle.CARD])
    assert bundle.tokens_digest_of(files | {bundle.CARD: json.dumps(card | {"max_length": 9}).encode()}) != digest


def test_a_place_that_was_taken_meanwhile_is_left_alone(tiny_encoder, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("")
    with pytest.raises(UserError, match="already holds something"):
        make_bundle(tiny_encoder, tmp_path / "b")
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "mine.txt"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "the folder does not exist"),
        ("", "sentiment.json is missing or damaged"),
        ("[]", "sentiment.json is missing or damaged"),
        ('{"format_version": 1, "head": "standard"}', "sentiment.json is missing or damaged"),
        (json.dumps(LEAST | {"training": []}), "sentiment.json is missing or damaged"),
    ],
)
def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path, content, words):
    path = tmp_path / "b"
    if content is not None:
        path.mkdir()
        (path / bundle.CARD).write_text(content)
    with pytest.raises(UserError, match=f"--model .* is not a bundle: .*{words}. Give a folder made by"):
        bundle.read_info(str(path))


def test_a_bundle_of_a_later_format_loads_and_its_unknown_keys_are_ignored(tiny_bundle, tmp_path):
    card = json.loads(Path(tiny_bundle, bundle.CARD).read_text())
    later = card | {"format_version": 3, "new": 1, "metrics": {"n": 5, "new": 1}, "training": {"data": {"new": 1}}}
    (tmp_path / bundle.CARD).write_text(json.dumps(later))
    info = bundle.read_info(str(tmp_path))
    assert (info.format_version, info.metrics, info.labels) == (3, Metrics(n=5), card["labels"])


@pytest.mark.parametrize("setting", [{"head": "chain"}, {"truncation": "middle"}, {"clean": "emoji"}])
def test_a_bundle_that_needs_a_later_version_is_refused(tmp_path, setting):
    (tmp_path / bundle.CARD).write_text(json.dumps(LEAST | {"format_version": 3} | setting))
    ((name, value),) = setting.items()
    with pytest.raises(UserError, match=f"needs a newer sentiment-core: this version does not know {name} '{value}'"):
        bundle.read_info(str(tmp_path))


def test_settings_that_an_old_bundle_lacks_have_their_defaults(tmp_path):
    (tmp_path / bundle.CARD).write_text(json.dumps(LEAST))
    info = bundle.read_info(str(tmp_path))
    assert (info.truncation, info.clean, info.ordinal, info.label_scheme.numbered) == ("head", "none", False, False)
    assert info.metrics == Metrics()
    assert info.calibration.ece_cross_fitted is None
    assert info.int8.agreement is None


def test_records_that_were_not_made_are_written_empty(tiny_bundle):
    card = json.loads(Path(tiny_bundle, bundle.CARD).read_text())
    assert all(card[name] == {} for name in bundle.RECORDS if name != "cascade")
    assert "cascade" not in card


def test_a_record_is_written_as_it_was_read(tmp_path):
    """The keys and their order are those of earlier versions, which read these files too."""
    rows = {"place": "reviews.csv", "files": 1, "rows": 9, "dropped": {"without_text": 1, "without_label": 0,
            "without_tokens": 2}, "numbered": True, "truncated_rows": 3}  # fmt: skip
    content = {
        "head": "standard", "labels": ["no", "yes"], "max_length": 32,
        "metrics": {
            "n": 2, "accuracy": 0.5, "macro_f1": 0.4, "ece": 0.1, "brier": 0.6, "confusion": [[1, 0], [1, 0]],
            "labels": ["no", "yes"], "reliability": {"confidence": [0.7], "accuracy": [0.5], "rows": [2]},
            "risk_coverage": {"min_confidence": [0.7], "coverage": [1.0], "accuracy": [0.5]}, "mae": 0.5,
        },
        "calibration": {"method": "m", "temperature": 1.5, "rows": 2, "ece_before": 0.2, "ece_after": 0.1,
                        "ece_cross_fitted": 0.15},
        "training": {
            "settings": {"lr": 0.1, "dropout": None}, "encoder": {"name": "e", "revision": None},
            "data": rows | {"train_rows": 7, "fingerprint": "0"},
            "eval_data": rows | {"eval_rows": 2, "fingerprint": "1"},
            "label_shares": {"no": 0.5, "yes": 0.5}, "best_epoch": 1, "epochs": 2, "device": "cpu", "dtype": "float32",
            "rows_per_second": 10.0, "seconds": 3.0,
        },
        "reference": {
            "rows": 2, "predicted_shares": {"no": 1.0, "yes": 0.0}, "confidence_histogram": [0, 2],
            "length_histogram": [2], "tokens": 8, "tokens_quantiles": {"0.5": 4.0}, "unknown_token_share": 0.0,
        },
        "int8": {"agreement": 1.0, "rows": 2, "accuracy": 0.5, "float32_accuracy": 0.5, "accuracy_rows": 2,
                 "layers": 11, "all_layers": 12},
        "truncation": "head", "clean": "none", "ordinal": True, "format_version": 2, "libraries": {"torch": "2.13.0"},
    }  # fmt: skip
    info = bundle.BundleInfo.from_json(content)
    assert info.label_scheme.numbered
    # which older versions do not write
    own = {"problem_type": "single_label_classification", "thresholds": [], "guarantee": {}, "distillation": {}}
    content["training"]["eval_data"]["folds"] = 0
    assert json.dumps(info.to_json(), sort_keys=True) == json.dumps(content | own, sort_keys=True)


def test_a_library_that_is_not_installed_has_no_version(monkeypatch):
    """The engine runs where Ray is not installed."""
    monkeypatch.setattr(bundle, "LIBRARIES", ("torch", "a-library-that-nobody-wrote"))
    assert bundle.library_versions().keys() == {"sentiment-core", "python", "torch"}
