"""Measure how good a model is that has few labels, beside SetFit and beside fixed settings.

    python benchmarks/rows_per_label.py --data agnews_train.parquet --text-column title,text --test-rows 1500 \
        --model ENCODER --name agnews

A seed draws so many rows a label, all with different texts that are not among the test rows. `auto` is `sentiment-core
train` as it is. `none` is the same with `--recipe none`. SetFit (Tunstall et al. 2022, https://arxiv.org/abs/2209.11055)
learns from the same rows with its own defaults. For it run `pip install setfit` first. Lines of `held out` are of a
version that held a tenth of the rows out.

Accuracy is measured on test rows that no training reads: `--eval-data`, or without it `--test-rows` of `--data`.
Prints a table, and appends a line of JSON for each training to benchmarks/results/rows_per_label.jsonl. Trainings that
have a line there are skipped.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from trainings import ResultLines, find_distinct

from sentiment_core.api import Classifier
from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, check, parse, setting
from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.training.data import divide
from sentiment_core.training.job import train
from sentiment_core.training.settings import TrainSettings

RESULTS = Path(__file__).parent / "results" / "rows_per_label.jsonl"


@dataclass(frozen=True)
class RowsPerLabelSettings:
    """Settings of `rows_per_label.py`."""

    name: str = setting(REQUIRED, "name of the data in the results", "NAME")
    data: str = setting(REQUIRED, "labelled text, as for jobs/train.py, to draw rows from", "D")
    model: str = setting(REQUIRED, "the encoder: a Hugging Face model folder", "DIR")
    eval_data: str | None = setting(None, "labelled text to measure accuracy on", "D")
    test_rows: int = setting(1_500, "rows of --data to measure accuracy on, without --eval-data")
    text_column: tuple[str, ...] = setting(("text",), "column with the text", "A,B")
    label_column: str = setting("label", "column with the label")
    min_words: int = setting(1, "draw texts of so many words and more")
    rows: tuple[str, ...] = setting(("8", "32", "128"), "rows a label to train on", "N,N")
    ways: tuple[str, ...] = setting(("auto", "none", "setfit"), "of auto, none and setfit: what to train", "A,B")
    seeds: int = setting(3, "draws of rows")
    max_length: int = setting(64, "tokens that the encoder reads of a text")
    results: str = setting(str(RESULTS), "file that the lines of JSON are appended to", "FILE")

    def __post_init__(self) -> None:
        for number in self.rows:
            check(number.isdigit() and int(number) >= 2, "rows", number, "whole numbers of 2 or more")
        for way in self.ways:
            check(way in WAYS, "ways", way, ", ".join(WAYS))


@dataclass(frozen=True)
class Drawn:
    """Rows to train on and rows to test on."""

    settings: RowsPerLabelSettings
    seed: int
    train: LabelledTexts
    test: LabelledTexts


def read_rows(settings: RowsPerLabelSettings) -> tuple[LabelledTexts, LabelledTexts]:
    """Read the rows to draw from and the rows to test on. Raises UserError."""
    columns = Columns(settings.text_column, settings.label_column)
    data = labelled.read(settings.data, columns)
    if settings.eval_data:
        test = labelled.read(settings.eval_data, columns, data.scheme)
    else:
        order = np.random.default_rng(0).permutation(find_distinct(data.texts))
        test = data.take(order[: settings.test_rows])
    distinct = find_distinct(data.texts, test.texts)
    has_words = [len(data.texts[i].split()) >= settings.min_words for i in distinct]
    return data.take(distinct[has_words]), test


def draw(data: LabelledTexts, rows_per_label: int, seed: int) -> LabelledTexts:
    """Draw so many rows of each label, or all where it has fewer. Raises UserError where these are fewer than 8."""
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    for label, name in enumerate(data.label_names):
        of_label = np.flatnonzero(data.labels == label)
        if len(of_label) < min(rows_per_label, 8):
            raise UserError(f"label {name!r} has {len(of_label):,} rows to draw; expected 8 or more. Add rows.")
        rows += rng.choice(of_label, min(rows_per_label, len(of_label)), replace=False).tolist()
    return data.take(rng.permutation(rows))


def train_here(drawn: Drawn, recipe: str) -> dict[str, Any]:
    """Train with this package; return accuracy, calibration error and what the recipe chose."""
    with tempfile.TemporaryDirectory() as folder:
        train_settings = TrainSettings(
            data=drawn.settings.data,
            model=drawn.settings.model,
            out=f"{folder}/bundle",
            text_column=drawn.settings.text_column,
            label_column=drawn.settings.label_column,
            max_length=drawn.settings.max_length,
            recipe=recipe,  # type: ignore[arg-type]
            seed=drawn.seed,
        )
        trained = train(train_settings, parts=divide(drawn.train, train_settings))
        probabilities = Classifier.load(train_settings.out).predict_proba(drawn.test.texts)
    scores = trained.info.objective.evaluate(probabilities, drawn.test.labels, drawn.test.label_names)
    names = ("epochs", "batch_size", "lr", "head_lr")
    chosen = {name: trained.info.training.settings[name] for name in names}
    return {"accuracy": scores.accuracy, "ece": scores.ece, "chosen": chosen}


def train_setfit(drawn: Drawn) -> dict[str, Any]:
    """Train with SetFit's defaults; return the accuracy. Raises UserError where SetFit is missing."""
    try:
        import datasets
        import setfit
    except ImportError:
        raise UserError(
            "--ways setfit needs the package setfit. Run pip install setfit, or leave setfit out."
        ) from None
    model = setfit.SetFitModel.from_pretrained(drawn.settings.model)
    model.model_body.max_seq_length = drawn.settings.max_length
    rows = datasets.Dataset.from_dict({"text": drawn.train.texts, "label": drawn.train.labels.tolist()})
    with tempfile.TemporaryDirectory() as folder:
        arguments = setfit.TrainingArguments(
            output_dir=folder, seed=drawn.seed, report_to="none", show_progress_bar=False
        )
        setfit.Trainer(model=model, args=arguments, train_dataset=rows).train()
    predicted = np.asarray(model.predict(drawn.test.texts, show_progress_bar=False))
    return {"accuracy": float((predicted == drawn.test.labels).mean())}


WAYS: dict[str, Callable[[Drawn], dict[str, Any]]] = {
    "auto": lambda drawn: train_here(drawn, "auto"),
    "none": lambda drawn: train_here(drawn, "none"),
    "setfit": train_setfit,
}


def measure(settings: RowsPerLabelSettings) -> list[dict[str, Any]]:
    """Run the trainings that have no line yet. Returns the lines of all. Raises UserError."""
    data, test = read_rows(settings)
    results = ResultLines(settings.results)
    lines = []
    for rows in map(int, settings.rows):
        for seed in range(settings.seeds):
            drawn = Drawn(settings, seed, draw(data, rows, seed), test)
            for way in settings.ways:
                key = {
                    "name": settings.name,
                    "model": Path(settings.model).name,
                    "rows_per_label": rows,
                    "seed": seed,
                    "way": way,
                    "max_length": settings.max_length,
                    "data_sha256": drawn.train.fingerprint(),
                    "test_sha256": test.fingerprint(),
                }
                line = results.find(key)
                if line is None:
                    started = time.monotonic()
                    line = key | WAYS[way](drawn) | {"seconds": time.monotonic() - started}
                    results.append(line)
                    print(
                        f"{settings.name}, {rows} rows a label, seed {seed}, {way}: accuracy {line['accuracy']:.4f} "
                        f"({line['seconds']:.0f} s)",
                        flush=True,
                    )
                lines.append(line)
    return lines


def format_table(lines: Sequence[dict[str, Any]]) -> str:
    """Return a table of mean accuracies, and the range over seeds."""
    ways = list(dict.fromkeys(line["way"] for line in lines))
    table = ["rows a label  " + "  ".join(f"{way:24}" for way in ways).rstrip()]
    for rows in sorted({line["rows_per_label"] for line in lines}):
        cells = []
        for way in ways:
            of_way = [x["accuracy"] for x in lines if (x["rows_per_label"], x["way"]) == (rows, way)]
            cells.append(f"{np.mean(of_way):.4f} ({min(of_way):.4f} to {max(of_way):.4f})")
        table.append(f"{rows:12}  " + "  ".join(cells))
    return "\n".join(table)


def main() -> None:
    """Run the trainings that have no line yet, and print the table."""
    print(format_table(measure(parse(RowsPerLabelSettings, __doc__))))


if __name__ == "__main__":
    run_and_exit(main)
