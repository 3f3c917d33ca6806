"""8-bit inference must keep the labels: prepared and checked at training, required before a corpus is scored."""

import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.objective import Objective
from sentiment_core.model.records import LEAST_INT8_AGREEMENT, Int8Check
from sentiment_core.runtime.failures import describe_error
from sentiment_core.text.token_lists import TokenLists

if TYPE_CHECKING:  # importing torch takes seconds; planning a scoring run does without
    from sentiment_core.inference.engine import Engine
    from sentiment_core.inference.int8_layers import Int8Layers
    from sentiment_core.model.classifier import Classifier

# Rows, and tokens of them, whose labels are compared. If 1 in 125 changed, 96 of 100 checks would see more than the
# 1 in 200 that is allowed. Several times as many rows took a third of a small training's time on a slow chip.
COMPARED_ROWS, COMPARED_TOKENS = 3_000, 45_000
PART_ROWS = 500  # compared at a time, so that what fails soon costs little
# Shares of the layers left out of 8 bits, those that harm most first, until the labels stay.
LEFT_OUT = (0.0, 1 / 6, 1 / 3, 1 / 2)


@dataclass(frozen=True)
class LabelledTokens:
    """Tokens of rows whose labels are known."""

    tokens: TokenLists
    targets: np.ndarray  # (n,) int


def prepare_int8(
    model: "Classifier",
    classes: int,
    max_length: int,
    objective: Objective,
    evaluation: LabelledTokens,
    training: TokenLists,
) -> tuple[Int8Check, dict[str, bytes]]:
    """Put as many linear layers into 8 bits as leave the labels as they are.

    The labels are compared with those of float32, on as many rows as cost seconds: evaluation rows, unless the model
    was trained on them, then training rows.

    Returns:
        The check, and the bundle's file by its name; without a file where too many labels change, or where the model
        cannot run here in 8 bits, and the check says why.
    """
    import torch

    from sentiment_core.inference.engine import Engine
    from sentiment_core.inference.int8_layers import pack_layers, without
    from sentiment_core.inference.quantization import fit_layers
    from sentiment_core.runtime import hardware

    def load(backend: str, layers: "Int8Layers") -> "Engine":
        return Engine(
            model.eval(),
            classes,
            max_length,
            backend=backend,
            objective=objective,
            precision="float32",
            choices={hardware.chip_id(torch.device("cpu")): f"{backend} float32"},  # so that nothing is measured
            int8_layers=layers,
        )

    check = Int8Check(reason="none of its layers can be computed in 8 bits")
    try:
        comparison = _Comparison.with_float32(load("openvino", {}), evaluation, training)
        layers, most_harmful_first = fit_layers(model, training, max_length)
        for share in LEFT_OUT if layers else ():
            tried = without(layers, most_harmful_first[: round(share * len(layers))])
            check = comparison.check(load("int8", tried), len(tried), len(layers))
            if check.is_allowed:
                return check, {bundle.INT8: pack_layers(tried)}
    except Exception as error:  # a conversion may fail in many ways, and the training is done
        return Int8Check(reason=describe_error(error)), {}
    return check, {}


@dataclass(frozen=True)
class _Comparison:
    """Rows to compare labels on, with what float32 makes of them."""

    evaluation: LabelledTokens
    training: TokenLists
    expected: np.ndarray  # (rows, classes) probabilities, of evaluation rows first

    @classmethod
    def with_float32(cls, engine: "Engine", evaluation: LabelledTokens, training: TokenLists) -> "_Comparison":
        """Choose the rows and compute them."""
        sample = _sample_rows(evaluation.tokens, COMPARED_ROWS, COMPARED_TOKENS)
        rows_left = COMPARED_ROWS - len(sample)
        tokens_left = COMPARED_TOKENS - int(evaluation.tokens.lengths[sample].sum())
        chosen = LabelledTokens(evaluation.tokens.take(sample), evaluation.targets[sample])
        others = training.take(_sample_rows(training, rows_left, tokens_left))
        expected = np.concatenate(
            [engine.probabilities(tokens)[0] for tokens in (chosen.tokens, others) if len(tokens)]
        )
        return cls(chosen, others, expected)

    def check(self, engine: "Engine", layers: int, all_layers: int) -> Int8Check:
        """Compare an engine's labels. Stops once too many differ; then the rows are those until there."""
        rows = len(self.expected)
        same = np.zeros(rows, bool)
        probabilities = np.empty_like(self.expected)
        done = 0
        for part in self._parts():
            stop = done + len(part)
            probabilities[done:stop] = engine.probabilities(part)[0]
            same[done:stop] = engine.objective.same_decision(probabilities[done:stop], self.expected[done:stop])
            done = stop
            if np.count_nonzero(~same[:done]) > (1 - LEAST_INT8_AGREEMENT) * rows:
                break
        labelled = len(self.evaluation.targets)
        objective = engine.objective
        accuracies = [
            float(objective.is_right(objective.decide(values[:labelled])[0], self.evaluation.targets).mean())
            for values in (probabilities, self.expected)
            if 0 < labelled <= done
        ]
        return Int8Check(
            agreement=float(same[:done].mean()),
            rows=done,
            accuracy=accuracies[0] if accuracies else None,
            float32_accuracy=accuracies[1] if accuracies else None,
            accuracy_rows=labelled if accuracies else None,
            layers=layers,
            all_layers=all_layers,
        )

    def _parts(self) -> Iterator[TokenLists]:
        for tokens in (self.evaluation.tokens, self.training):
            for start in range(0, len(tokens), PART_ROWS):
                yield tokens.take(np.arange(start, min(start + PART_ROWS, len(tokens))))


def _sample_rows(tokens: TokenLists, most_rows: int, most_tokens: int) -> np.ndarray:
    """Choose rows, evenly spread, within these limits, about."""
    rows = int(min(len(tokens), most_rows, max(0, most_tokens) / max(1.0, tokens.lengths.mean()))) if len(tokens) else 0
    return np.linspace(0, len(tokens) - 1, rows).astype(int)


def require_int8_agreement(path: str, info: BundleInfo, files: Collection[str]) -> None:
    """Refuse `--int8` for the bundle at `path` unless 8 bits were shown to leave its labels as they are.

    `files` are the names of the bundle's files. Raises UserError.
    """
    check = info.int8
    if info.is_cascade:
        raise UserError(
            f"--int8: --model {path} is a cascade, whose threshold was chosen without 8 bits. Score without --int8."
        )
    if check.agreement is None:
        raise UserError(
            f"--int8: --model {path} was not checked in 8 bits ({check.reason or 'made by an older version'}). "
            "Train it again with the extra `cpu` installed, or score without --int8."
        )
    if not check.is_allowed:
        raise UserError(
            f"--int8: of {check.rows:,} rows --model {path} gives only {100 * check.agreement:.2f} % the same label in "
            f"8 bits; {100 * LEAST_INT8_AGREEMENT} % are required. Score without --int8."
        )
    if bundle.INT8 not in files:
        raise UserError(
            f"--int8: --model {path} has no {bundle.INT8}, since an older version made it. "
            "Train it again with the extra `cpu` installed, or score without --int8."
        )
    if importlib.util.find_spec("openvino") is None:
        raise UserError("--int8 needs OpenVINO. Install the extra `cpu` on all nodes.")
