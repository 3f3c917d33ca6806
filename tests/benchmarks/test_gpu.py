"""The GPU benchmark takes all its steps on a CPU, in small, without Ray, and says what a CPU cannot show."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sentiment_core.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu import STEPS, GpuBenchmarkSettings, Runner, judge
from gpu_steps import attention, correctness
from gpu_steps.bench import NEEDS_GPU, Bench

REPO = Path(__file__).resolve().parents[2]
NEED_A_GPU = {
    "machine": {"gpu", "driver", "nvml"},
    "ceilings": {"copy from pinned memory"},
    "memory": {"in a task", "when loading"},
    "training": {"waits in a step", "little memory"},
}


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Run the benchmark where Ray cannot be imported and no network is allowed to hubs."""
    ray = folder / "ray.py"
    ray.write_text("raise ImportError('a bare GPU machine has no Ray')\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(REPO)]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(REPO / "benchmarks" / "gpu.py"), "--small", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    """All steps, and the report that they leave."""
    folder = tmp_path_factory.mktemp("gpu")
    done = run(folder, "--out", str(folder / "results" / "gpu.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "results" / "gpu.json").read_text())
    lines = [json.loads(line) for line in (folder / "results" / "gpu.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(STEPS)
    assert {line.pop("step"): line for line in lines} == report["steps"]
    return report


def numbers(value) -> list[float]:
    """List all numbers in a JSON value."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.journey
@pytest.mark.slow
def test_all_steps_run_on_a_cpu(report):
    assert [record["ended"] for record in report["steps"].values()] == ["done"] * len(STEPS)
    for step, record in report["steps"].items():
        measured = {name: figures for name, figures in record["figures"].items() if "skipped" not in figures}
        failed = {name: figures["failed"] for name, figures in measured.items() if "failed" in figures}
        assert not failed, step
        assert all(np.isfinite(numbers(measured)))
        skipped = {name for name, figures in record["figures"].items() if figures.get("skipped") == NEEDS_GPU}
        assert NEED_A_GPU.get(step, set()) <= skipped
        assert measured or skipped
    assert report["wrong"] == []
    assert report["checked"] > 40


@pytest.mark.journey
@pytest.mark.slow
def test_the_figures_are_those_of_the_engine_and_the_loop(report):
    figures = {step: record["figures"] for step, record in report["steps"].items()}
    families = figures["families"]
    for family in ("bert", "distilbert", "roberta", "xlm-roberta", "electra", "albert", "modernbert"):
        assert families[family]["backend"].startswith("packed")
        assert families[family]["states_error"] < 0.1
    assert "packed: this family brings its own attention" in families["mpnet"]["passed_over"]
    for facts in families.values():
        assert facts["largest_difference"] < facts["lost_isolation_difference"]
    assert figures["attention"]["few rows, heads of 26, float32"]["lost_isolation_error"] > 0.1
    task = figures["engine"]["minilm-l6, packed: sentences"]
    assert task["rows"] == 96
    assert 0 < task["launch_seconds"] <= task["encoder_seconds"]
    assert 3 < task["tokens_per_second"] / task["rows_per_second"] < 64
    assert set(figures["engine"]["minilm-l6, packed: requests"]["milliseconds"]) == {"1", "8", "64"}
    assert len(figures["engine"]["minilm-l6, packed: budgets"]["rows_per_second"]) == 4
    assert len(figures["engine"]["minilm-l6, packed: kernels"]["top"]) == 12
    assert figures["compiled"]["minilm-l6"]["graphs"] >= 1
    assert figures["graphs"]["minilm-l6: step of 512, filled up"]["largest_difference"] == 0
    assert figures["peers"]["minilm-l6: engine"]["same_labels"] > 0.9
    resumption = figures["training"]["resumption"]
    assert 0 < resumption["broken_at_step"] < resumption["steps"] == 24
    assert figures["training"]["loop, batch of 2"]["last_loss"] > 0
    two = figures["sizes"]["two engines"]
    assert two["rows_per_second"] == sum(two["of_each"]) > max(two["of_each"]) > 0


def attend_to_all(query, key, value, offsets, longest, scale):
    """Attend to the tokens of all rows."""
    rows = torch.tensor([0, len(query)], dtype=torch.int32)
    return attention.attend_packed(query, key, value, rows, len(query), scale)


def attend_without_the_last(query, key, value, offsets, longest, scale):
    """Leave the last row's states as they were in memory."""
    states = attention.attend_packed(query, key, value, offsets, longest, scale)
    states[offsets[-2] :] = torch.nan
    return states


@pytest.mark.parametrize(
    ("attend", "right"),
    [(attention.attend_packed, True), (attend_to_all, False), (attend_without_the_last, False)],
)
def test_the_check_of_attention_sees_lost_isolation_and_unwritten_numbers(attend, right):
    lengths = np.array([1, 2, 0, 15, 16, 40])
    facts = attention.compare(attend, lengths, 2, 16, torch.float32, torch.device("cpu"))
    assert facts["right"] == right
    if right:
        assert facts["error"] < 1e-5 < 0.1 < facts["lost_isolation_error"]


def test_probabilities_that_a_lost_isolation_would_move_as_much_are_wrong():
    expected = np.full((4, 2), 0.5)
    moved = expected + np.array([[0.02, -0.02]])
    assert correctness.judge(moved, expected, lost_isolation=0.2)["right"]
    assert not correctness.judge(moved, expected, lost_isolation=0.04)["right"]
    assert not correctness.judge(expected + 0.1, expected, lost_isolation=1.0)["right"]
    assert not correctness.judge(expected * np.nan, expected, lost_isolation=1.0)["right"]


def test_a_failed_measurement_leaves_its_reason_and_the_next_one_goes_on(tmp_path):
    bench = Bench(str(tmp_path), is_small=True, encoder=None)
    bench.begin(60.0)
    assert bench.measure("division", lambda: 1 / 0) is None
    assert bench.measure("sum", lambda: {"result": 2}) == {"result": 2}
    bench.begin(0.0)
    assert bench.measure("late", lambda: {"result": 3}) is None
    figures = json.loads(bench.file.read_text())
    assert figures == {"late": {"skipped": "no time left for it in this step"}}


@pytest.mark.slow
def test_a_step_that_hangs_leaves_what_it_had(tmp_path, monkeypatch):
    """The next step runs in a new process."""
    settings = GpuBenchmarkSettings(small=True, out=str(tmp_path / "gpu.json"), only=("machine", "engine", "memory"))
    monkeypatch.setitem(STEPS, "engine", replace(STEPS["engine"], seconds=0.1))  # which takes longer
    (tmp_path / "run").mkdir()
    runner = Runner(settings, str(tmp_path / "run"))
    try:
        runner.run()
    finally:
        runner.close()
    assert [record["ended"] for record in runner.records.values()] == ["done", "no answer within 1 s", "done"]


def test_what_is_wrong_is_named():
    records = {"families": {"figures": {"bert": {"right": True}, "albert": {"right": False}, "x": {"failed": "so"}}}}
    assert judge(records) == (["families: albert"], 2)


def test_a_wrong_name_is_refused():
    with pytest.raises(UserError, match="--only is 'engine of the future'; expected some of machine, ceilings"):
        GpuBenchmarkSettings(only=("engine of the future",))
    assert GpuBenchmarkSettings(jobs=True, only=("score job",)).table.keys() == {"score job", "train job"}
