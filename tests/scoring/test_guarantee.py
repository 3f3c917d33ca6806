"""Scoring with a target accuracy: the bundle's own threshold, pinned as if the user had given it."""

import json
from pathlib import Path

import numpy as np
import pytest

from sentiment_core.api import Classifier
from sentiment_core.errors import UserError
from sentiment_core.model.guarantee import count_above, promise
from sentiment_core.model.records import GuaranteeGrid
from sentiment_core.scoring.outputs import read_run_file
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import make_bundle
from tests.scoring.runs import plan_folder, read_scored, score_folder, write_shard

TEXTS = [f"word{i} good bad {i}" * (1 + i % 7) for i in range(500)]
OLD = Path(__file__).parents[1] / "data" / "27de93b"


@pytest.fixture(scope="module")
def grid(tiny_bundle) -> GuaranteeGrid:
    """Make the grid of a model whose more confident half is right."""
    confidence = Classifier.load(tiny_bundle, precision="float32").predict_proba(TEXTS).max(axis=1)
    return count_above(confidence, confidence >= np.median(confidence))


@pytest.fixture(scope="module")
def promising(tiny_encoder, grid, tmp_path_factory) -> str:
    """Make the tiny bundle with that grid."""
    return make_bundle(tiny_encoder, tmp_path_factory.mktemp("bundle") / "promising", guarantee=grid)


def test_rows_below_the_bundles_threshold_abstain_and_runs_resume(in_process, promising, grid, tmp_path):
    threshold = promise(grid, 0.95, 0.9).min_confidence
    assert 0.5 < threshold < 1
    write_shard(tmp_path / "in", "a.parquet", {"text": TEXTS[:300]})
    places = {"model": promising, "root": tmp_path / "in", "out": tmp_path / "out"}
    asked = {"target_accuracy": 0.95, "certainty": 0.9}
    plan = plan_folder(**places, **asked)
    assert f"--min-confidence {threshold!r} labels 50 % of rows like the 500 evaluation rows" in plan.describe()
    result = score_folder(**places, **asked)
    table = read_scored(tmp_path / "out")
    sure = np.array(table["confidence"].to_pylist(), np.float32) >= np.float32(threshold)
    assert 0 < sure.sum() < 300
    assert [label is not None for label in table["label"].to_pylist()] == sure.tolist()
    assert result.summary["status"]["abstained"] == (~sure).sum()
    assert result.summary["guarantee"] == promise(grid, 0.95, 0.9).to_json()
    assert f"--min-confidence {threshold!r} labels 50 %" in result.report()
    noted = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert [noted[key] for key in ("min_confidence", "target_accuracy", "certainty")] == [threshold, 0.95, 0.9]
    assert score_folder(**places, **asked).summary["run"]["units"] == 0
    write_shard(tmp_path / "in", "b.parquet", {"text": TEXTS[300:]})
    by_hand = score_folder(**places, min_confidence=threshold)
    assert (by_hand.summary["run"]["units"], by_hand.summary["units"]) == (1, 2)
    assert score_folder(**places, **asked).summary["run"]["units"] == 0
    assert verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out"), full=True)).exit_code == 0
    with pytest.raises(UserError, match=r"made with other settings .*min_confidence"):
        plan_folder(**places, target_accuracy=0.6)
    with pytest.raises(UserError, match=r"made with other settings .*min_confidence"):
        plan_folder(**places)


def test_without_a_target_nothing_is_noted_of_one(in_process, promising, tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": TEXTS[:3]})
    result = score_folder(promising, tmp_path / "in", tmp_path / "out")
    assert "guarantee" not in result.summary
    noted = json.loads((tmp_path / "out" / "_run.json").read_text())
    assert not {"target_accuracy", "certainty"} & noted.keys()
    assert read_run_file(str(tmp_path / "out")).run.target_accuracy is None


def test_what_cannot_be_promised_is_refused_before_any_work(promising, tiny_bundle, tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good"]})

    def refused(model: object, words: str, **settings: object) -> None:
        with pytest.raises(UserError, match=words):
            plan_folder(model, tmp_path / "in", tmp_path / "out", **{"target_accuracy": 0.95} | settings)

    refused(tiny_bundle, r"notes no guarantee\. Run sentiment-core evaluate --target-accuracy .* --min-confidence")
    refused(OLD / "bundle", "notes no guarantee")
    refused(promising, "cannot promise it: from 500 evaluation rows at most accuracy 0", target_accuracy=0.99)
    refused({"a": promising, "b": promising}, "--target-accuracy takes one model, and --model names a, b")
    refused(promising, "--target-accuracy and --min-confidence are both given", min_confidence=0.5)
    refused(promising, "--int8 changes labels", int8=True)
    refused(promising, "--target-accuracy is 1.0; expected a share above 0 and below 1", target_accuracy=1.0)
    refused(promising, "--certainty is 0.0; expected", certainty=0.0)
    assert not (tmp_path / "out").exists()


def test_the_certainty_alone_changes_nothing():
    assert ScoreSettings(model="m", input="i", out="o", certainty=0.9).min_confidence == 0
