"""The benchmark of cascades measures those it makes on rows that did not choose them."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO))

from benchmarks.cascades import AnsweredRows, CascadesSettings, format_table, measure  # noqa: E402
from tests.cascades import make_models  # noqa: E402


def test_a_row_is_lost_if_only_the_large_model_gets_it_right_and_the_small_one_keeps_it():
    confidence = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    small, large = np.array([True, False, False, True]), np.array([True, True, False, False])
    rows = AnsweredRows(confidence, small, large, small == large)
    assert rows.measure_share(0.0) == {"share": 0.0, "accuracy": 0.5, "loss": 0.25, "disagreement": 0.5}
    assert rows.measure_share(0.5) == {"share": 0.5, "accuracy": 0.25, "loss": 0.25, "disagreement": 0.25}
    assert rows.measure_share(1.0)["accuracy"] == 0.5


@pytest.mark.journey
def test_cascades_are_made_measured_and_timed(ray_here, packaged_encoder, tmp_path):
    models = make_models(packaged_encoder, tmp_path)
    rows = pq.read_table(models.data)
    pq.write_table(rows.slice(0, 400), tmp_path / "data.parquet")
    pq.write_table(rows.slice(400), tmp_path / "test.parquet")
    settings = CascadesSettings(
        name="tiny",
        small=models.small,
        large=models.large,
        data=str(tmp_path / "data.parquet"),
        test_data=str(tmp_path / "test.parquet"),
        corpus=str(tmp_path / "test.parquet"),
        max_losses=("0.1", "0.001"),
        rounds=1,
        results=str(tmp_path),
    )
    report = measure(settings)
    assert json.loads((tmp_path / "cascades-tiny.json").read_text()) == report
    assert report["test_rows"] == 200
    by_labels, too_few, by_agreement, _ = report["promises"]
    assert by_labels["rows"] == by_agreement["rows"] == 400
    assert 0 < by_labels["share"] < 1
    assert by_labels["loss"] < 0.1
    assert by_agreement["share"] > by_labels["share"]
    assert "rows" in too_few["refused"]
    assert list(report["jobs"]) == ["small", "large", "--max-loss 0.1"]
    assert report["jobs"]["--max-loss 0.1"]["escalated_share"] == pytest.approx(by_labels["share"])
    assert "--max-loss 0.1 by labels: share" in format_table(report)
