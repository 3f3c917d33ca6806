"""The benchmark of suspected labels flips as many as it says, and measures lists whose precision is known."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO))

from benchmarks import suspects  # noqa: E402
from sentiment_core.model.objective import SingleLabel  # noqa: E402
from tests.conftest import sentences  # noqa: E402


def test_labels_are_flipped_evenly_to_the_others():
    labels = np.random.default_rng(0).integers(0, 3, 30_000)
    changed, is_flipped = suspects.flip(labels, 3, 0.2, np.random.default_rng(1))
    assert is_flipped.sum() == 6_000
    assert ((changed != labels) == is_flipped).all()
    steps = np.bincount((changed - labels)[is_flipped] % 3, minlength=3)
    assert steps[0] == 0
    assert steps[1:] == pytest.approx(3_000, rel=0.1)


def test_a_sure_model_finds_all_flipped_labels_and_an_ignorant_one_few():
    labels = np.random.default_rng(0).integers(0, 3, 1_000)
    sure = np.where(np.eye(3, dtype=bool)[labels], 0.8, 0.1)
    best = suspects.simulate(SingleLabel(), sure, labels, 0.05, [20, 200], 5, 0)
    assert (best["accuracy"], best["flipped"], best["suspects"], best["flipped_in_list"]) == (1, 50, 50, 1)
    assert [(part["listed"], part["precision"]) for part in best["first"]] == [(20, 1), (50, 1)]
    ignorant = np.random.default_rng(1).dirichlet([1, 1, 1], 1_000)
    worst = suspects.simulate(SingleLabel(), ignorant, labels, 0.05, [200], 50, 0)
    (first,) = worst["first"]
    assert first["precision"] == pytest.approx(first["random_precision"], abs=0.02)
    assert first["random_precision"] == 0.05
    assert first["best_precision"] == 0.25


@pytest.mark.slow
def test_results_are_added_by_name(tiny_bundle, tmp_path, monkeypatch, capsys):
    pq.write_table(sentences(100, seed=3), tmp_path / "a.parquet")
    results = tmp_path / "results.json"
    results.write_text('{"before": {}}')
    flags = ["--data", tmp_path / "a.parquet", "--model", tiny_bundle, "--name", "mine", "--first", "10"]
    monkeypatch.setattr(sys, "argv", ["suspects.py", *map(str, flags), "--results", str(results)])
    suspects.main()
    content = json.loads(results.read_text())
    assert list(content) == ["before", "mine"]
    assert (content["mine"]["rows"], content["mine"]["flipped"], content["mine"]["draws"]) == (100, 5, 20)
    assert [part["rows"] for part in content["mine"]["first"]] == [10]
    assert "precision" in capsys.readouterr().out
