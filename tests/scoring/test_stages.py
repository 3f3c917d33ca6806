"""The stages, called one by one."""

import os

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from sentiment_core.runtime.task_guard import TaskGuard
from sentiment_core.scoring import stages
from sentiment_core.scoring.plan import ScorePlan
from sentiment_core.scoring.task_table import TaskTable
from tests.scoring.runs import plan_folder, write_shard


@pytest.fixture
def plan(ray_here, tiny_bundle, tmp_path, monkeypatch) -> ScorePlan:
    """A plan of two shards of three rows."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # a stage sets it, elsewhere in a process of its own
    for name in ("a", "b"):
        write_shard(tmp_path / "corpus", f"{name}.parquet", {"text": ["good", "bad", "fine day"]})
    return plan_folder(tiny_bundle, tmp_path / "corpus", tmp_path / "out")


@pytest.fixture
def guard(ray_here) -> TaskGuard:
    return TaskGuard.start(60.0)


@pytest.fixture
def stage(plan, guard) -> stages.ClassifyStage:
    return stages.ClassifyStage(
        plan.models,
        {"": ray.put(plan.bundle_files[""])},
        {"": {"threads": 1, "backend": "torch", "on_cpu": True}},
        guard,
    )


def tokenized(plan: ScorePlan, guard: TaskGuard) -> pa.Table:
    table = TaskTable.build(plan.units_to_score).table
    return stages.read_and_tokenize(table, plan.context, {"": ray.put(plan.bundle_files[""])}, guard)


class Exited(BaseException):
    """The process would have ended."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine whose GPU does not work")
def test_a_process_whose_gpu_is_broken_ends(plan, guard, stage, monkeypatch):
    def fail(*_):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    def leave(code: int):
        raise Exited

    monkeypatch.setattr(os, "_exit", leave)
    stage.engines[""].backend.encoder.register_forward_pre_hook(fail)
    errors = TaskTable(stage(tokenized(plan, guard))).errors
    assert all("illegal memory access" in error for error in errors)  # a CPU is not broken by that
    stage.engines[""].device = torch.device("cuda")  # which torch cannot use here
    with pytest.raises(Exited):
        stage(tokenized(plan, guard))


def test_reading_leaves_each_text_of_the_task_once_the_longest_first(plan, guard):
    tokens = TaskTable(tokenized(plan, guard)).tokens("")
    assert tokens.lists.lengths.tolist() == [4, 3, 3]
    assert tokens.inverse.tolist() == [1, 2, 0, 1, 2, 0]
    assert tokens.lengths.tolist() == [3, 3, 4] * 2


def test_a_unit_that_cannot_be_computed_leaves_the_others_alone(plan, guard, stage, tmp_path):
    write_shard(tmp_path / "corpus", "b.parquet", {"text": ["awful", "bad", "fine day"]})
    plan = plan_folder(plan.settings.model, tmp_path / "corpus", tmp_path / "out")
    table = tokenized(plan, guard)
    expected = TaskTable(stage(table))
    awful = TaskTable(table).tokens("").select(np.array([3])).lists.ids[1]

    def refuse(module, inputs):
        if (inputs[0] == awful).any():
            raise ValueError("awful")

    stage.engines[""].backend.encoder.register_forward_pre_hook(refuse)
    task = TaskTable(stage(table))
    assert task.errors == ["", "ValueError: awful"]
    assert task.lengths("").tolist() == expected.lengths("")[:3].tolist()
    np.testing.assert_allclose(task.probabilities("", 2), expected.probabilities("", 2)[:3], atol=1e-3)
