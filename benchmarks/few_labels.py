"""Measure which techniques help when labels are few.

Each training adds one technique to the plain one. All train on the same rows with the same seeds and the same number
of steps.

    python benchmarks/few_labels.py --data sst2_train.parquet --eval-data sst2_dev.parquet --model ENCODER --rows 100

Augmentation (Wei and Zou 2019, EDA) replaces all copies of a row but the first. It drops words, swaps neighbors, or
replaces words by those with the nearest embedding in the encoder's own vocabulary. Prints accuracies on the evaluation
rows and appends a line of JSON for each training to benchmarks/results/few_labels.jsonl. Trainings that have a line
there are skipped.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file
from trainings import ResultLines
from transformers import AutoTokenizer

from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, parse, setting
from sentiment_core.data import labelled
from sentiment_core.data.labels import LabelScheme
from sentiment_core.training.job import train
from sentiment_core.training.settings import TrainSettings

RESULTS = Path(__file__).parent / "results" / "few_labels.jsonl"
EPOCHS, COPIES = {100: 4, 1000: 3}, {100: 4, 1000: 2}  # by rows; several copies in an epoch save evaluations
VARIANTS: dict[str, dict] = {
    "plain": {},
    "dropout 0.1": {"dropout": None},
    "adversarial": {"adversarial": 1.0},
    "twice as long": {},
    "frozen encoder": {"lr": 1e-12},
    "word dropout": {},
    "swap": {},
    "synonym": {},
}
CHANGED_SHARE = 0.1  # of a text's words
SYNONYMS, SYNONYM_COSINE = 5, 0.5  # at most so many, at least so near


@dataclass(frozen=True)
class FewLabelsSettings:
    """Settings of `few_labels.py`."""

    data: str = setting(REQUIRED, "labelled text, as for jobs/train.py", "D")
    eval_data: str = setting(REQUIRED, "labelled text to evaluate on", "D")
    model: str = setting(REQUIRED, "the encoder: a Hugging Face model folder", "DIR")
    rows: int = setting(100, "training rows, drawn by the seed: 100 or 1000")
    seeds: int = setting(3, "trainings of each variant, one for each seed")
    results: str = setting(str(RESULTS), "file that the lines of JSON are appended to", "FILE")


class Augmentation:
    """Changes to texts, with an encoder's vocabulary and embeddings."""

    def __init__(self, encoder: str) -> None:
        self.vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(encoder).get_vocab()
        self.words = {number: word for word, number in self.vocabulary.items()}
        tensors = load_file(f"{encoder}/model.safetensors")
        embeddings = next(value for name, value in tensors.items() if "word_embeddings" in name)
        self.directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        self.is_word = np.array([self.words[i].isalpha() for i in range(len(self.words))])

    def change(self, variant: str, text: str, rng: np.random.Generator) -> str:
        """Change a text as this variant does; others leave it as it is."""
        words = text.split()
        if variant == "word dropout":
            words = [word for word in words if rng.random() >= CHANGED_SHARE] or words
        if variant == "swap" and len(words) > 1:
            for _ in range(max(1, int(CHANGED_SHARE * len(words)))):
                i = rng.integers(len(words) - 1)
                words[i], words[i + 1] = words[i + 1], words[i]
        if variant == "synonym":
            for i, word in enumerate(words):
                if (rng.random() < CHANGED_SHARE or len(words) == 1) and (synonyms := self.nearest(word)):
                    words[i] = synonyms[rng.integers(len(synonyms))]
        return " ".join(words)

    def nearest(self, word: str) -> list[str]:
        """Return the words with the nearest embeddings, nearest first."""
        number = self.vocabulary.get(word)
        if number is None or not self.is_word[number]:
            return []
        likeness = np.where(self.is_word, self.directions @ self.directions[number], -1.0)
        likeness[number] = -1.0
        return [self.words[i] for i in np.argsort(-likeness)[:SYNONYMS] if likeness[i] > SYNONYM_COSINE]


def main() -> None:
    """Run the trainings that have no line yet."""
    settings = parse(FewLabelsSettings, __doc__)
    data = labelled.read(settings.data)
    augmentation = Augmentation(settings.model)
    results = ResultLines(settings.results)
    for seed in range(settings.seeds):
        rows = data.take(np.random.default_rng(seed).permutation(len(data))[: settings.rows])
        for variant, flags in VARIANTS.items():
            key = {"rows": settings.rows, "seed": seed, "variant": variant}
            if results.find(key):
                continue
            result = run(settings, rows, variant, flags, seed, augmentation)
            results.append(key | result)
            print(f"{settings.rows} rows, seed {seed}, {variant}: accuracy {result['accuracy']:.4f}", flush=True)


def run(
    settings: FewLabelsSettings,
    rows: labelled.LabelledTexts,
    variant: str,
    flags: dict,
    seed: int,
    augmentation: Augmentation,
) -> dict:
    """Train one variant; return its settings and metrics."""
    rng = np.random.default_rng(seed)
    texts = list(rows.texts)
    for _ in range(COPIES[settings.rows] - 1):
        texts += [augmentation.change(variant, text, rng) for text in rows.texts]
    labels = np.tile(rows.labels, COPIES[settings.rows])
    epochs_factor = 2 if variant in ("twice as long", "frozen encoder") else 1
    train_settings = {
        "batch_size": 16,
        "max_length": 64,
        "lr": 1e-4,
        "head_lr": 1e-3,
        "dropout": 0.0,
        "patience": 99,
    } | flags
    train_settings |= {"epochs": EPOCHS[settings.rows] * epochs_factor, "seed": seed, "model": settings.model}
    with tempfile.TemporaryDirectory() as folder:
        data, eval_data = f"{folder}/train.parquet", f"{folder}/eval.parquet"
        held_out = labelled.read(settings.eval_data, scheme=LabelScheme(rows.label_names))
        write(data, texts, labels, rows.label_names)
        write(eval_data, held_out.texts, held_out.labels, rows.label_names)
        trained = train(TrainSettings(data=data, eval_data=eval_data, out=f"{folder}/bundle", **train_settings))
    return {
        "settings": train_settings,
        "accuracy": trained.info.metrics.accuracy,
        "ece": trained.info.calibration.ece_cross_fitted,
        "by_epoch": [record.eval.accuracy for record in trained.log],
        "seconds": sum(record.seconds for record in trained.log),
    }


def write(path: str, texts: list[str], labels: np.ndarray, names: list[str]) -> None:
    """Write labelled text as Parquet."""
    pq.write_table(pa.table({"text": texts, "label": [names[label] for label in labels]}), path)


if __name__ == "__main__":
    run_and_exit(main)
