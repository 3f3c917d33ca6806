"""The benchmark of guarantees on a population whose best threshold is known."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO))

from benchmarks.guarantee import find_best_share, simulate  # noqa: E402


def test_the_best_threshold_keeps_equal_confidences_together():
    confidence = np.float32([0.9, 0.8, 0.8, 0.7, 0.6])
    is_right = np.array([True, True, False, True, False])
    assert find_best_share(confidence, is_right, 1.0) == pytest.approx(0.2)
    assert find_best_share(confidence, is_right, 0.75) == pytest.approx(0.8)
    assert find_best_share(confidence, ~is_right, 0.75) == 0


def test_draws_without_a_threshold_do_not_count_as_held():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20_000).astype(np.float32)
    is_right = rng.random(20_000) < confidence
    few = simulate(confidence, is_right, 20, 0.9, 0.95, 20, 0)
    assert (few["without_threshold"], few["held"], few["mean_share_labelled"]) == (1, None, None)
    assert few["held_of_all_draws"] == 0
    many = simulate(confidence, is_right, 2000, 0.9, 0.95, 100, 0)
    assert many["without_threshold"] < 0.5
    assert many["held"] >= 0.95
    assert many["held_of_all_draws"] == pytest.approx(many["held"] * (1 - many["without_threshold"]))
    assert 0 < many["mean_share_labelled"] < many["best_share_labelled"] == pytest.approx(0.4, abs=0.05)


@pytest.mark.slow
def test_results_are_added_by_name(tmp_path):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 1000).astype(np.float32)
    np.savez(tmp_path / "p.npz", confidence=confidence, is_right=rng.random(1000) < confidence)
    results = tmp_path / "results.json"
    results.write_text('{"before": {}}')
    flags = ["--predictions", tmp_path / "p.npz", "--name", "mine", "--rows", "400", "--targets", "0.8"]
    script = [sys.executable, "benchmarks/guarantee.py", *flags, "--draws", "5", "--results", results]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    subprocess.run([*map(str, script)], cwd=REPO, env=environment, check=True, capture_output=True, timeout=300)
    content = json.loads(results.read_text())
    assert list(content) == ["before", "mine"]
    (line,) = content["mine"]["draws_of"]
    assert (line["rows"], line["target"], line["draws"]) == (400, 0.8, 5)
