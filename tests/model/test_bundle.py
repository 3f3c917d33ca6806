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
from sentiment_core.runtime import storage
from tests.conftest import make_bundle

TEXTS = ["a wonderful film", "dreadful", "it is what it is, " * 30, "naïve café 😀", "one two three four five six"] * 8


@pytest.fixture(scope="module")
def real_bundle(packaged_encoder, tmp_path_factory) -> str:
    return make_bundle(
        packaged_encoder, tmp_path_factory.mktemp("real") / "b", labels=("bad", "meh", "good"), max_length=64
    )


def engine_probabilities(place: str) -> np.ndarray:
    engine = Engine.load(place)
    return engine.probabilities(bundle.load_tokenizer(place).encode(TEXTS)[0])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_transformers_gives_the_same(real_bundle, dtype):
    ours = engine_probabilities(real_bundle)
    model = AutoModelForSequenceClassification.from_pretrained(real_bundle, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(real_bundle)
    batch = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = torch.softmax(model(**batch).logits.float(), 1).numpy()
    np.testing.assert_allclose(ours, theirs, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pipeline_gives_the_same(real_bundle, dtype):
    ours = engine_probabilities(real_bundle)
    found = pipeline("text-classification", real_bundle, dtype=dtype)(TEXTS, truncation=True, top_k=None)
    labels = ["bad", "meh", "good"]
    theirs = np.array([[next(r["score"] for r in row if r["label"] == name) for name in labels] for row in found])
    np.testing.assert_allclose(ours, theirs, atol=0.01)


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
    card = json.loads(files[bundle.CARD])
    assert bundle.digest_of(files | {bundle.CARD: json.dumps(card | {"max_length": 9}).encode()}) != digest
    assert bundle.digest_of(files | {bundle.CARD: json.dumps(card | {"metrics": {"n": 1}}).encode()}) == digest


def test_bundles_that_make_the_same_tokens_are_known(tiny_bundle):
    files = storage.read_folder(tiny_bundle)
    digest = bundle.tokens_digest_of(files)
    assert bundle.tokens_digest_of(files | {bundle.WEIGHTS: b"others", bundle.CONFIG: b"other"}) == digest
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
        (None, "there is no such folder"),
        ("", "sentiment.json is missing or damaged"),
        ('{"format_version": 1, "head": "standard"}', "sentiment.json is missing or damaged"),
    ],
)
def test_what_is_no_bundle_is_refused(tmp_path, content, words):
    place = tmp_path / "b"
    if content is not None:
        place.mkdir()
        (place / bundle.CARD).write_text(content)
    with pytest.raises(UserError, match=f"--model .* is no bundle: .*{words}.*jobs/train.py"):
        bundle.read_info(str(place))


def test_a_bundle_of_a_later_format_is_refused(tiny_bundle, tmp_path):
    card = json.loads(Path(tiny_bundle, bundle.CARD).read_text()) | {"format_version": 3}
    (tmp_path / bundle.CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match="format 3; this version reads 1 to 2"):
        bundle.read_info(str(tmp_path))
