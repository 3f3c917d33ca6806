"""Measure how many of the labels that are suspected first are wrong, where some were made wrong on purpose.

    python benchmarks/suspects.py --data sst2_dev.parquet --model models/sst2 --name sst2

Flips labels to any other label, evenly, and ranks the rows as `sentiment-core evaluate --suspects` does. The model must
not have seen the data. The precision of the first rows is the share of them that were flipped. Labels that were wrong
before count as right, so the true precision is higher.

Prints the means over several draws of flipped labels, and adds them to benchmarks/results/suspects.json by name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sentiment_core.analysis.suspects import find_suspects
from sentiment_core.api import Classifier
from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, check, parse, setting
from sentiment_core.data import labelled
from sentiment_core.errors import UserError
from sentiment_core.evaluation import EvaluateSettings
from sentiment_core.model.objective import Objective

RESULTS = Path(__file__).parent / "results" / "suspects.json"


@dataclass(frozen=True)
class SuspectsSettings:
    """Settings of `suspects.py`."""

    name: str = setting(REQUIRED, "name of the data in the results", "NAME")
    data: str = setting(REQUIRED, "labelled text that the model has not seen, as for evaluate", "D")
    model: str = setting(REQUIRED, "bundle that labels it", "MODEL")
    text_column: tuple[str, ...] = setting((), "column with the text, as for evaluate", "A,B")
    label_column: str = setting("label", "column with the label")
    flipped: float = setting(0.05, "share of the labels that are flipped", "P")
    first: tuple[str, ...] = setting(("50", "200"), "rows of the list to look at (default: 50,200)")
    draws: int = setting(20, "draws of flipped labels")
    seed: int = setting(0, "seed of the draws")
    results: str = setting(str(RESULTS), "file that the results are added to", "FILE")

    def __post_init__(self) -> None:
        check(0 < self.flipped < 1, "flipped", self.flipped, "a share between 0 and 1")
        check(
            all(rows.isdigit() and int(rows) for rows in self.first), "first", ",".join(self.first), "numbers of rows"
        )
        check(self.draws >= 1, "draws", self.draws, "1 or more")


def predict(settings: SuspectsSettings) -> tuple[Objective, np.ndarray, np.ndarray]:
    """Return the objective, probabilities (n, labels) and labels (n,) of the rows with a score. Raises UserError."""
    classifier = Classifier.load(settings.model)
    info = classifier.info
    columns = EvaluateSettings(
        model=settings.model,
        data=settings.data,
        text_column=settings.text_column,
        label_column=settings.label_column,
    ).columns(info)
    data = labelled.read(settings.data, columns, info.label_scheme)
    if data.several:
        raise UserError(f"--model {settings.model} gives several labels a row; expected one. Give another bundle.")
    if data.fingerprint() == info.training.data.fingerprint:
        raise UserError(
            f"--model {settings.model} was trained on --data {settings.data}; expected rows that it has not seen. Give "
            "others."
        )
    probabilities = classifier.predict_proba(data.texts)
    has_score = ~np.isnan(probabilities).any(axis=1)
    return info.objective, probabilities[has_score], data.labels[has_score]


def flip(labels: np.ndarray, classes: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Flip a share of labels, each to any other label.

    Returns:
        The labels (n,) int, and which of them were flipped, (n,) bool.
    """
    rows = rng.choice(len(labels), round(share * len(labels)), replace=False)
    changed = labels.copy()
    changed[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    return changed, changed != labels


def simulate(
    objective: Objective,
    probabilities: np.ndarray,
    labels: np.ndarray,
    share: float,
    first: Sequence[int],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Flip labels many times, and measure the precision of the lists of suspects.

    Args:
        objective: Of the model, single-label.
        probabilities: (n, labels), without NaN.
        labels: (n,) int, taken for right.
        share: Of the labels to flip.
        first: Rows of the lists to look at.
        draws: Of flipped labels.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    hits = []  # by draw: which rows of the list were flipped, the most suspected first
    for _ in range(draws):
        changed, is_flipped = flip(labels, probabilities.shape[1], share, rng)
        hits.append(is_flipped[find_suspects(objective, probabilities, changed).rows])
    flipped = round(share * len(labels))
    decisions, _ = objective.decide(probabilities)
    return {
        "rows": len(labels),
        "labels": probabilities.shape[1],
        "accuracy": float(objective.is_right(decisions, labels).mean()),  # of the model, before labels are flipped
        "flipped": flipped,
        "draws": draws,
        "suspects": float(np.mean([len(hit) for hit in hits])),
        "flipped_in_list": float(np.mean([hit.sum() / flipped for hit in hits])) if flipped else None,
        "first": [describe_first(rows, hits, flipped, len(labels)) for rows in first],
    }


def describe_first(rows: int, hits: Sequence[np.ndarray], flipped: int, population: int) -> dict[str, Any]:
    """Describe the first rows of the lists; a list that ends before is taken as it is."""
    precisions = [hit[:rows].mean() for hit in hits if len(hit)]
    listed = [min(rows, len(hit)) for hit in hits]
    return {
        "rows": rows,
        "listed": float(np.mean(listed)),
        "precision": float(np.mean(precisions)) if precisions else None,
        "least_precision": float(min(precisions)) if precisions else None,
        "best_precision": float(np.mean([min(1, flipped / max(1, number)) for number in listed])),  # of any list
        "random_precision": flipped / population,
    }


def main() -> None:
    """Measure the precision of the first suspects."""
    settings = parse(SuspectsSettings, __doc__)
    objective, probabilities, labels = predict(settings)
    first = [int(rows) for rows in settings.first]
    record = simulate(objective, probabilities, labels, settings.flipped, first, settings.draws, settings.seed)
    print(f"{settings.name}: {json.dumps(record, indent=2)}")
    results = Path(settings.results)
    content = json.loads(results.read_text()) if results.exists() else {}
    content[settings.name] = record
    results.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    run_and_exit(main)
