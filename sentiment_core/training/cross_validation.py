"""Evaluate a training by cross-validation: train on all folds but one, and let that model answer the one.

Each row is answered by a model that was not trained on it, so accuracy and calibration hold for rows that training has
not seen (Stone 1974, Cross-Validatory Choice and Assessment of Statistical Predictions). The final model is trained on
all rows, so it is a little better.
"""

import gc
from dataclasses import replace

import numpy as np

from sentiment_core.data.labels import count_labels
from sentiment_core.training.checkpoint import FoldLogits, save_folds
from sentiment_core.training.loop import TrainingLoop
from sentiment_core.training.task import TokenizedPart, TrainingTask


class FoldLoop(TrainingLoop):
    """A training on all folds but one. Within a fold it leaves no checkpoint: few rows take a minute."""

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


def cross_validate(
    task: TrainingTask, train_part: TokenizedPart, eval_part: TokenizedPart, done: FoldLogits | None
) -> np.ndarray:
    """Train a model without each fold, and let it answer the fold. All workers take part.

    Args:
        task: The training, with folds.
        train_part: All rows.
        eval_part: The rows that are in a fold.
        done: What an interrupted run left.

    Returns:
        Logits of `eval_part` after each epoch, (epochs, rows, classes) float32.

    Raises:
        Diverged: A model gave no finite numbers.
    """
    assert task.folds is not None
    folds = task.folds[task.folds >= 0]  # of the evaluation part
    shape = (task.recipe.epochs, len(eval_part), len(task.label_names))
    first, logits = (done.folds, done.logits) if done else (0, np.zeros(shape, np.float32))
    for fold in range(first, task.folds_to_train):
        others = train_part.take(np.flatnonzero(task.folds != fold))
        of_others = replace(task, label_counts=count_labels(others.labels, len(task.label_names)))
        rows_before = count_rows(task, len(train_part), fold)
        # bound to no name: two models at once need twice the memory
        answers = FoldLoop(
            of_others, others, eval_part.take(np.flatnonzero(folds == fold)), rows_before
        ).answer_each_epoch()
        gc.collect()
        logits[:, folds == fold] = answers
        save_folds(FoldLogits(fold + 1, logits))
    return logits


def count_rows(task: TrainingTask, rows: int, folds: int | None = None) -> int:
    """Count the training rows that so many folds go through, by default all, of so many rows in all."""
    if task.folds is None:
        return 0
    folds = task.folds_to_train if folds is None else folds
    return task.recipe.epochs * sum(rows - int((task.folds == fold).sum()) for fold in range(folds))
