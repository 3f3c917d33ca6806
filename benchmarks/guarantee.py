"""Measure how often a promised accuracy holds, and how many rows it costs beside the best possible threshold.

    python benchmarks/guarantee.py --data sst2.parquet --model models/sst2 --name sst2
    python benchmarks/guarantee.py --predictions sst2.npz --name sst2 --rows 500,1000 --targets 0.9,0.95

All rows of the data are a population whose accuracy above each threshold is known. Evaluation rows are drawn from it
many times, with replacement. Each draw that finds a threshold holds if the population's labelled part is right as often
as promised. A draw without a threshold does not count as held. The model must not have seen the data.

Prints a line for each number of rows and each target, and adds them to benchmarks/results/guarantee.json by name.
`--save` keeps the predictions as a file for `--predictions`: `confidence` (n,) float32, `is_right` (n,) bool.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sentiment_core.api import Classifier
from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, check, parse, setting
from sentiment_core.data import labelled
from sentiment_core.errors import UserError
from sentiment_core.evaluation import EvaluateSettings
from sentiment_core.model.guarantee import CERTAINTY, count_above, promise

RESULTS = Path(__file__).parent / "results" / "guarantee.json"


@dataclass(frozen=True)
class GuaranteeSettings:
    """Settings of `guarantee.py`."""

    name: str = setting(REQUIRED, "name of the population in the results", "NAME")
    data: str | None = setting(None, "labelled text, as for evaluate; with --model", "D")
    model: str | None = setting(None, "bundle that labels it", "MODEL")
    text_column: tuple[str, ...] = setting((), "column with the text, as for evaluate", "A,B")
    label_column: str = setting("label", "column with the label")
    predictions: str | None = setting(None, "predictions of such a population, instead of data and model", "FILE.npz")
    save: str | None = setting(None, "file for the predictions", "FILE.npz")
    rows: tuple[str, ...] = setting(("500", "1000", "2000"), "evaluation rows of a draw (default: 500,1000,2000)")
    targets: tuple[str, ...] = setting(("0.9", "0.95", "0.98"), "accuracies to promise (default: 0.9,0.95,0.98)")
    certainty: float = setting(CERTAINTY, "certainty of each promise", "P")
    draws: int = setting(500, "draws of evaluation rows")
    seed: int = setting(0, "seed of the draws")
    results: str = setting(str(RESULTS), "file that the results are added to", "FILE")

    def __post_init__(self) -> None:
        sources = [name for name in ("data", "model", "predictions") if getattr(self, name)]
        if sources not in (["data", "model"], ["predictions"]):
            raise UserError("expected --data and --model, or --predictions alone")
        check(self.draws >= 1, "draws", self.draws, "1 or more")


def predict(settings: GuaranteeSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return confidence (n,) float32 and rightness (n,) bool of the whole population."""
    if settings.predictions:
        with np.load(settings.predictions) as arrays:
            return arrays["confidence"].astype(np.float32), arrays["is_right"].astype(bool)
    classifier = Classifier.load(settings.model or "")
    info, objective = classifier.info, classifier.info.objective
    columns = EvaluateSettings(
        model=settings.model or "",
        data=settings.data or "",
        text_column=settings.text_column,
        label_column=settings.label_column,
    ).columns(info)
    data = labelled.read(settings.data or "", columns, info.label_scheme)
    probabilities = classifier.predict_proba(data.texts)
    has_score = ~np.isnan(probabilities).any(axis=1)
    decisions, confidence = objective.decide(probabilities[has_score])
    return confidence, objective.is_right(decisions, data.labels[has_score])


def find_best_share(confidence: np.ndarray, is_right: np.ndarray, target: float) -> float:
    """Return the largest share of the population above a threshold at which the target holds."""
    order = np.argsort(-confidence, kind="stable")
    labelled_rows = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(is_right[order]) / labelled_rows
    last_of_equals = np.append(np.diff(confidence[order]) < 0, True)
    holds = np.flatnonzero(last_of_equals & (accuracy >= target))
    return float(labelled_rows[holds[-1]] / len(order)) if len(holds) else 0.0


def simulate(
    confidence: np.ndarray, is_right: np.ndarray, rows: int, target: float, certainty: float, draws: int, seed: int
) -> dict[str, Any]:
    """Draw evaluation rows from a population many times, and count how often the promise holds."""
    rng = np.random.default_rng(seed)
    ascending = np.sort(confidence)
    accuracies, shares = [], []
    for _ in range(draws):
        drawn = rng.integers(0, len(confidence), rows)
        promised = promise(count_above(confidence[drawn], is_right[drawn]), target, certainty)
        if promised.min_confidence is not None:
            threshold = np.float32(promised.min_confidence)
            accuracies.append(is_right[confidence >= threshold].mean())
            shares.append(1 - np.searchsorted(ascending, threshold) / len(ascending))
    held = np.array(accuracies) >= target
    return {
        "rows": rows,
        "target": target,
        "certainty": certainty,
        "draws": draws,
        "without_threshold": 1 - len(held) / draws,
        "held": float(held.mean()) if len(held) else None,  # of the draws with a threshold
        "held_of_all_draws": float(held.sum() / draws),
        "least_accuracy": float(min(accuracies)) if accuracies else None,
        "mean_share_labelled": float(np.mean(shares)) if shares else None,  # of the draws with a threshold
        "best_share_labelled": find_best_share(confidence, is_right, target),
    }


def main() -> None:
    """Simulate all numbers of rows and all targets."""
    settings = parse(GuaranteeSettings, __doc__)
    confidence, is_right = predict(settings)
    if settings.save:
        np.savez_compressed(settings.save, confidence=confidence, is_right=is_right)
    print(f"{settings.name}: {len(confidence):,} rows, accuracy {is_right.mean():.4f}")
    lines = []
    for rows in map(int, settings.rows):
        for target in map(float, settings.targets):
            line = simulate(confidence, is_right, rows, target, settings.certainty, settings.draws, settings.seed)
            lines.append(line)
            print(json.dumps(line), flush=True)
    results = Path(settings.results)
    content = json.loads(results.read_text()) if results.exists() else {}
    content[settings.name] = {"rows": len(confidence), "accuracy": float(is_right.mean()), "draws_of": lines}
    results.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_and_exit(main)
