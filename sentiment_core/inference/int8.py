"""8-bit inference must keep the labels: measured when a bundle is made, required before a corpus is scored."""

import importlib.util
from typing import TYPE_CHECKING

import numpy as np

from sentiment_core.errors import UserError
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.objective import Objective
from sentiment_core.model.records import Int8Check
from sentiment_core.runtime.failures import describe_error
from sentiment_core.text.token_lists import TokenLists

if TYPE_CHECKING:  # importing torch takes seconds; planning a scoring run does without
    from sentiment_core.model.classifier import Classifier

LEAST_AGREEMENT = 0.995  # of the labels of 8 bits with those of the default number type
# Rows, and tokens of them, whose labels are compared: a difference of 1 in 200 shows, within a minute.
COMPARED_ROWS, COMPARED_TOKENS = 10_000, 300_000


def measure_int8_agreement(
    model: "Classifier", classes: int, max_length: int, objective: Objective, *samples: TokenLists
) -> Int8Check:
    """Measure on how many rows 8-bit numbers leave the label as it is.

    Takes as many rows as cost seconds, all it can of the first of the `samples` before it goes to the next. Where the
    model cannot run here in 8 bits, the record holds the reason.
    """
    from sentiment_core.inference.engine import Engine

    try:
        default, int8 = (
            Engine(model.eval(), classes, max_length, backend=backend, objective=objective)
            for backend in ("openvino", "int8")
        )
    except Exception as error:  # a conversion may fail in many ways, and the training is done
        return Int8Check(reason=describe_error(error))
    same: list[np.ndarray] = []
    rows_left, tokens_left = COMPARED_ROWS, COMPARED_TOKENS
    for tokens in samples:
        rows = int(min(len(tokens), rows_left, tokens_left / max(1.0, tokens.lengths.mean())))
        sample = tokens.take(np.linspace(0, len(tokens) - 1, rows).astype(int))
        same.append(objective.same_decision(default.probabilities(sample)[0], int8.probabilities(sample)[0]))
        rows_left, tokens_left = rows_left - rows, max(0, tokens_left - len(sample.ids))
    agreement = np.concatenate(same)
    return Int8Check(agreement=float(agreement.mean()), rows=len(agreement))


def require_int8_agreement(path: str, info: BundleInfo) -> None:
    """Refuse `--int8` for the bundle at `path` unless 8 bits were shown to leave its labels as they are."""
    check = info.int8
    if check.agreement is None:
        raise UserError(
            f"--int8: --model {path} was not checked in 8 bits ({check.reason or 'made by an older version'}). "
            "Train it again with the extra `cpu` installed, or score without --int8."
        )
    if check.agreement < LEAST_AGREEMENT:
        raise UserError(
            f"--int8: of {check.rows:,} rows --model {path} gives only {100 * check.agreement:.2f} % the same label in "
            f"8 bits; {100 * LEAST_AGREEMENT} % are required. Score without --int8."
        )
    if importlib.util.find_spec("openvino") is None:
        raise UserError("--int8 needs OpenVINO. Install the extra `cpu` on all nodes.")
