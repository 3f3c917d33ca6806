"""Define what the driver hands to every training worker."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from transformers import PretrainedConfig

from sentiment_core.model.objective import Objective
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.training.recipe import Recipe
from sentiment_core.training.settings import TrainSettings


@dataclass(frozen=True)
class TokenizedPart:
    """Tokens and labels of the training rows, or of the evaluation rows."""

    tokens: TokenLists
    labels: np.ndarray  # (n,) int64, or (n, labels) bool; of training rows perhaps (n, labels) float32, probabilities

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "TokenizedPart":
        """Select rows."""
        return TokenizedPart(self.tokens.take(rows), self.labels[rows])


@dataclass(frozen=True)
class TrainingTask:
    """A training run as a worker needs it. Large things are in Ray's object store."""

    settings: TrainSettings
    recipe: Recipe
    objective: Objective
    label_names: list[str]
    label_counts: np.ndarray  # (classes,) training rows that have each label; of probabilities the decided ones
    model_config: PretrainedConfig
    pad_id: int
    token_ids: np.ndarray  # ids of the vocabulary that the data has; tokens are numbered by their position in it
    threads: int  # on a CPU
    encoder: ray.ObjectRef  # the files of the encoder's folder
    data: ray.ObjectRef  # training and evaluation part, a list of two `TokenizedPart`
    # (training rows,) int, of cross-validation; -1: a row is in none; None: the evaluation part is apart
    folds: np.ndarray | None
    monitor: Any  # actor handle of a `monitor.Monitor`

    @property
    def folds_to_train(self) -> int:
        """Folds of cross-validation; 0 without it."""
        return count_folds(self.folds)


def count_folds(folds: np.ndarray | None) -> int:
    """Count the folds of cross-validation; 0 without it. `folds`: of each training row, from 0."""
    return 0 if folds is None else int(folds.max()) + 1
