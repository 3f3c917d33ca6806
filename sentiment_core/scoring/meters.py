"""Counters for Prometheus, on the endpoint that Ray opens on every node (`ray_sentiment_core_...` there)."""

from ray.util.metrics import Counter

from sentiment_core.scoring.task_table import STAGES, TaskRecord


class Meters:
    """The counters of one run; their tag `what` is the run's kind, "score" or "verify"."""

    def __init__(self, kind: str) -> None:
        """Register the counters for a run of this kind."""
        self.tags = {"what": kind}
        self.rows = _counter("rows_total", "rows done")
        self.failed = _counter("failed_units_total", "units that failed; a shard has one unit or more")
        self.tokens = _counter("tokens_total", "tokens computed, padding apart")
        self.padding = _counter("padding_tokens_total", "tokens of padding that were computed")
        self.seconds = _counter("stage_seconds_total", "seconds that tasks and actors were busy", "stage")

    def add(self, task: TaskRecord) -> None:
        """Add a task's record."""
        for unit in task.units:
            if unit.error:
                self.failed.inc(1, self.tags)
            elif unit.rows:
                self.rows.inc(unit.rows, self.tags)
        # Ray's counters refuse an increment of 0
        for counter, tokens in ((self.tokens, task.tokens), (self.padding, task.padding_tokens)):
            if tokens:
                counter.inc(tokens, self.tags)
        for stage in STAGES:
            if task.seconds[stage]:
                self.seconds.inc(task.seconds[stage], self.tags | {"stage": stage})


def _counter(name: str, description: str, *tags: str) -> Counter:
    return Counter(f"sentiment_core_{name}", description, ("what", *tags))
