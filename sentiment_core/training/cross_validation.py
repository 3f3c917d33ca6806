"""Evaluate a training by cross-validation: train on all folds but one, and let that model answer the one.

Each row is answered by a model that was not trained on it, so accuracy and calibration hold for rows that training has
not seen (Stone 1974, Cross-Validatory Choice and Assessment of Statistical Predictions). The final model is trained on
all rows, so it is a little better.
"""

from dataclasses import replace

import numpy as np

from sentiment_core.data.labels import count_labels
from sentiment_core.training.loop import TrainingLoop
from sentiment_core.training.task import TokenizedPart, TrainingTask


class FoldLoop(TrainingLoop):
    """A training on all folds but one. It leaves no checkpoint: so few rows take seconds."""

    def answer_each_epoch(self) -> np.ndarray:
        """Train all epochs; return the logits of the evaluation rows after each, (epochs, rows, classes) float32.

        Raises `Diverged`.
        """
        answers = []
        while self.progress.epoch <= self.recipe.epochs:
            self._train_epoch()
            with self.average.in_place():
                answers.append(self._answer())
            self._begin_epoch()
        return np.stack(answers)

    def _report(self, values: dict[str, float]) -> None:
        super()._report({})  # curves are those of the final model

    def _is_time_to_save(self) -> bool:
        return False


def cross_validate(task: TrainingTask, train_part: TokenizedPart, eval_part: TokenizedPart) -> np.ndarray:
    """Train a model without each fold, and let it answer the fold. All workers take part.

    Args:
        task: The training, with folds.
        train_part: All rows.
        eval_part: The rows that are in a fold.

    Returns:
        Logits of `eval_part` after each epoch, (epochs, rows, classes) float32.

    Raises:
        Diverged: A model gave no finite numbers.
    """
    assert task.folds is not None
    folds = task.folds[task.folds >= 0]  # of the evaluation part
    logits = np.empty((task.recipe.epochs, len(eval_part), len(task.label_names)), np.float32)
    rows_before = 0
    for fold in range(task.folds_to_train):
        others = train_part.take(np.flatnonzero(task.folds != fold))
        of_others = replace(task, label_counts=count_labels(others.labels, len(task.label_names)))
        loop = FoldLoop(of_others, others, eval_part.take(np.flatnonzero(folds == fold)), rows_before)
        logits[:, folds == fold] = loop.answer_each_epoch()
        rows_before += len(others) * task.recipe.epochs
    return logits


def count_rows(task: TrainingTask, rows: int) -> int:
    """Count the training rows that cross-validation goes through, of so many in an epoch of the final model."""
    if task.folds is None:
        return 0
    return task.recipe.epochs * sum(rows - int((task.folds == fold).sum()) for fold in range(task.folds_to_train))
