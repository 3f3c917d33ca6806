"""Where the curves of a training are logged while it runs, besides the report in its bundle: TensorBoard and MLflow."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import describe_error

MLFLOW_ADDRESS = "MLFLOW_TRACKING_URI"  # the environment's variable
MLFLOW_RUN = "mlflow_run.txt"  # the file of a run's id


class Tracker(Protocol):
    def log(self, step: int, values: dict[str, float]) -> None:
        """Values by name, after this many optimiser steps."""

    def end(self, done: bool) -> None:
        """Nothing comes after this; `done` unless the training broke off."""


class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, folder: str) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(folder)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self, done: bool) -> None:
        self.writer.close()


class MlFlow:
    """A run on the server of MLFLOW_TRACKING_URI, in the experiment that MLflow's own variables name. A training that
    goes on goes on with its run, whose id is kept in the folder `work`."""

    def __init__(self, settings: dict[str, Any], work: str) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # within seconds, not minutes
        try:
            import mlflow  # ten seconds
        except ImportError:
            raise UserError(f"{MLFLOW_ADDRESS} is set, but mlflow is missing; the extra `mlflow` brings it") from None
        self.mlflow = mlflow
        place = storage.join(work, MLFLOW_RUN)
        known = storage.read_file(place).decode() if storage.exists(place) else None
        name = storage.absolute(settings["out"]).rpartition("/")[2]
        self.run = mlflow.start_run(run_id=known, run_name=None if known else name).info.run_id
        if not known:
            storage.write_file(place, self.run.encode())
            mlflow.log_params(settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        self.mlflow.log_metrics(values, step=step, run_id=self.run)  # runs are a thread's: name it

    def end(self, done: bool) -> None:
        self.mlflow.end_run("FINISHED" if done else "KILLED")


def wanted(settings: dict[str, Any], work: str, also: Tracker | None = None) -> dict[str, Callable[[], Tracker]]:
    """By name, what makes the trackers that a training was asked to log to."""
    found: dict[str, Callable[[], Tracker]] = {"Ray Tune": lambda: also} if also else {}
    if settings["tensorboard"]:
        found["TensorBoard"] = lambda: TensorBoard(settings["tensorboard"])
    if os.environ.get(MLFLOW_ADDRESS):
        found["MLflow"] = lambda: MlFlow(settings, work)
    return found


@contextlib.contextmanager
def logging_to(makers: dict[str, Callable[[], Tracker]]) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Gives `log(step, values)`, for all of them. One that fails is told of and left out from there on: no training is
    lost for the sake of its curves."""
    trackers: dict[str, Tracker] = {}

    def each(names: Iterable[str], what: Callable[[str], None]) -> None:
        for name in list(names):
            try:
                what(name)
            except Exception as error:
                trackers.pop(name, None)
                print(
                    f"train: nothing is logged to {name} from here on: {describe_error(error)[:200]}", file=sys.stderr
                )

    each(makers, lambda name: trackers.update({name: makers[name]()}))
    try:
        yield lambda step, values: each(trackers, lambda name: trackers[name].log(step, values))
    except BaseException:
        each(trackers, lambda name: trackers[name].end(False))
        raise
    each(trackers, lambda name: trackers[name].end(True))
