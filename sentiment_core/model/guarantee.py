"""Choose a confidence threshold above which labels are as accurate as the user demands, with a certainty.

This is selective classification with guaranteed risk (Geifman and El-Yaniv 2017). Ranks of the confidences fix a grid
of thresholds. An exact bound holds for each of them. They are tested in fixed sequences, so that the best one that
passes may be chosen (Angelopoulos et al. 2021, Learn then Test). The promise is for rows drawn as the evaluation rows
were.

Throughout: `confidence` is (n,) float32 as scoring writes it, `is_right` (n,) bool.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from sentiment_core.config import check
from sentiment_core.errors import UserError
from sentiment_core.model.binomial_bounds import lower_bound
from sentiment_core.model.records import Guarantee, GuaranteeGrid, LabelGuarantee

if TYPE_CHECKING:
    from sentiment_core.model.bundle import BundleInfo
    from sentiment_core.model.objective import Objective

COVERAGES = 20  # of the grid, from 5 % of the rows to all of them
# Sequences of coverages begin at 5, 25, 50, 75 and 100 % of the rows. Testing each coverage by itself (Bonferroni)
# labels 46 % of AG News instead of 54 % at target 0.95 with 2,000 evaluation rows, see benchmarks/guarantee.py.
STARTS = (0, 4, 9, 14, 19)
CERTAINTY = 0.95  # unless the user demands another one


def check_settings(target_accuracy: float | None, certainty: float) -> None:
    """Check the values of `--target-accuracy` and `--certainty`. Raises `UserError`."""
    is_share = target_accuracy is None or 0 < target_accuracy < 1
    check(is_share, "target_accuracy", target_accuracy, "a share above 0 and below 1, such as 0.95")
    check(0 < certainty < 1, "certainty", certainty, "a probability above 0 and below 1, such as 0.95")


def make_grid(
    objective: "Objective", probabilities: np.ndarray, targets: np.ndarray, comparisons: int = 1
) -> GuaranteeGrid:
    """Make the grid of a model from labelled rows that it was not trained on.

    Args:
        objective: Of the model.
        probabilities: (n, classes), calibrated. Every row must have a score.
        targets: (n,) or (n, labels), what is true.
        comparisons: Models that were compared on these rows, this one among them.
    """
    decisions, confidence = objective.decide(probabilities.astype(np.float32))
    return count_above(confidence, objective.is_right(decisions, targets), comparisons)


def count_above(confidence: np.ndarray, is_right: np.ndarray, comparisons: int = 1) -> GuaranteeGrid:
    """Count the rows above thresholds of 20 coverages.

    A threshold is the next float32 above an order statistic of the confidences. Given that statistic and their number,
    the rows above it are an independent sample of the population above it, also where confidences are equal. The last
    threshold is 0, which labels all rows.
    """
    rows = len(confidence)
    if not rows:
        return GuaranteeGrid(comparisons=comparisons)
    order = np.argsort(confidence, kind="stable")
    ascending, right = np.asarray(confidence, np.float32)[order], np.asarray(is_right, bool)[order]
    highest_left_out = rows - 1 - np.arange(1, COVERAGES) * rows // COVERAGES
    thresholds = np.append(np.nextafter(ascending[highest_left_out], np.float32(np.inf)), np.float32(0))
    first = np.searchsorted(ascending, thresholds)
    right_below = np.append(0, np.cumsum(right))[first]
    return GuaranteeGrid(
        rows=rows,
        comparisons=comparisons,
        min_confidence=thresholds.astype(float).tolist(),
        rows_above=(rows - first).tolist(),
        right_above=(int(right.sum()) - right_below).tolist(),
    )


def promise(grid: GuaranteeGrid, target: float, certainty: float) -> Guarantee:
    """Find the least threshold of a grid whose accuracy is at least the target, with the certainty.

    Thresholds are tested from each of `STARTS` downwards, up to the first that fails (fixed sequence testing with
    several starts). The level is divided by the starts and by the models compared.
    """
    index, reason = _find_threshold(grid, target, certainty)
    if index is None:
        return Guarantee(target=target, certainty=certainty, rows=grid.rows, reason=reason)
    return Guarantee(
        target=target,
        certainty=certainty,
        min_confidence=grid.min_confidence[index],
        share_labelled=grid.rows_above[index] / grid.rows,
        rows=grid.rows,
        accuracy=grid.right_above[index] / grid.rows_above[index],
    )


def promise_by_label(
    objective: "Objective",
    probabilities: np.ndarray,
    targets: np.ndarray,
    labels: list[str],
    target: float,
    certainty: float,
    comparisons: int = 1,
) -> dict[str, LabelGuarantee]:
    """Find the least threshold of each label whose precision is at least the target; all hold together.

    Single-label models are counted on the rows that get the label, by their confidence. Multi-label models are counted
    on the rows that the label is chosen for, by its own probability. Arguments are as for `make_grid` and `promise`.
    """
    probabilities = probabilities.astype(np.float32)
    promises = {}
    for number, label in enumerate(labels):
        confidence, is_right = _decisions_of_label(objective, probabilities, targets, number)
        grid = count_above(confidence, is_right, comparisons * len(labels))
        index, reason = _find_threshold(grid, target, certainty)
        promises[label] = (
            LabelGuarantee(rows=grid.rows, reason=reason)
            if index is None
            else LabelGuarantee(
                min_confidence=grid.min_confidence[index],
                share_labelled=grid.rows_above[index] / grid.rows,
                rows=grid.rows,
                precision=grid.right_above[index] / grid.rows_above[index],
            )
        )
    return promises


def derive_threshold(path: str, info: "BundleInfo", target: float, certainty: float) -> Guarantee:
    """Take a bundle's guarantee for `score --target-accuracy`.

    Raises `UserError` where the bundle has no evaluation rows noted, or cannot promise the target.
    """
    if not info.guarantee.rows:
        raise UserError(
            f"--target-accuracy: --model {path} notes no guarantee. Run sentiment-core evaluate --target-accuracy on "
            "labelled rows and pass its --min-confidence, or make the model again with --eval-data."
        )
    guarantee = promise(info.guarantee, target, certainty)
    if guarantee.reason:
        raise UserError(
            f"--target-accuracy {target:g}: --model {path} cannot promise it: {guarantee.reason}. Lower the target or "
            "the certainty, or run sentiment-core evaluate --target-accuracy on more labelled rows."
        )
    return guarantee


def _find_threshold(grid: GuaranteeGrid, target: float, certainty: float) -> tuple[int | None, str]:
    """Return the index of the least threshold that keeps the promise; None and the reason where none does."""
    level = (1 - certainty) / (len(STARTS) * grid.comparisons)
    needed = math.ceil(math.log(level) / math.log(target))
    if grid.rows < needed:
        return None, (
            f"{grid.rows:,} evaluation rows are too few; accuracy {target:g} with certainty {certainty:g} needs at "
            f"least {needed:,}, and more if some are wrong"
        )
    bounds = lower_bound(np.array(grid.right_above), np.array(grid.rows_above), level)
    fails = np.append(bounds < target, True)
    last_passing = [start + int(fails[start:].argmax()) - 1 for start in STARTS if not fails[start]]
    if last_passing:
        return max(last_passing), ""
    best = max(STARTS, key=lambda start: bounds[start])
    return None, (
        f"from {grid.rows:,} evaluation rows at most accuracy {math.floor(1e4 * bounds[best]) / 1e4:g} can be promised "
        f"with certainty {certainty:g}, for {100 * grid.rows_above[best] / grid.rows:.0f} % of the rows"
    )


def _decisions_of_label(
    objective: "Objective", probabilities: np.ndarray, targets: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence and rightness of the rows that get a label, by the label's number."""
    decisions, confidence = objective.decide(probabilities)
    if objective.several:
        rows = decisions[:, number]
        return probabilities[rows, number], targets[rows, number]
    rows = decisions == number
    return confidence[rows], targets[rows] == number
