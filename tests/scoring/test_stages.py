"""The stages, called one by one."""

import os

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
        write_shard(tmp_path / "corpus", f"{name}.parquet", {"text": ["good", "bad", "fine"]})
    return plan_folder(tiny_bundle, tmp_path / "corpus", tmp_path / "out")


@pytest.fixture
def guard(ray_here) -> TaskGuard:
    return TaskGuard.start(60.0)


@pytest.fixture
def stage(plan, guard) -> stages.ClassifyStage:
    return stages.ClassifyStage(ray.put(plan.bundle_files), {"threads": 1, "backend": "torch", "on_cpu": True}, guard)


def tokenized(plan: ScorePlan, guard: TaskGuard) -> pa.Table:
    table = TaskTable.build(plan.units_to_score).table
    return stages.read_and_tokenize(table, plan.context, ray.put(plan.bundle_files), guard)


class Exited(BaseException):
    """The process would have ended."""


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine whose GPU does not work")
def test_a_process_whose_gpu_is_broken_ends(plan, guard, stage, monkeypatch):
    def fail(*_):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    def leave(code: int):
        raise Exited

    monkeypatch.setattr(os, "_exit", leave)
    stage.engine.backend.encoder.register_forward_pre_hook(fail)
    errors = TaskTable(stage(tokenized(plan, guard))).errors
    assert all("illegal memory access" in error for error in errors)  # a CPU is not broken by that
    stage.engine.device = torch.device("cuda")  # which torch cannot use here
    with pytest.raises(Exited):
        stage(tokenized(plan, guard))
