"""The stream through Ray Data: its operators, its patience, and when it stops."""

import itertools
import threading
import time
from dataclasses import replace

import pyarrow as pa
import pytest
import ray
from ray.data._internal.logical.optimizers import get_execution_plan

from sentiment_core.runtime import preflight
from sentiment_core.runtime.task_guard import TaskGuard
from sentiment_core.scoring import outputs, stages, stream
from sentiment_core.scoring.job import claim_output_folder, score
from sentiment_core.scoring.plan import ScorePlan
from sentiment_core.scoring.records import RunFile
from sentiment_core.scoring.stream import Stream
from sentiment_core.scoring.tally import Tally
from sentiment_core.scoring.task_table import TaskRecord, TaskTable
from tests.scoring.runs import plan_folder, write_shard


@pytest.fixture
def plan(ray_here, tiny_bundle, tmp_path) -> ScorePlan:
    """A plan of three rows whose output folder is claimed."""
    write_shard(tmp_path / "corpus", "a.parquet", {"text": ["good", "bad", "fine"]})
    plan = plan_folder(tiny_bundle, tmp_path / "corpus", tmp_path / "out")
    preflight.check_writable(plan.output_folder)
    claim_output_folder(plan)
    return plan


def write_late(table: pa.Table, seconds: float, **arguments) -> pa.Table:
    time.sleep(seconds)
    return stages.write_outputs(table, **arguments)


def stream_of(plan: ScorePlan, last_stage=stages.write_outputs, workers: int = 1, deadline=None, **arguments) -> Stream:
    return Stream(plan.context, plan.bundle_files, last_stage, arguments, workers, "CPU", 60.0, deadline)


@pytest.mark.parametrize("kind", ["CPU", "GPU"])
def test_the_tokenizer_does_not_run_inside_the_actors(plan, kind, monkeypatch):
    """Ray Data fuses stages that ask for the same resources; the model would then wait for the tokenizer."""
    guard = TaskGuard.start(60.0)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    for workers in (1, 2):
        dataset = replace(stream_of(plan, workers=workers), kind=kind).dataset([plan.units_to_score], guard)
        operators = get_execution_plan(dataset._logical_plan)[0].dag.post_order_iter()
        kinds = ["InputDataBuffer", "TaskPoolMapOperator", "ActorPoolMapOperator", "TaskPoolMapOperator"]
        assert [type(operator).__name__ for operator in operators] == kinds


class RecordingStage(stages.ClassifyStage):
    """The stage, slow at first, which leaves the thread and the time of each call in place of the backend's name."""

    slow = True

    def __call__(self, table: pa.Table) -> pa.Table:
        started = time.monotonic()
        time.sleep(2.0 if self.slow else 0.0)
        self.slow = False
        task = TaskTable(super().__call__(table))
        return task.replace("", backend=f"{threading.get_ident()} {started} {time.monotonic()}").table


@pytest.mark.journey
def test_an_actor_with_two_calls_computes_one_at_a_time_in_one_thread(plan, tmp_path, monkeypatch):
    """As on GPUs: the second call is there to fetch and to store. Nor may Ray Data give up before the first ends."""
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 0.5)
    monkeypatch.setattr(stream, "ACTOR_CALLS", {"CPU": stream.ACTOR_CALLS["GPU"]})
    monkeypatch.setattr(stream, "ACTOR_TASKS", {"CPU": stream.ACTOR_TASKS["GPU"]})
    monkeypatch.setattr(stages, "ClassifyStage", RecordingStage)
    for number in range(20):
        write_shard(tmp_path / "corpus", f"{number}.parquet", {"text": ["good", "bad", f"word {number}"]})
    plan = plan_folder(plan.settings.model, tmp_path / "corpus", tmp_path / "out")
    blocks = stream_of(plan).blocks([[unit] for unit in plan.units_to_score], TaskGuard.start(60.0))
    records = [TaskRecord.from_table(block) for block in blocks]
    assert sorted(record.units[0].output for record in records) == sorted(unit.output for unit in plan.units_to_score)
    assert not any(record.lost or record.units[0].error for record in records)
    calls = [record.models[0].backend.split() for record in records]
    assert len({thread for thread, *_ in calls}) == 1
    intervals = sorted((float(started), float(stopped)) for _, started, stopped in calls)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(intervals))


def test_a_deadline_is_noticed_while_no_block_comes(plan, monkeypatch):
    monkeypatch.setattr(stream, "OVERTIME_S", 2)
    tally = Tally(plan.context.no_counts)
    late = stream_of(plan, write_late, deadline=time.monotonic(), seconds=300)
    late.run("score", plan.units_to_score, tally)
    assert (tally.totals.rows, tally.failed, tally.out_of_time) == (0, [], True)


def test_a_fault_of_all_shards_stops_the_run(ray_here, tiny_bundle, tmp_path, monkeypatch):
    """Nothing can be written, as on a full disk: folders are in the way."""
    monkeypatch.setattr(stream, "TASK_ROWS", {"CPU": 1})
    for i in range(120):
        write_shard(tmp_path / "in", f"{i:03}.parquet", {"text": ["good"]})
    plan = plan_folder(tiny_bundle, tmp_path / "in", tmp_path / "out")
    for unit in plan.units_to_score:
        (tmp_path / "out" / unit.output / "folder").mkdir(parents=True)
    outputs.write_run_file(plan.output_folder, RunFile(plan.run))
    (tmp_path / "out" / outputs.SUMMARY_FILE / "folder").mkdir(parents=True)
    result = score(plan)
    assert result.exit_code == 1
    assert 50 <= len(result.summary["failed_shards"]) < 120
    assert "stopped: the last 5" in result.report()
    assert "Is a directory" in result.report()
