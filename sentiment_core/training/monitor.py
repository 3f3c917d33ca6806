"""Hear from the workers how far a training is.

The monitor is a process of its own. It imports this file, which therefore imports neither torch nor transformers: that
would take seconds of a CPU on which the workers start.
"""

from typing import Any

import ray

from sentiment_core.runtime import cluster


class Monitor:
    """An actor that keeps what the first worker reports until the driver asks."""

    def __init__(self) -> None:
        self.rows_before: int | None = None  # done when the run began or was resumed
        self.rows = 0
        self.curves: list[tuple[int, dict[str, float]]] = []  # steps done, values by name

    def put(self, rows: int, step: int, values: dict[str, float]) -> None:
        """Note rows and steps done, and values of the curves."""
        if self.rows_before is None:
            self.rows_before = rows
        self.rows = rows
        if values:
            self.curves.append((step, values))

    def take(self) -> tuple[int, int, list[tuple[int, dict[str, float]]]]:
        """Return rows done at the beginning and now, and the curves since the last call."""
        curves, self.curves = self.curves, []
        return self.rows_before or 0, self.rows, curves


def start_monitor() -> Any:
    """Start the monitor's actor on the driver's node."""
    return ray.remote(num_cpus=0)(Monitor).options(scheduling_strategy=cluster.pin_to_this_node()).remote()
