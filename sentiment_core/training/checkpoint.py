"""Save and load a run's checkpoints: everything that the rest of the run depends on.

A part of the run that keeps state has `state_dict` and `load_state_dict`; `loop.TrainingLoop` names them all once.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray.train
import safetensors.torch
import torch
from ray.train import Checkpoint

from sentiment_core.model import bundle

FORMAT = 4  # of the state files; a run of another format is not resumed
STATE, LOGITS = "state-{}.pt", "eval_logits.npy"  # of each worker; beside the best epoch's weights
FOLD_LOGITS = "fold_logits-{}.npy"  # of so many folds of cross-validation, before the final model is begun
SCORE = "score"  # by which Ray keeps the best checkpoint, besides the latest
NOT_BEST = -1e30  # score of a checkpoint without an epoch that is the best so far


class Stateful(Protocol):
    """A part of a run that keeps state."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state: tensors, numbers, texts, lists and dicts of these."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Continue from a state."""


@dataclass(frozen=True)
class BestEpoch:
    """Weights, logits and metrics of the best epoch so far."""

    weights: dict[str, torch.Tensor]  # empty but on the first worker
    logits: np.ndarray  # (n, classes) float32 of the evaluation rows


@dataclass(frozen=True)
class FoldLogits:
    """Answers of cross-validation so far."""

    folds: int  # that are done
    logits: np.ndarray  # (epochs, rows, classes) float32 of the evaluation rows; of folds to come 0


class RandomState:
    """The state of torch's generators, on which dropout depends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the CPU's generator and the GPU's."""
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        torch.set_rng_state(state["cpu"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)


def save_checkpoint(
    rank: int, shared: Mapping[str, Stateful], own: Mapping[str, Stateful], score: float, best: BestEpoch | None
) -> None:
    """Report a checkpoint to Ray Train; all workers take part.

    Args:
        rank: This worker's.
        shared: Parts with the same state on all workers, which the first one saves.
        own: Parts with a state of their own on each worker.
        score: By which Ray tells the best checkpoint.
        best: Weights and logits, where this epoch is the best so far.
    """
    state = {
        "shared": {name: part.state_dict() for name, part in shared.items()} if rank == 0 else {},
        "own": {name: part.state_dict() for name, part in own.items()},
    }
    with tempfile.TemporaryDirectory(prefix="sentiment-core-") as folder:
        torch.save(state, os.path.join(folder, STATE.format(rank)))
        if best and rank == 0:
            safetensors.torch.save_file(best.weights, os.path.join(folder, bundle.WEIGHTS))
            np.save(os.path.join(folder, LOGITS), best.logits)
        ray.train.report({SCORE: score}, checkpoint=Checkpoint.from_directory(folder))


def save_folds(done: FoldLogits) -> None:
    """Report a checkpoint within cross-validation to Ray Train; all workers take part."""
    with tempfile.TemporaryDirectory(prefix="sentiment-core-") as folder:
        np.save(os.path.join(folder, FOLD_LOGITS.format(done.folds)), done.logits)
        ray.train.report({SCORE: NOT_BEST}, checkpoint=Checkpoint.from_directory(folder))


def load_folds(checkpoint: Checkpoint) -> FoldLogits | None:
    """Load what cross-validation had made; None of a checkpoint of the final model."""
    with checkpoint.as_directory() as folder:
        for name in os.listdir(folder):
            if match := re.fullmatch(FOLD_LOGITS.format(r"(\d+)"), name):
                return FoldLogits(int(match[1]), np.load(os.path.join(folder, name)))
    return None


def load_checkpoint(
    checkpoint: Checkpoint, rank: int, shared: Mapping[str, Stateful], own: Mapping[str, Stateful]
) -> None:
    """Continue all parts from a checkpoint; arguments as of `save_checkpoint`."""

    def load(of_rank: int) -> dict[str, Any]:
        return torch.load(os.path.join(folder, STATE.format(of_rank)), map_location="cpu", weights_only=True)

    with checkpoint.as_directory() as folder:
        own_state, shared_state = load(rank)["own"], load(0)["shared"]
    for name, part in shared.items():
        part.load_state_dict(shared_state[name])
    for name, part in own.items():
        part.load_state_dict(own_state[name])
