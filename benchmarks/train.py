"""Time this project's training beside transformers' Trainer.

Both train in turn, on the same rows with the same settings. The Trainer groups rows by length; it runs with either
kind of attention, and in each number type that the chip lists. Its best counts.

    python benchmarks/train.py --data sst2_train.parquet --eval-data sst2_dev.parquet --model ENCODER --name sst2

Prints rows per second of the training steps alone, and accuracy on the evaluation rows. A pass counts as all its rows,
also where --data-pruning skips some. Writes both as JSON into benchmarks/results/. Needs the extra `benchmark`.
"""

import functools
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
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
from sentiment_core.data.labels import LabelScheme
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, classifier
from sentiment_core.runtime import hardware
from sentiment_core.training.job import train
from sentiment_core.training.settings import TrainSettings

EVAL_ROWS = 10_000  # without --eval-data: enough to tell accuracies apart by half a point
HEAD_LR_FACTOR = 10  # times the encoder's rate; the Trainer has one rate for both


@dataclass(frozen=True)
class TrainBenchmarkSettings:
    """Settings of `train.py`."""

    data: str = setting(REQUIRED, "labelled text, as for jobs/train.py", "D")
    model: str = setting(REQUIRED, "the encoder: a Hugging Face model folder", "DIR")
    name: str = setting("train", "name of the file in benchmarks/results/: train_NAME.json")
    eval_data: str | None = setting(
        None, "labelled text to evaluate on (default: the rows of --data that are not trained on)", "D"
    )
    rows: int = setting(6_400, "training rows, drawn at random")
    rounds: int = setting(3, "trainings of each contender, in turn")
    epochs: int = setting(1, "passes over the rows in each training")
    batch_size: int = setting(64, "rows in a batch")
    lr: float = setting(1e-4, "peak learning rate")
    max_length: int = setting(256, "tokens of a text that are used; the rest is cut")
    dropout: float | None = setting(None, "dropout inside the encoder (default: the encoder's own)", "P")
    data_pruning: float = setting(0.0, "--data-pruning of jobs/train.py; the Trainer has no equivalent", "X")
    results: str = setting(str(RESULTS), "folder for the JSON file", "DIR")


def main() -> None:
    """Run the benchmark, print its rates and write its report."""
    settings = parse(TrainBenchmarkSettings, __doc__)
    data = labelled.read(settings.data)
    order = np.random.default_rng(0).permutation(len(data))
    if settings.eval_data:
        eval_data = labelled.read(settings.eval_data, scheme=LabelScheme(data.label_names))
    else:
        if len(data) <= settings.rows:
            raise UserError(
                f"--rows {settings.rows:,} leaves none of the {len(data):,} rows of {settings.data} to evaluate on. "
                "Lower it or give --eval-data."
            )
        eval_data = data.take(order[settings.rows :][:EVAL_ROWS])
    data = data.take(order[: settings.rows])
    contenders = {
        f"Trainer, {attention}, {hardware.dtype_name(dtype)}": functools.partial(
            train_with_trainer, attention=attention, dtype=dtype
        )
        for attention in ("sdpa", "eager")
        for dtype in hardware.number_types(hardware.device())
    } | {"sentiment-core": train_with_this}
    runs: dict[str, list[dict]] = {name: [] for name in contenders}
    for seed in range(settings.rounds):
        for name, train_contender in contenders.items():
            run = train_contender(settings, data, eval_data, seed)
            runs[name].append(run)
            print(f"{name}: {run['rows_per_second']:.1f} rows/s, accuracy {run['accuracy']:.4f}", flush=True)
    rates = {name: float(np.median([run["rows_per_second"] for run in trainings])) for name, trainings in runs.items()}
    trainer = max(rate for name, rate in rates.items() if name.startswith("Trainer"))
    report = {
        "date": today(),
        "device": hardware.device_name(hardware.device()),
        "cpus": os.cpu_count(),
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("results", "model")}
        | {"data": Path(settings.data).name, "eval_data": settings.eval_data and Path(settings.eval_data).name}
        | {"eval_rows": len(eval_data)},
        "rows_per_second": rates,
        "times_best_trainer": {name: rate / trainer for name, rate in rates.items()},
        "accuracy": {name: float(np.mean([run["accuracy"] for run in trainings])) for name, trainings in runs.items()},
        "runs": runs,
        "libraries": bundle.library_versions(),
    }
    for name, rate in rates.items():
        print(f"{name:24} {rate:7.1f} rows/s, {rate / trainer:.2f} times the best Trainer's")
    Path(settings.results).mkdir(exist_ok=True)
    Path(settings.results, f"train_{settings.name}.json").write_text(json.dumps(report, indent=2) + "\n")


def train_with_trainer(
    settings: TrainBenchmarkSettings,
    data: LabelledTexts,
    eval_data: LabelledTexts,
    seed: int,
    attention: str,
    dtype: torch.dtype,
) -> dict:
    """Train with the Trainer; return rows per second and accuracy."""
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    torch.manual_seed(seed)
    config = classifier.make_config(settings.model, data.label_names, settings.dropout)
    model = AutoModelForSequenceClassification.from_pretrained(
        settings.model, config=config, dtype=torch.float32, attn_implementation=attention
    )

    def tokenize(part: LabelledTexts) -> datasets.Dataset:
        rows = datasets.Dataset.from_dict({"text": part.texts, "label": part.labels})
        truncation = {"truncation": True, "max_length": settings.max_length}
        return rows.map(lambda batch: tokenizer(batch["text"], **truncation), batched=True, remove_columns="text")

    datasets.disable_progress_bars()
    device = hardware.device()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                per_device_train_batch_size=settings.batch_size,
                num_train_epochs=settings.epochs,
                learning_rate=settings.lr,
                warmup_steps=0.1,
                weight_decay=0.01,
                bf16=dtype == torch.bfloat16,
                fp16=dtype == torch.float16,
                use_cpu=device.type == "cpu",
                train_sampling_strategy="group_by_length",
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=tokenize(data),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        seconds = trainer.train().metrics["train_runtime"]
        predicted = trainer.predict(tokenize(eval_data))  # in another order
    return {
        "rows_per_second": len(data) * settings.epochs / seconds,
        "accuracy": float((predicted.predictions.argmax(axis=1) == predicted.label_ids).mean()),
    }


def train_with_this(settings: TrainBenchmarkSettings, data: LabelledTexts, eval_data: LabelledTexts, seed: int) -> dict:
    """Train with this project; return rows per second and accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        for name, part in (("train", data), ("eval", eval_data)):
            labels = [part.label_names[i] for i in part.labels]
            pq.write_table(pa.table({"text": part.texts, "label": labels}), f"{folder}/{name}.parquet")
        trained = train(
            TrainSettings(
                data=f"{folder}/train.parquet",
                eval_data=f"{folder}/eval.parquet",
                model=settings.model,
                out=f"{folder}/bundle",
                recipe="none",
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                lr=settings.lr,
                head_lr=HEAD_LR_FACTOR * settings.lr,
                max_length=settings.max_length,
                dropout=settings.dropout,
                data_pruning=settings.data_pruning,
                patience=settings.epochs,
                seed=seed,
            )
        )
    ray.shutdown()  # it would take time from the Trainer
    last = trained.log[-1]  # as the Trainer does
    return {
        "rows_per_second": len(data) * len(trained.log) / sum(record.seconds for record in trained.log),
        "accuracy": last.eval.accuracy,
    }


if __name__ == "__main__":
    run_and_exit(main)
