"""The benchmark of distillation runs every arm with every number of layers, and resumes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO))

from benchmarks.distillation import DistillationSettings, format_table, list_runs, measure  # noqa: E402
from tests.conftest import sentences  # noqa: E402


@pytest.fixture
def small_settings(tiny_bundle, tiny_encoder, tmp_path) -> DistillationSettings:
    for seed, name in enumerate(("texts", "data", "eval", "test")):
        pq.write_table(sentences(60, seed), tmp_path / f"{name}.parquet")
    return DistillationSettings(
        name="tiny",
        teacher=tiny_bundle,
        texts=str(tmp_path / "texts.parquet"),
        data=str(tmp_path / "data.parquet"),
        eval_data=str(tmp_path / "eval.parquet"),
        test_data=str(tmp_path / "test.parquet"),
        model=tiny_encoder,
        layers=("1",),
        seeds=1,
        epochs=1,
        max_length=16,
        results=str(tmp_path),
    )


def test_every_arm_runs_with_every_number_of_layers(small_settings):
    runs = [(run["arm"], run["layers"]) for run in list_runs(small_settings)]
    assert runs == [(arm, layers) for layers in (None, 1) for arm in ("labels", "teacher", "both")]


def test_the_table_has_means_over_the_seeds_below_the_teacher():
    figures = {"agreement": 1.0, "ece": 0.1, "rows_per_second": 10.0}
    runs = [{"arm": "both", "layers": 3, "seed": seed, "accuracy": 0.5 + 0.2 * seed} | figures for seed in range(2)]
    report = {"teacher": {"accuracy": 0.9} | figures, "runs": runs}
    _, teacher, student = (" ".join(line.split()) for line in format_table(report).splitlines())
    assert teacher.startswith("(itself) all 0.9000 ± 0.0000 1.0000 ± 0.0000")
    assert student.startswith("both 3 0.6000 ± 0.1414 1.0000 ± 0.0000 0.1000 ± 0.0000 10.0000")


@pytest.mark.journey
def test_trainings_that_have_figures_are_skipped(small_settings, in_process, tmp_path):
    settings = replace(small_settings, layers=())
    first = measure(settings)
    path = tmp_path / "distillation-tiny.json"
    assert json.loads(path.read_text()) == first
    assert len(first["runs"]) == 3
    path.write_text(json.dumps(first | {"runs": first["runs"][:2]}))
    second = measure(settings)
    assert second["runs"][:2] == first["runs"][:2]
    assert second["runs"][2]["accuracy"] == first["runs"][2]["accuracy"]
    assert second["runs"][2]["seconds"] != first["runs"][2]["seconds"]
