"""Run the training loop on Ray Train's workers, and replace workers that are lost."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from sentiment_core.errors import UserError
from sentiment_core.model.records import EpochRecord
from sentiment_core.runtime import cluster, storage
from sentiment_core.runtime.environment import variables_set
from sentiment_core.runtime.failures import describe_error
from sentiment_core.runtime.progress import Progress, repeat_every
from sentiment_core.training import cpu
from sentiment_core.training.checkpoint import SCORE, load_folds
from sentiment_core.training.cross_validation import count_rows, cross_validate
from sentiment_core.training.loop import DIVERGED, Diverged, TrainingLoop
from sentiment_core.training.task import TrainingTask
from sentiment_core.training.torch_setup import CheckedTorchConfig

Track = Callable[[int, dict[str, float]], None]  # (optimizer steps done, values by name)

# Read by Ray in the driver when training starts.
VARIABLES = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # a worker's report or error is seen at once
    # CPUs or GPUs that another job holds are waited for this long; more than the cluster has is refused before
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody asks what it sees
}
POLL_EVERY_S = 0.5  # between two looks at the monitor


def train_loop(config: dict[str, Any]) -> list[EpochRecord] | UserError:
    """Train on this worker's share and leave the best epoch's weights as a checkpoint.

    Returns the records of the epochs, or what is wrong with the settings.
    """
    task, checkpoint = ray.get(config["task"]), ray.train.get_checkpoint()
    train_part, eval_part = ray.get(task.data)
    folds_done, fold_logits = checkpoint and load_folds(checkpoint), None
    if task.folds is not None and (folds_done or not checkpoint):  # one of the final model has the logits
        try:
            fold_logits, checkpoint = cross_validate(task, train_part, eval_part, folds_done), None
        except Diverged:
            return DIVERGED
    return TrainingLoop(task, train_part, eval_part, count_rows(task, len(train_part)), fold_logits).run(checkpoint)


def run_workers(folder: str, task: TrainingTask, rows: int, track: Track) -> tuple[list[EpochRecord], Checkpoint]:
    """Run `train_loop` on all workers, from the last checkpoint where some are lost.

    Args:
        folder: Path or URI for the checkpoints; what is there is resumed.
        task: What every worker gets.
        rows: Training rows, for the progress.
        track: Called with the curves.

    Returns:
        The records of all epochs and the best one's checkpoint.

    Raises:
        UserError: The settings lead nowhere.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)
    total = rows * task.recipe.epochs + count_rows(task, rows)
    try:
        with (
            variables_set(VARIABLES),
            Progress("train", total, "rows", cluster.describe_wait) as progress,
            _follow(task.monitor, progress, track),
        ):
            folds = f", after {task.folds_to_train} folds of cross-validation" * (task.folds is not None)
            progress.say(f"train: {rows:,} rows, {task.recipe.describe()}{folds}")
            result = _fit(folder, task, progress)
    except SystemExit:  # Ray's answer to Ctrl-C, with exit code 0
        raise KeyboardInterrupt from None
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: Ray has not set a handler there
            signal.signal(signal.SIGINT, on_interrupt)  # Ray leaves its own behind
    log = result.return_value
    if isinstance(log, UserError):
        storage.delete_folder(folder)  # nothing in it can be resumed
        raise log
    return log, result.get_best_checkpoint(SCORE, "max")


def _fit(folder: str, task: TrainingTask, progress: Progress) -> Any:
    """Train until it is done; start again from the last checkpoint when workers are lost."""
    task_ref = ray.put(task)  # Ray's own processes, which look into the configuration, need not import what is in it
    losses = 0
    while True:
        try:
            return _make_trainer(folder, task_ref, task).fit()
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            failure = first_failure(error)
            losses += 1
            if not is_loss(failure):
                raise failure from error
            if losses > task.settings.max_failures:
                raise RuntimeError(f"workers were lost {losses} times, the last time by: {failure}") from error
            reason = describe_error(failure)[:200]
            progress.say(f"train: a worker was lost ({reason}); resuming from the last checkpoint")


def _make_trainer(folder: str, task_ref: ray.ObjectRef, task: TrainingTask) -> ray.train.torch.TorchTrainer:
    use_gpu = cluster.device_kind(task.settings.device) == "GPU"
    filesystem, path = storage.locate(folder)
    return ray.train.torch.TorchTrainer(
        train_loop,  # type: ignore[arg-type]  # may return what it likes
        train_loop_config={"task": task_ref},
        torch_config=CheckedTorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=task.settings.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if use_gpu else {"CPU": task.threads},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # ray.train shows checkers the first version's class
            name="run",  # the same each time: it resumes from the latest checkpoint there
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(  # type: ignore[call-arg]
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="max"
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": {} if use_gpu else cpu.environment()},
        ),
    )


def first_failure(error: Exception) -> Exception:
    """Return the worker's exception that says most: when one fails, the others lose their connection to it."""
    failures = getattr(error, "worker_failures", {}).values()
    failure = min(failures, key=_lost_connection, default=getattr(error, "controller_failure", error))
    failure = getattr(failure, "health_check_failure", failure)  # why a worker does not answer, such as its memory
    cause = getattr(failure, "cause", None)  # of Ray's wrapper, where the workers were only being set up
    return cause if isinstance(cause, UserError) else failure


def is_loss(failure: Exception) -> bool:
    """Tell whether a worker or its node went away, rather than that its code failed."""
    return type(failure).__module__.partition(".")[0] == "ray" or _lost_connection(failure)


def _lost_connection(failure: Exception) -> bool:
    text = str(failure).lower()
    lost = any(word in text for word in ("gloo", "nccl", "connection reset", "connection closed"))
    return lost and "invalid usage" not in text  # of NCCL: each attempt would fail alike


@contextlib.contextmanager
def _follow(monitor: Any, progress: Progress, track: Track) -> Iterator[None]:
    """Pass on what the monitor hears, from a thread: `trainer.fit()` holds the driver until the end."""

    def pass_on() -> None:
        before, rows, curves = ray.get(monitor.take.remote())
        progress.resume_at(before)
        progress.set(rows)
        for step, values in curves:
            track(step, values)

    with repeat_every(POLL_EVERY_S, pass_on):
        yield
    pass_on()
