"""Counters for Prometheus, on the endpoint that Ray opens on every node (`ray_sentiment_core_...` there)."""

from ray.util.metrics import Counter

from sentiment_core.scoring.stages import STAGES


class Meters:
    """Of a run of the stream; `what` it is ("score", "verify") is a label of each counter."""

    def __init__(self, what: str) -> None:
        self.what = {"what": what}
        self.rows = _counter("rows_total", "rows done")
        self.failed = _counter("failed_units_total", "units that failed, of which each shard has one or more")
        self.tokens = _counter("tokens_total", "tokens computed, padding apart")
        self.padding = _counter("padding_tokens_total", "tokens computed for nothing")
        self.seconds = _counter("stage_seconds_total", "seconds that tasks and actors were busy", "stage")

    def add(self, records: list[dict]) -> None:
        """A task's records, as `stages` makes them."""
        for record in records:
            if record["error"]:
                self.failed.inc(1, self.what)
            elif record["rows"]:
                self.rows.inc(record["rows"], self.what)
            for counter, name in ((self.tokens, "tokens"), (self.padding, "padding_tokens")):
                if record[name]:
                    counter.inc(record[name], self.what)
            for stage in STAGES:
                if record["seconds"][stage]:
                    self.seconds.inc(record["seconds"][stage], self.what | {"stage": stage})


def _counter(name: str, description: str, *tags: str) -> Counter:
    return Counter(f"sentiment_core_{name}", description, ("what", *tags))
