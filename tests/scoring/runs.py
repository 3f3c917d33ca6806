"""Write corpora, score them and read the result, for tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import ray
import torch

from sentiment_core.data.shards import Unit
from sentiment_core.runtime import hardware
from sentiment_core.runtime.task_guard import TaskGuard
from sentiment_core.scoring import job, rescore, stages
from sentiment_core.scoring.job import ScoreResult, score
from sentiment_core.scoring.plan import ScorePlan, plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.scoring.stream import Stream
from sentiment_core.scoring.task_table import TaskTable


def write_shard(root: Path, name: str, columns: dict[str, Any] | pa.Table, **options: Any) -> None:
    """Write a Parquet file below `root`."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), root / name, **options)


def plan_folder(model: object, root: object, out: object, **settings: Any) -> ScorePlan:
    """Plan the scoring of the folder `root` into `out`; `model` is a path, or paths by the models' names."""
    models = {name: str(path) for name, path in model.items()} if isinstance(model, dict) else str(model)
    return plan_scoring(ScoreSettings(model=models, input=str(root), out=str(out), **settings))


def score_folder(model: object, root: object, out: object, **settings: Any) -> ScoreResult:
    """Score the folder `root` into `out`."""
    return score(plan_folder(model, root, out, **settings))


def read_scored(out: object, prefix: str = "") -> pa.Table:
    """Read all outputs, ordered by source and row; `prefix` is that of the scored columns."""
    table = pads.dataset(str(out), partitioning="hive").to_table()
    return table.sort_by([(f"{prefix}source", "ascending"), (f"{prefix}row", "ascending")])


class StreamInProcess(Stream):
    """The same stages one after another in this process, which starts ten seconds sooner than actors of Ray Data.

    For tests of what is scored. How Ray Data runs the stages is tested in `test_stream` and `test_job`.
    """

    # shared by all on purpose: a model loads once, and so does what counts attempts
    loaded: ClassVar[dict[tuple, stages.ClassifyStage]] = {}
    guards: ClassVar[list[TaskGuard]] = []

    def start_guard(self) -> TaskGuard:
        """Start a guard, or return the one of an earlier run."""
        if not self.guards:
            self.guards.append(super().start_guard())
        return self.guards[0]

    def noted(self, classify: stages.ClassifyStage) -> bool:
        """Return whether the engines compute as earlier runs noted it, where they did."""
        chosen = {name: (engine.chip, str(engine.choice)) for name, engine in classify.engines.items()}
        return all(self.choices.get(name, {}).get(chip, choice) == choice for name, (chip, choice) in chosen.items())

    def blocks(self, tasks: list[list[Unit]], guard: TaskGuard) -> Iterator[pa.Table]:
        """Yield the tasks' records as tables."""
        files = {name: ray.put(content) for name, content in self.bundle_files.items()}
        engines = self.engine_settings([])
        # what a folder notes wins; else nothing is measured or converted
        chip, plain = hardware.chip_id(torch.device("cpu")), "torch float32"
        for model in self.context.models:
            usual = f"small: {plain}; large: {plain}" if model.is_cascade else plain
            engines[model.name]["choices"] = {chip: usual} | dict(engines[model.name]["choices"])
        settings = [(name, key, value) for name, own in engines.items() for key, value in own.items()]
        key = (self.context.run.bundle, *(setting for setting in settings if setting[1] != "choices"))
        classify = self.loaded.get(key)
        if classify is None or not self.noted(classify):
            classify = self.loaded[key] = stages.ClassifyStage(self.context.models, files, engines, guard)
        classify.guard = guard
        for units in tasks:
            table = stages.read_and_tokenize(TaskTable.build(units).table, self.context, files, guard)
            yield self.last_stage(classify(table), context=self.context, guard=guard, **self.last_stage_arguments)


@contextlib.contextmanager
def stages_in_process() -> Iterator[None]:
    """Run the stages of scoring and of verifying in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")  # a stage sets it, elsewhere in a process of its own
        patch.setattr(job, "Stream", StreamInProcess)
        patch.setattr(rescore, "Stream", StreamInProcess)
        yield
