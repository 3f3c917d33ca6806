"""Nights with a target accuracy: each bundle labels from its own threshold on, and outputs of earlier ones stay."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from sentiment_core.api import Classifier
from sentiment_core.errors import UserError
from sentiment_core.model.guarantee import count_above, promise
from sentiment_core.model.records import GuaranteeGrid
from sentiment_core.model.registry import PromoteSettings, promote
from sentiment_core.nightly.job import nightly
from sentiment_core.nightly.settings import NightlySettings
from sentiment_core.scoring.outputs import read_run_file
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import make_bundle, sentences, shard

ROWS = 400


def grid_of(bundle: str, wrong_share: float) -> GuaranteeGrid:
    """Make the grid of a model that is wrong on this share of the rows, on those with the least confidence."""
    texts = sentences(ROWS, seed=9)["text"].to_pylist()
    confidence = Classifier.load(bundle, precision="float32").predict_proba(texts).max(axis=1)
    return count_above(confidence, confidence >= np.quantile(confidence, wrong_share))


def test_a_promoted_bundle_labels_from_its_own_threshold_on(in_process, tiny_encoder, tiny_bundle, tmp_path):
    grids = {"first": grid_of(tiny_bundle, 0.3), "second": grid_of(tiny_bundle, 0.6), "third": GuaranteeGrid()}
    for length, (name, grid) in enumerate(grids.items(), 30):
        make_bundle(tiny_encoder, tmp_path / "models" / name, max_length=length, guarantee=grid)
    thresholds = [promise(grids[name], 0.9, 0.95).min_confidence for name in ("first", "second")]
    assert 0.5 < thresholds[0] < thresholds[1] < 1
    models, root, out = str(tmp_path / "models"), tmp_path / "in", tmp_path / "out"
    places = {"model": models, "input": str(root), "out": str(out)}
    promote(PromoteSettings(models=models, bundle="first"))
    shard(root, "date=1/a.parquet", ROWS, seed=1)
    first = nightly(NightlySettings(**places, night="n1", target_accuracy=0.9))
    assert (first.state, first.rows) == ("done", ROWS)
    before = (out / "date=1" / "a.parquet").read_bytes()
    promote(PromoteSettings(models=models, bundle="second"))
    shard(root, "date=2/b.parquet", ROWS, seed=2)
    with pytest.raises(UserError, match=r"made with other settings \(min_confidence"):
        nightly(NightlySettings(**places, night="n2", target_accuracy=0.8))
    second = nightly(NightlySettings(**places, night="n2", target_accuracy=0.9))
    assert (second.state, second.rows, any(second.verified.values())) == ("done", ROWS, False)
    assert (out / "date=1" / "a.parquet").read_bytes() == before
    for name, threshold in zip(("date=1/a.parquet", "date=2/b.parquet"), thresholds, strict=True):
        table = pq.read_table(out / name, partitioning=None)
        sure = np.array(table["confidence"].to_pylist(), np.float32) >= np.float32(threshold)
        assert 0 < sure.sum() < ROWS
        assert [label is not None for label in table["label"].to_pylist()] == sure.tolist()
    assert read_run_file(str(out)).run.min_confidence == thresholds[1]
    findings = verify(VerifySettings(input=str(root), out=str(out), full=True))
    assert (findings.exit_code, findings.compared, findings.scored_by_other_bundles) == (0, ROWS, ROWS)
    third = nightly(NightlySettings(**places, night="n3", target_accuracy=0.9))
    assert (third.state, third.rows, third.corpus_rows) == ("done", 0, 2 * ROWS)
    promote(PromoteSettings(models=models, bundle="third"))
    with pytest.raises(UserError, match="notes no guarantee"):
        nightly(NightlySettings(**places, night="n4", target_accuracy=0.9))


def test_a_threshold_given_by_hand_is_the_same_for_all_bundles(in_process, tiny_encoder, tiny_bundle, tmp_path):
    """A target that would change it needs an output of its own."""
    for length, name in enumerate(("first", "second"), 30):
        grid = grid_of(tiny_bundle, 0.3)
        make_bundle(tiny_encoder, tmp_path / "models" / name, max_length=length, guarantee=grid)
    places = {"model": str(tmp_path / "models"), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    promote(PromoteSettings(models=places["model"], bundle="first"))
    shard(tmp_path / "in", "date=1/a.parquet", 50, seed=1)
    nightly(NightlySettings(**places, night="n1", min_confidence=0.55))
    promote(PromoteSettings(models=places["model"], bundle="second"))
    with pytest.raises(UserError, match=r"made with other settings \(min_confidence: 0.55 there"):
        nightly(NightlySettings(**places, night="n2", target_accuracy=0.9))
