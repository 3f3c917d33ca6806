"""Choose the confidence below which a cascade hands a row over to its large model.

Of each threshold it is asked how many rows of the population only the large model gets right although the small one
keeps them. That share cannot fall as the threshold falls. So the thresholds are tested in one fixed sequence, from
"hand over all" downwards, each with the full certainty, up to the first that may lose too much (fixed sequence testing
as in Learn then Test, Angelopoulos et al. 2021; risk control by a monotone loss, Bates et al. 2021). The bound is exact
(Clopper and Pearson 1934). The thresholds are fixed before any row is seen. All of it holds for rows drawn as these
were.

Throughout: `confidence` is (n,) float32 of the small model, `is_lost` (n,) bool: rows that are lost if it keeps them.
"""

import math
from dataclasses import dataclass

import numpy as np

from sentiment_core.config import check
from sentiment_core.model.binomial_bounds import upper_bound
from sentiment_core.model.records import Record

CERTAINTY = 0.95  # unless the user demands another one
MAX_LOSS = 0.02
LOG_ODDS = np.arange(-500, 1_501) / 100  # of the confidences that may be thresholds


@dataclass(frozen=True)
class CascadeRecord(Record):
    """The rule of a cascade, and what the rows showed that chose it. An empty record: the bundle is none."""

    threshold: float = 0.0  # rows with less confidence by the small model go to the large one
    max_loss: float = 0.0  # share of rows that may be lost
    certainty: float = 0.0  # with which no more are
    rows: int = 0  # that chose the threshold
    labelled: bool = True  # else a row counts as lost where the models disagree
    loss: float = 0.0  # share of these rows that are lost
    escalated_share: float = 0.0  # of these rows
    small_accuracy: float | None = None  # on these rows; None without labels
    large_accuracy: float | None = None
    accuracy: float | None = None  # of the cascade
    agreement: float | None = None  # share of these rows that both models label alike
    small_rows_per_second: float = 0.0  # of each model alone, and of the cascade, on these rows
    large_rows_per_second: float = 0.0
    rows_per_second: float = 0.0
    small_computed_by: str = ""  # backend and number type that were timed
    large_computed_by: str = ""
    chip: str = ""
    threads: int | None = None  # of a CPU


@dataclass(frozen=True)
class ThresholdChoice:
    """The least threshold that keeps the promise, and what it does to the rows that chose it."""

    threshold: float
    lost_rows: int
    escalated_share: float


def check_settings(max_loss: float, certainty: float) -> None:
    """Check the values of `--max-loss` and `--certainty`. Raises `UserError`."""
    check(0 < max_loss < 1, "max_loss", max_loss, "a share above 0 and below 1, such as 0.02")
    check(0 < certainty < 1, "certainty", certainty, "a probability above 0 and below 1, such as 0.95")


def list_thresholds() -> np.ndarray:
    """List the thresholds in the order in which they are tested, float32: hand over all, less and less, none."""
    hand_over_all = np.nextafter(np.float32(1), np.float32(2))
    thresholds = np.concatenate([[0], 1 / (1 + np.exp(-LOG_ODDS)), [hand_over_all]]).astype(np.float32)
    return np.unique(thresholds)[::-1]  # next to 1 some are the same in float32


def required_rows(max_loss: float, certainty: float) -> int:
    """Return the least number of rows that bound the loss by `max_loss` if none of them is lost."""
    rows = max(1, math.ceil(math.log1p(-certainty) / math.log1p(-max_loss)))
    return rows if upper_bound(0, rows, certainty) <= max_loss else rows + 1  # rounding may decide


def choose_threshold(
    confidence: np.ndarray, is_lost: np.ndarray, max_loss: float, certainty: float
) -> ThresholdChoice | None:
    """Choose the least threshold whose loss is bounded; None where rows are too few even to hand over all."""
    rows, thresholds = len(confidence), list_thresholds()
    lost_confidence = np.sort(np.asarray(confidence, np.float32)[np.asarray(is_lost, bool)])
    lost = len(lost_confidence) - np.searchsorted(lost_confidence, thresholds)
    bounds = upper_bound(lost, rows, certainty) if rows else np.ones(len(thresholds))
    fails = np.append(bounds > max_loss, True)
    chosen = int(fails.argmax()) - 1
    if chosen < 0:
        return None
    return ThresholdChoice(
        float(thresholds[chosen]),
        int(lost[chosen]),
        float((confidence < thresholds[chosen]).mean()),
    )


def describe(record: CascadeRecord) -> list[str]:
    """Describe a cascade beside each of its models, in a few lines for the terminal."""
    chip = record.chip + ("" if record.threads is None else f", {record.threads} threads")
    kind = "labelled rows" if record.labelled else "rows without labels"
    speeds = (record.small_rows_per_second, record.large_rows_per_second, record.rows_per_second)
    accuracies = (record.small_accuracy, record.large_accuracy, record.accuracy)
    lines = [f"{record.rows:,} {kind} that neither model has seen; speeds of the engines alone ({chip})"]
    for name, accuracy, speed in zip(("small", "large", "cascade"), accuracies, speeds, strict=True):
        shown = "" if accuracy is None else f"accuracy {accuracy:.4f}, "
        lines.append(f"{name:8}{shown}{speed:,.1f} rows/s" + (", as estimated" if name == "cascade" else ""))
    lost = "that only the large model gets right" if record.labelled else "that the large model labels otherwise"
    lines += [
        f"{100 * record.escalated_share:.1f} % of the rows go to the large model: those with less confidence than "
        f"{record.threshold:.4g}",
        f"of rows drawn like these the small model keeps at most {100 * record.max_loss:g} % {lost}, with "
        f"certainty {record.certainty:g} ({100 * record.loss:.2f} % of these rows)",
    ]
    if record.rows_per_second < record.large_rows_per_second:
        lines.append("the cascade is slower than the large model alone here: use that one")
    return lines


def describe_cost(record: CascadeRecord, rows: int) -> str:
    """Say what share of a corpus is handed over and what that costs, before it is scored.

    `rows`: of the corpus that are to be scored.
    """
    rates = (record.rows_per_second, record.small_rows_per_second, record.large_rows_per_second)
    cascade_s, small_s, large_s = (describe_seconds(rows / rate) for rate in rates)
    chip = record.chip + ("" if record.threads is None else f" with {record.threads} threads")
    return (
        f"cascade: about {100 * record.escalated_share:.0f} % of the rows go to the large model, as of the "
        f"{record.rows:,} rows that chose its threshold; {rows:,} rows like those take one worker about {cascade_s} "
        f"({small_s} with the small model alone, {large_s} with the large one), at the speeds measured on {chip}"
    )


def describe_seconds(seconds: float) -> str:
    """Describe a duration, roughly."""
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{seconds:,.0f} seconds"
