"""Nights with a cascade: it takes the place of one of its models, and earlier outputs stay."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sentiment_core.model import bundle
from sentiment_core.model.registry import PromoteSettings, promote
from sentiment_core.nightly.job import nightly
from sentiment_core.nightly.plan import make_plan
from sentiment_core.nightly.settings import NightlySettings
from tests.cascades import Models, load, make_models, make_texts
from tests.scoring.runs import read_scored, write_shard

ROWS = 200


@pytest.fixture(scope="module")
def models(packaged_encoder, tmp_path_factory) -> Models:
    return make_models(packaged_encoder, tmp_path_factory.mktemp("models"))


def test_a_promoted_cascade_scores_what_is_new(in_process, models, tmp_path):
    registry, root, out = tmp_path / "models", tmp_path / "in", tmp_path / "out"
    places = {"model": str(registry), "input": str(root), "out": str(out)}
    for name, path in (("small", models.small), ("cascade", models.cascade)):
        shutil.copytree(path, registry / name)
    promote(PromoteSettings(models=str(registry), bundle="small"))
    write_shard(root, "date=1/a.parquet", {"text": make_texts(ROWS, seed=1)})
    first = nightly(NightlySettings(**places, night="n1"))
    assert (first.state, first.rows, any(first.verified.values())) == ("done", ROWS, False)
    before = (out / "date=1" / "a.parquet").read_bytes()
    promote(PromoteSettings(models=str(registry), bundle="cascade"))
    texts = make_texts(ROWS, seed=7)  # as many as these chose the threshold
    write_shard(root, "date=2/b.parquet", {"text": texts})
    assert "cascade: about " in make_plan(NightlySettings(**places, night="n2")).describe()
    second = nightly(NightlySettings(**places, night="n2"))
    assert (second.state, second.rows, any(second.verified.values())) == ("done", ROWS, False)
    assert (out / "date=1" / "a.parquet").read_bytes() == before
    labels = read_scored(out).slice(ROWS)["label"].to_pylist()
    expected = [prediction.label for prediction in load(models.cascade).predict(texts)]
    assert np.mean([a == b for a, b in zip(labels, expected, strict=True)]) > 0.98
    info = bundle.read_info(models.cascade)
    # the rows of the second night are some of those that the cascade was made with
    drifted = [comparison for comparison in second.comparisons if comparison.drifted]
    assert info.reference.rows == 600
    assert drifted == []
    assert Path(out, "_SUCCESS").exists()
