"""The tally of a scoring run: what its tasks add up to, and when it has to stop."""

import json
import time
from dataclasses import dataclass, field

from sentiment_core.data.shards import FailedShard, Unit
from sentiment_core.model.naming import with_name
from sentiment_core.scoring.records import Choices
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.scoring.task_table import STAGES, ModelRecord, TaskRecord

# Failures in a row until the run stops, since the same cause must fail everything: shards before any unit succeeded,
# units afterwards. Tasks run in random order, so that a few bad neighbors do not look like it. A lost task, which took
# its time for each attempt, counts for ten.
FIRST_FAILURES, LATER_FAILURES, LOST_FAILURES = 50, 500, 10


@dataclass
class ModelTally:
    """The sum of one model's work on a run's tasks."""

    choices: dict[str, str] = field(default_factory=dict)  # of backend and number type, the first one of each chip
    margins: dict[str, str] = field(
        default_factory=dict
    )  # by choice, how much faster than others it was measured to be
    backends: set[str] = field(default_factory=set)
    tokens: int = 0
    padding_tokens: int = 0

    def add(self, record: ModelRecord) -> None:
        """Add the model's work on a task."""
        chip, choice, margin = record.choice
        self.choices.setdefault(chip, choice)
        if margin:
            self.margins.setdefault(choice, margin)
        self.backends.add(record.backend)
        self.tokens += record.tokens
        self.padding_tokens += record.padding_tokens

    @property
    def computed_by(self) -> list[str]:
        """The backends, and how much faster than others they were measured to be."""
        return [*sorted(self.backends), *sorted(self.margins.values())]

    @property
    def padding_share(self) -> float:
        """The share of padding in what was computed."""
        return self.padding_tokens / max(1, self.tokens + self.padding_tokens)


@dataclass
class Tally:
    """The sum of a run's task records."""

    totals: PassCounts  # of the units done
    scored_before: bool = False  # the output folder held outputs before this run
    started: float = field(default_factory=time.monotonic)
    failed: list[FailedShard] = field(default_factory=list)  # one for each failed unit
    settled: set[str] = field(default_factory=set)  # outputs of the units that are done or failed
    failed_shards_in_a_row: set[str] = field(default_factory=set)
    failed_units_in_a_row: int = 0
    lost_tasks_in_a_row: int = 0
    last_failure: str = ""
    broken: str = ""  # why nothing can be computed at all
    out_of_time: bool = False
    busy_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    models: dict[str, ModelTally] = field(default_factory=dict)  # by the model's name
    first_task_seconds: float | None = None  # until the first task was done, start-up included
    first_task_rows: int = 0  # those that it computed
    # outputs of gone shards, and those of this run that share texts with them
    found_again: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give each model a tally of its own."""
        self.models = {name: self.models.get(name, ModelTally()) for name in self.totals.models}

    @property
    def choices(self) -> Choices:
        """The choices of backend and number type, by the model's name and by chip."""
        return {name: model.choices for name, model in self.models.items()}

    @property
    def margins(self) -> list[str]:
        """The measured lead of the choices over others, for people."""
        return [with_name(name, margin) for name, model in self.models.items() for margin in model.margins.values()]

    @property
    def computed_by(self) -> list[str]:
        """The backends, and how much faster than others they were measured to be, for people."""
        return [with_name(name, text) for name, model in self.models.items() for text in model.computed_by]

    @property
    def padding_share(self) -> float:
        """The share of padding in what all models computed."""
        models = self.models.values()
        padding = sum(model.padding_tokens for model in models)
        return padding / max(1, padding + sum(model.tokens for model in models))

    def add(self, task: TaskRecord) -> None:
        """Add a task's record."""
        if self.first_task_seconds is None:
            self.first_task_seconds = time.monotonic() - self.started
            self.first_task_rows = task.computed_rows
        if task.lost:
            self.lost_tasks_in_a_row += 1
            self.last_failure = task.units[-1].error
            return
        for record in task.models:
            self.models[record.model].add(record)
        for stage in STAGES:
            self.busy_seconds[stage] += task.seconds[stage]
        for unit in task.units:
            self.settled.add(unit.output)
            if unit.error:
                self.last_failure = unit.error
                self.failed.append(FailedShard(unit.source, unit.error))
                self.failed_shards_in_a_row.add(unit.source)
                self.failed_units_in_a_row += 1
            else:
                self.totals = self.totals.merge(PassCounts.from_json(json.loads(unit.counts)))
                for path in json.loads(unit.replaced or "[]"):
                    self.found_again.setdefault(path, []).append(unit.output)
                self.failed_shards_in_a_row.clear()
                self.failed_units_in_a_row = self.lost_tasks_in_a_row = 0

    def unsettled(self, units: list[Unit]) -> list[Unit]:
        """Return those of a run's units that no record tells of; none if the run stopped."""
        return [] if self.stopped or self.out_of_time else [unit for unit in units if unit.output not in self.settled]

    @property
    def stopped(self) -> str:
        """Why the run must stop; empty if it need not."""
        if self.broken:
            return self.broken
        lost = LOST_FAILURES * self.lost_tasks_in_a_row
        none_ever_succeeded = not self.scored_before and not self.totals.units
        all_fail = none_ever_succeeded and len(self.failed_shards_in_a_row) + lost >= FIRST_FAILURES
        if not all_fail and self.failed_units_in_a_row + lost < LATER_FAILURES:
            return ""
        parts = []
        if self.failed_units_in_a_row:
            parts.append(f"{self.failed_units_in_a_row:,} units of {len(self.failed_shards_in_a_row):,} shards")
        if self.lost_tasks_in_a_row:
            parts.append(f"{self.lost_tasks_in_a_row:,} tasks")
        return f"the last {' and '.join(parts)} all failed; the latest error: {self.last_failure}"

    def rows_per_second_after(self, rows: int, seconds: float) -> float | None:
        """Return the rate after the first task, of all computed `rows` in `seconds`; None if that task was all."""
        if self.first_task_seconds is None or rows == self.first_task_rows:
            return None
        return (rows - self.first_task_rows) / (seconds - self.first_task_seconds)
