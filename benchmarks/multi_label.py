"""Train on several labels a text beside transformers' Trainer, and compare what comes of it on held-out rows.

    python benchmarks/multi_label.py --data goemotions_train.parquet --eval-data goemotions_dev.parquet \
        --label-column labels --model ENCODER --name goemotions

Both train for the same epochs. The Trainer has its defaults but for batches of 32 rows, grouped by length, and the
chip's fastest number type; its labels are those with a probability above 0.5. This project trains as `jobs/train.py`
does without flags, and holds a tenth of the training rows out for calibration and thresholds. Writes JSON into
benchmarks/results/. Needs the extra `benchmark`.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from timing import RESULTS, today
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, parse, setting
from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.readers import Columns
from sentiment_core.evaluation import EvaluateSettings, evaluate
from sentiment_core.model import bundle, classifier
from sentiment_core.model.objective import MultiLabel
from sentiment_core.runtime import hardware
from sentiment_core.training.job import train
from sentiment_core.training.settings import TrainSettings

MAX_LENGTH = 256


@dataclass(frozen=True)
class MultiLabelSettings:
    """Settings of `multi_label.py`."""

    data: str = setting(REQUIRED, "labelled text, as for jobs/train.py", "D")
    eval_data: str = setting(REQUIRED, "labelled text to compare on; neither trains on it", "D")
    model: str = setting(REQUIRED, "the encoder: a Hugging Face model folder", "DIR")
    label_column: str = setting("labels", "column with the lists of labels")
    epochs: int = setting(3, "passes over the rows")
    trainer_lr: float = setting(5e-5, "the Trainer's peak learning rate")
    seed: int = setting(0, "seed of both trainings")
    name: str = setting("multi_label", "name of the file in benchmarks/results/: multi_label_NAME.json")
    results: str = setting(str(RESULTS), "folder for the JSON file", "DIR")


def main() -> None:
    """Train both, print their metrics and write the report."""
    settings = parse(MultiLabelSettings, __doc__)
    columns = Columns(("text",), settings.label_column)
    data = labelled.read(settings.data, columns)
    eval_data = labelled.read(settings.eval_data, columns, data.scheme)
    contenders = {
        "sentiment-core": train_with_this(settings),
        "Trainer": train_with_trainer(settings, data, eval_data),
    }
    report = {
        "date": today(),
        "device": hardware.device_name(hardware.device()),
        "settings": {"epochs": settings.epochs, "trainer_lr": settings.trainer_lr, "seed": settings.seed}
        | {"data": Path(settings.data).name, "eval_data": Path(settings.eval_data).name},
        "rows": len(data),
        "eval_rows": len(eval_data),
        "contenders": contenders,
        "libraries": bundle.library_versions(),
    }
    for name, result in contenders.items():
        numbers = {key: value for key, value in result.items() if key not in ("by_label", "risk_coverage", "labels")}
        print(name, json.dumps(numbers))
    Path(settings.results, f"multi_label_{settings.name}.json").write_text(json.dumps(report, indent=2) + "\n")


def train_with_this(settings: MultiLabelSettings) -> dict:
    """Train and evaluate with this project; return the metrics and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trained = train(
            TrainSettings(
                data=settings.data,
                label_column=settings.label_column,
                model=settings.model,
                out=f"{folder}/bundle",
                epochs=settings.epochs,
                seed=settings.seed,
            )
        )
        seconds = time.perf_counter() - started
        request = EvaluateSettings(trained.place, settings.eval_data, label_column=settings.label_column)
        return shorten(evaluate(request).to_json()) | {"train_seconds": seconds}


def train_with_trainer(settings: MultiLabelSettings, data: LabelledTexts, eval_data: LabelledTexts) -> dict:
    """Train with the Trainer; return the same metrics and seconds."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    objective = MultiLabel((0.5,) * len(data.label_names))
    torch.manual_seed(settings.seed)
    config = classifier.make_config(settings.model, data.label_names, problem_type=objective.problem_type)
    model = AutoModelForSequenceClassification.from_pretrained(settings.model, config=config, dtype=torch.float32)
    datasets.disable_progress_bars()
    device = hardware.device()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                per_device_train_batch_size=32,
                num_train_epochs=settings.epochs,
                learning_rate=settings.trainer_lr,
                bf16=hardware.number_types(device)[-1] == torch.bfloat16,
                use_cpu=device.type == "cpu",
                train_sampling_strategy="group_by_length",
                seed=settings.seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=tokenize(data, tokenizer),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        seconds = trainer.train().metrics["train_runtime"]
        predicted = trainer.predict(tokenize(eval_data, tokenizer))  # in another order
    probabilities = objective.activate(predicted.predictions)
    metrics = objective.evaluate(probabilities, predicted.label_ids.astype(bool), data.label_names)
    return shorten(metrics.to_json()) | {"train_seconds": seconds}


def tokenize(part: LabelledTexts, tokenizer: AutoTokenizer) -> datasets.Dataset:
    """Return rows as the Trainer takes them: token ids, and a 0 or 1 for each label."""
    labels = np.asarray(part.labels, np.float32).tolist()
    rows = datasets.Dataset.from_dict({"text": part.texts, "labels": labels})
    return rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
        batched=True,
        remove_columns="text",
    )


def shorten(metrics: dict) -> dict:
    """Leave the curves out of the metrics."""
    by_label = {
        name: {key: value for key, value in label.items() if key != "reliability"}
        for name, label in metrics["by_label"].items()
    }
    return {name: value for name, value in metrics.items() if name != "risk_coverage"} | {"by_label": by_label}


if __name__ == "__main__":
    run_and_exit(main)
