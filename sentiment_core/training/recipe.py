"""Choose how to optimize by the encoder and the data, where the user does not say.

`docs/guides/train.md` tells which measurements are behind the numbers.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sentiment_core.config import flag_of
from sentiment_core.training.settings import SelectBy, TrainSettings


@dataclass(frozen=True)
class Recipe:
    """Settings of the optimization that depend on the encoder and the data; each is a flag of `train`."""

    epochs: int = 3
    batch_size: int = 32
    lr: float = 2e-5
    head_lr: float = 1e-4
    dropout: float | None = None  # inside the encoder; None: its own
    adversarial: float = 0.0
    ema_decay: float = 0.0
    data_pruning: float = 0.0
    select_by: SelectBy = "accuracy"

    def describe(self) -> str:
        """Return the flags that ask for the same."""
        always = ("epochs", "batch_size", "lr", "head_lr")
        names = [item.name for item in fields(self) if item.name in always or getattr(self, item.name) != item.default]
        values = [value if isinstance(value := getattr(self, name), str) else f"{value:g}" for name in names]
        return " ".join(f"{flag_of(name)} {value}" for name, value in zip(names, values, strict=True))


FIXED = Recipe()  # `--recipe none`
BASE_WIDTH = 768  # hidden size of BERT-base
# Peak learning rates of encoder and head by the encoder's hidden size, up to which they hold.
RATES = ((512, 1e-4, 1e-3), (BASE_WIDTH, 3e-5, 5e-4), (math.inf, 1e-5, 2e-4))
SMALL_BATCH, BATCH, LARGE_BATCH = 16, 32, 64
FEW_ROWS, MANY_ROWS = 2_000, 20_000  # below the first a batch is small, from the second on it is large
STEPS, STEPS_PER_LABEL = 400, 10  # of the optimizer, that the epochs are to make
LEAST_EPOCHS, MOST_EPOCHS = 3, 15
LEAST_STEPS = 60  # where the most epochs make fewer, there are more of them
FEW_EVALUATION_ROWS = 100  # with fewer their accuracy is too noisy to choose an epoch, and the last is taken
# With many rows: adversarial steps cost twice the time and pruning saves it. Measured for small encoders only.
TRICKS: dict[str, Any] = {"dropout": 0.0, "adversarial": 1.0, "ema_decay": 0.999, "data_pruning": 0.5}


def choose_recipe(settings: TrainSettings, config: Any, rows: int, labels: int, evaluation_rows: int | None) -> Recipe:
    """Choose what the settings leave open.

    Args:
        settings: The request; every value in it is taken.
        config: The encoder's configuration.
        rows: Training rows.
        labels: Number of labels.
        evaluation_rows: Rows to evaluate on that training does not see; None: cross-validation evaluates.

    Raises:
        UserError: The values do not fit together.
    """
    if settings.recipe == "none":
        recipe = FIXED
    else:
        width = getattr(config, "hidden_size", BASE_WIDTH)
        recipe = recommend(width, rows, labels, settings.batch_size, settings.workers)
        if (evaluation_rows or 0) < FEW_EVALUATION_ROWS:
            recipe = replace(recipe, select_by="last")
    requested = {name: value for name in asdict(recipe) if (value := getattr(settings, name)) is not None}
    chosen = replace(recipe, **requested)
    replace(settings, **asdict(chosen))  # which refuses what does not fit together
    return chosen


def recommend(hidden_size: int, rows: int, labels: int, batch_size: int | None = None, workers: int = 1) -> Recipe:
    """Return the recipe for an encoder of this width, so many training rows and so many labels.

    A batch has at least one row for each of the `workers`.
    """
    lr, head_lr = next((lr, head_lr) for width, lr, head_lr in RATES if hidden_size <= width)
    usual = SMALL_BATCH if rows < FEW_ROWS else BATCH if rows < MANY_ROWS else LARGE_BATCH
    batch_size = batch_size or max(usual, workers)
    steps = STEPS + STEPS_PER_LABEL * labels
    steps_of_epoch = math.ceil(rows / batch_size)
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, math.ceil(steps / steps_of_epoch)))
    epochs = max(epochs, math.ceil(LEAST_STEPS / steps_of_epoch))
    tricks = TRICKS if rows >= MANY_ROWS and hidden_size < BASE_WIDTH else {}
    return Recipe(epochs, batch_size, lr, head_lr, **tricks)
