"""Measure how accuracy grows with labels of chosen rows, beside labels of random rows.

    python benchmarks/label_choice.py --data sst2_train.parquet --eval-data sst2_dev.parquet --model ENCODER --name sst2

A seed draws a pool of distinct texts whose labels are hidden until they are asked for. Both arms train on the same
random rows first, and ask for as many further labels in each round. The arm `chosen` asks for the rows of the pool that
`sentiment-core sample --for training` chooses by the last model's scores; the arm `random` for random ones. All
trainings have the same settings.

A part of the evaluation rows chooses the epoch and calibrates. Accuracy is that on the others, which no training reads.
Prints a table, and appends a line of JSON for each training to benchmarks/results/label_choice.jsonl. Trainings that
have a line there are skipped.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from trainings import ResultLines, find_distinct

from sentiment_core.analysis import uncertain
from sentiment_core.api import Classifier
from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, check, parse, setting
from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.model.known_texts import hash_text
from sentiment_core.training.job import train
from sentiment_core.training.settings import TrainSettings

RESULTS = Path(__file__).parent / "results" / "label_choice.jsonl"
BOTH, RANDOM, CHOSEN = "both", "random", "chosen"  # arms; a seed's first training belongs to both
TRAINING: dict[str, Any] = {
    "recipe": "none",
    "batch_size": 16,
    "lr": 1e-4,
    "head_lr": 1e-3,
    "dropout": 0.0,
    "patience": 99,
}


@dataclass(frozen=True)
class LabelChoiceSettings:
    """Settings of `label_choice.py`."""

    name: str = setting(REQUIRED, "name of the data in the results", "NAME")
    data: str = setting(REQUIRED, "labelled text, as for jobs/train.py, from which the pools are drawn", "D")
    eval_data: str = setting(REQUIRED, "labelled text to evaluate on", "D")
    model: str = setting(REQUIRED, "the encoder: a Hugging Face model folder", "DIR")
    text_column: tuple[str, ...] = setting(("text",), "column with the text", "A,B")
    label_column: str = setting("label", "column with the label")
    first_rows: int = setting(50, "random rows that both arms train on first")
    round_rows: int = setting(50, "labels that each further round asks for")
    rounds: int = setting(5, "trainings of an arm, the first one among them")
    pool_rows: int = setting(5_000, "rows of a pool, at most")
    selection_rows: int = setting(200, "evaluation rows that choose the epoch and calibrate")
    seeds: int = setting(5, "pools, each with trainings of its own")
    epochs: int = setting(8, "epochs of a training")
    max_length: int = setting(64, "tokens that the encoder reads of a text")
    results: str = setting(str(RESULTS), "file that the lines of JSON are appended to", "FILE")

    def __post_init__(self) -> None:
        for name in ("first_rows", "round_rows", "rounds", "selection_rows", "seeds"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(self.pool_rows >= self.most_labels, "pool_rows", self.pool_rows, f"{self.most_labels:,} or more")

    @property
    def most_labels(self) -> int:
        """Rows that the last training of an arm, and the round after it, need."""
        return self.first_rows + self.rounds * self.round_rows


@dataclass(frozen=True)
class Rows:
    """Labelled rows in three parts, with the same labels."""

    data: LabelledTexts  # to draw pools from: distinct texts, none of them among the evaluation rows
    selection: LabelledTexts  # evaluation rows that choose the epoch
    test: LabelledTexts  # those that accuracy is measured on

    def draw_pool(self, rows: int, seed: int) -> LabelledTexts:
        """Draw a pool, in random order."""
        return self.data.take(np.random.default_rng(seed).permutation(len(self.data))[:rows])


def read_rows(settings: LabelChoiceSettings) -> Rows:
    """Read the data and split the evaluation rows, for all seeds alike. Raises UserError."""
    columns = Columns(settings.text_column, settings.label_column)
    data = labelled.read(settings.data, columns)
    evaluation = labelled.read(settings.eval_data, columns, data.scheme)
    if len(evaluation) <= settings.selection_rows:
        raise UserError(
            f"--eval-data {settings.eval_data} has {len(evaluation):,} rows; expected more than --selection-rows "
            f"{settings.selection_rows:,}. Lower that or add rows."
        )
    distinct = find_distinct(data.texts, evaluation.texts)
    if len(distinct) < settings.most_labels:
        raise UserError(
            f"--data {settings.data} has {len(distinct):,} distinct texts that are not in --eval-data; expected "
            f"{settings.most_labels:,} or more. Add rows or lower --rounds."
        )
    order = np.random.default_rng(0).permutation(len(evaluation))
    selection, test = np.split(order, [settings.selection_rows])
    return Rows(data.take(distinct), evaluation.take(selection), evaluation.take(test))


def describe_conditions(settings: LabelChoiceSettings, rows: Rows) -> dict[str, Any]:
    """Return what decides the results besides seed and arm; lines under other conditions do not count."""
    names = ("first_rows", "round_rows", "pool_rows", "selection_rows", "epochs", "max_length")
    return {
        "model": Path(settings.model).name,
        **{name: getattr(settings, name) for name in names},
        "training": TRAINING,
        "data_sha256": rows.data.fingerprint(),
        "test_sha256": rows.test.fingerprint(),
    }


def choose(
    classifier: Classifier, texts: Sequence[str], labelled_rows: Sequence[int], number: int, seed: int
) -> list[int]:
    """Choose the rows of a pool to label next, as `sentiment-core sample --for training` does.

    Args:
        classifier: Scores the pool.
        texts: Of the pool.
        labelled_rows: Indices of rows that have labels already.
        number: Of rows to choose.
        seed: Of the choice.

    Returns:
        Indices of the chosen rows.
    """
    _, confidence = classifier.info.objective.decide(classifier.predict_proba(texts))
    by_confidence = np.lexsort((np.random.default_rng(seed).random(len(texts)), confidence))  # NaN comes last
    in_order = by_confidence[: np.count_nonzero(~np.isnan(confidence))]
    labelled_before = {hash_text(texts[i]) for i in labelled_rows}
    positions, _ = uncertain.find_candidates([texts[i] for i in in_order], labelled_before, number)
    candidates = in_order[positions]
    chosen = uncertain.choose_diverse([texts[i] for i in candidates], confidence[candidates], number, seed)
    return candidates[chosen].tolist()


def run(
    settings: LabelChoiceSettings, rows: Rows, pool: LabelledTexts, labelled_rows: list[int], seed: int, arm: str
) -> dict[str, Any]:
    """Train on the rows of a pool that have labels, and choose the next ones unless the arm is `random`."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        train_settings = TrainSettings(
            data=settings.data,
            model=settings.model,
            out=f"{folder}/bundle",
            text_column=settings.text_column,
            label_column=settings.label_column,
            epochs=settings.epochs,
            max_length=settings.max_length,
            seed=seed,
            **TRAINING,
        )
        trained = train(train_settings, parts=(pool.take(np.array(labelled_rows)), rows.selection))
        train_seconds = time.monotonic() - started
        classifier = Classifier.load(train_settings.out)
    probabilities = classifier.predict_proba(rows.test.texts)
    decisions, confidence = trained.info.objective.decide(probabilities)
    is_right = trained.info.objective.is_right(decisions, rows.test.labels) & ~np.isnan(confidence)
    return {
        "accuracy": float(is_right.mean()),
        "selection_accuracy": trained.info.metrics.accuracy,
        "best_epoch": trained.info.training.best_epoch,
        "next": [] if arm == RANDOM else choose(classifier, pool.texts, labelled_rows, settings.round_rows, seed),
        "train_seconds": train_seconds,
        "seconds": time.monotonic() - started,
    }


def measure(settings: LabelChoiceSettings) -> list[dict[str, Any]]:
    """Run the trainings that have no line yet. Returns the lines of all. Raises UserError."""
    rows = read_rows(settings)
    conditions = describe_conditions(settings, rows)
    results = ResultLines(settings.results)
    lines = []
    for seed in range(settings.seeds):
        pool = rows.draw_pool(settings.pool_rows, seed)
        asked = {arm: [*range(settings.first_rows)] for arm in (RANDOM, CHOSEN)}
        for number in range(settings.rounds):
            for arm in (RANDOM, CHOSEN) if number else (BOTH,):
                labelled_rows = asked[CHOSEN if arm == BOTH else arm]
                key: dict[str, Any] = {"name": settings.name, "seed": seed, "arm": arm, "labels": len(labelled_rows)}
                key |= conditions
                line = results.find(key)
                if line is None:
                    line = key | run(settings, rows, pool, labelled_rows, seed, arm)
                    results.append(line)
                    print(
                        f"{settings.name}, seed {seed}, {len(labelled_rows)} labels, {arm}: "
                        f"accuracy {line['accuracy']:.4f} ({line['seconds']:.0f} s)",
                        flush=True,
                    )
                lines.append(line)
                if arm != RANDOM:
                    asked[CHOSEN] = labelled_rows + line["next"]
            asked[RANDOM] = [*range(len(asked[RANDOM]) + settings.round_rows)]
    return lines


def format_table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a table of mean accuracies and standard deviations over seeds, and of differences within a seed."""
    table = [f"labels  {RANDOM:17}{CHOSEN:17}{CHOSEN} - {RANDOM}"]
    for labels in sorted({line["labels"] for line in lines}):
        of_size = [line for line in lines if line["labels"] == labels]
        by_arm = {
            arm: np.array([line["accuracy"] for line in of_size if line["arm"] in (arm, BOTH)])
            for arm in (RANDOM, CHOSEN)
        }
        columns = [*by_arm.values(), by_arm[CHOSEN] - by_arm[RANDOM]]
        cells = [f"{values.mean():6.4f} ± {values.std(ddof=int(len(values) > 1)):6.4f}" for values in columns]
        table.append("  ".join([f"{labels:6}", *cells]))
    return "\n".join(table)


def main() -> None:
    """Run the trainings that have no line yet, and print the table."""
    print(format_table(measure(parse(LabelChoiceSettings, __doc__))))


if __name__ == "__main__":
    run_and_exit(main)
