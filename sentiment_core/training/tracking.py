"""Log the curves of a training while it runs: TensorBoard and MLflow."""

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
    """A place where curves are logged."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log values by name, after this many optimizer steps."""

    def end(self, done: bool) -> None:
        """Finish; `done` unless the training was stopped."""


class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, folder: str) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(folder)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values at once."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def end(self, done: bool) -> None:
        """Close the files."""
        self.writer.close()


class MlFlow:
    """A run on the server of MLFLOW_TRACKING_URI, in the experiment that MLflow's own variables name.

    A resumed training resumes its run, whose id is kept in the training's folder.
    """

    def __init__(self, settings: dict[str, Any], folder: str) -> None:
        """Start or resume the run. `folder`: path or URI of the training's folder."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # fail within seconds, not minutes
        try:
            import mlflow  # ten seconds
        except ImportError:
            raise UserError(f"{MLFLOW_ADDRESS} is set, but mlflow is missing. Install the extra `mlflow`.") from None
        self.mlflow = mlflow
        id_path = storage.join(folder, MLFLOW_RUN)
        run_id = storage.read_file(id_path).decode() if storage.exists(id_path) else None
        name = storage.absolute(settings["out"]).rpartition("/")[2]
        self.run = mlflow.start_run(run_id=run_id, run_name=None if run_id else name).info.run_id
        if not run_id:
            storage.write_file(id_path, self.run.encode())
            mlflow.log_params(settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send the values to the server."""
        self.mlflow.log_metrics(values, step=step, run_id=self.run)  # a run belongs to a thread: name it

    def end(self, done: bool) -> None:
        """Mark the run as finished or killed."""
        self.mlflow.end_run("FINISHED" if done else "KILLED")


def requested_trackers(
    settings: dict[str, Any], folder: str, extra: Tracker | None = None
) -> dict[str, Callable[[], Tracker]]:
    """Return what makes the trackers that a training was asked to log to, by name.

    Args:
        settings: Of the training.
        folder: Path or URI of the training's folder.
        extra: One more tracker.
    """
    makers: dict[str, Callable[[], Tracker]] = {"Ray Tune": lambda: extra} if extra else {}
    if settings["tensorboard"]:
        makers["TensorBoard"] = lambda: TensorBoard(settings["tensorboard"])
    if os.environ.get(MLFLOW_ADDRESS):
        makers["MLflow"] = lambda: MlFlow(settings, folder)
    return makers


@contextlib.contextmanager
def log_curves(makers: dict[str, Callable[[], Tracker]]) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Give a function `log(step, values)` that logs to all trackers.

    A tracker that fails is reported and left out from there on: its curves are not worth a training.
    """
    trackers: dict[str, Tracker] = {}

    def for_each(names: Iterable[str], action: Callable[[str], None]) -> None:
        for name in list(names):
            try:
                action(name)
            except Exception as error:
                trackers.pop(name, None)
                reason = describe_error(error)[:200]
                print(f"train: nothing is logged to {name} from here on: {reason}", file=sys.stderr)

    for_each(makers, lambda name: trackers.update({name: makers[name]()}))
    try:
        yield lambda step, values: for_each(trackers, lambda name: trackers[name].log(step, values))
    except BaseException:
        for_each(trackers, lambda name: trackers[name].end(False))
        raise
    for_each(trackers, lambda name: trackers[name].end(True))
