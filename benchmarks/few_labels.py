"""What helps when labels are few: trainings on a part of the rows, each with one thing more than the first, on the same
rows, seeds and number of steps.

    python benchmarks/few_labels.py --data sst2_train.parquet --eval-data sst2_dev.parquet --model ENCODER --rows 100

Augmentation (Wei and Zou 2019, EDA) gives each row as often as the others get its plain text: once as it is, and
else with words left out, neighbours swapped, or words replaced by those with the nearest embedding in the encoder's own
vocabulary. Prints accuracies on the evaluation rows, and adds a line of JSON for each training to
benchmarks/results/few_labels.jsonl; what is there already is not run again.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, parse, setting
from sentiment_core.data import labelled
from sentiment_core.training.job import TrainSettings, train

RESULTS = Path(__file__).parent / "results" / "few_labels.jsonl"
EPOCHS, COPIES = {100: 4, 1000: 3}, {100: 4, 1000: 2}  # copies of the rows in an epoch, so that fewer are evaluated
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
CHANGED = 0.1  # of a text's words
NEAREST, NEAR = 5, 0.5  # words that may stand for another, and how near they must be, by cosine


@dataclass(frozen=True)
class FewLabelsSettings:
    data: str = setting(REQUIRED, "labelled text, as for jobs/train.py", "D")
    eval_data: str = setting(REQUIRED, "labelled text to evaluate on", "D")
    model: str = setting(REQUIRED, "the encoder: a Hugging Face model folder", "DIR")
    rows: int = setting(100, "training rows, taken at random by the seed; 100 or 1000")
    seeds: int = setting(3, "of which each variant is trained once")
    results: str = setting(str(RESULTS), "where the lines of JSON go", "FILE")


class Augmentation:
    def __init__(self, encoder: str) -> None:
        self.vocabulary: dict[str, int] = AutoTokenizer.from_pretrained(encoder).get_vocab()
        self.words = {number: word for word, number in self.vocabulary.items()}
        tensors = load_file(f"{encoder}/model.safetensors")
        embeddings = next(value for name, value in tensors.items() if "word_embeddings" in name)
        self.directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        self.is_word = np.array([self.words[i].isalpha() for i in range(len(self.words))])

    def changed(self, how: str, text: str, rng: np.random.Generator) -> str:
        words = text.split()
        if how == "word dropout":
            words = [word for word in words if rng.random() >= CHANGED] or words
        if how == "swap" and len(words) > 1:
            for _ in range(max(1, int(CHANGED * len(words)))):
                i = rng.integers(len(words) - 1)
                words[i], words[i + 1] = words[i + 1], words[i]
        if how == "synonym":
            for i, word in enumerate(words):
                if (rng.random() < CHANGED or len(words) == 1) and (others := self.nearest(word)):
                    words[i] = others[rng.integers(len(others))]
        return " ".join(words)

    def nearest(self, word: str) -> list[str]:
        number = self.vocabulary.get(word)
        if number is None or not self.is_word[number]:
            return []
        likeness = np.where(self.is_word, self.directions @ self.directions[number], -1.0)
        likeness[number] = -1.0
        return [self.words[i] for i in np.argsort(-likeness)[:NEAREST] if likeness[i] > NEAR]


def main() -> None:
    settings = parse(FewLabelsSettings, __doc__)
    data = labelled.read(settings.data, "text", "label")
    augmentation = Augmentation(settings.model)
    results = Path(settings.results)
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed in range(settings.seeds):
        some = data.take(np.random.default_rng(seed).permutation(len(data))[: settings.rows])
        for variant, flags in VARIANTS.items():
            key = {"rows": settings.rows, "seed": seed, "variant": variant}
            if any(all(line[name] == value for name, value in key.items()) for line in done):
                continue
            found = run(settings, some, variant, flags, seed, augmentation)
            with results.open("a") as file:
                file.write(json.dumps(key | found) + "\n")
            print(f"{settings.rows} rows, seed {seed}, {variant}: accuracy {found['accuracy']:.4f}", flush=True)


def run(
    settings: FewLabelsSettings,
    rows: labelled.LabelledTexts,
    variant: str,
    flags: dict,
    seed: int,
    augmentation: Augmentation,
) -> dict:
    rng = np.random.default_rng(seed)
    texts = list(rows.texts)
    for _ in range(COPIES[settings.rows] - 1):
        texts += [augmentation.changed(variant, text, rng) for text in rows.texts]
    labels = np.tile(rows.labels, COPIES[settings.rows])
    longer = 2 if variant in ("twice as long", "frozen encoder") else 1
    asked = {"batch_size": 16, "max_length": 64, "lr": 1e-4, "head_lr": 1e-3, "dropout": 0.0, "patience": 99} | flags
    asked |= {"epochs": EPOCHS[settings.rows] * longer, "seed": seed, "model": settings.model}
    with tempfile.TemporaryDirectory() as folder:
        data, eval_data = f"{folder}/train.parquet", f"{folder}/eval.parquet"
        held_out = labelled.read(settings.eval_data, "text", "label", rows.label_names)
        write(data, texts, labels, rows.label_names)
        write(eval_data, held_out.texts, held_out.labels, rows.label_names)
        trained = train(TrainSettings(data=data, eval_data=eval_data, out=f"{folder}/bundle", **asked))
    return {
        "settings": asked,
        "accuracy": trained.info.metrics["accuracy"],
        "ece": trained.info.calibration["ece_cross_fitted"],
        "by_epoch": [record["eval"]["accuracy"] for record in trained.log],
        "seconds": sum(record["seconds"] for record in trained.log),
    }


def write(place: str, texts: list[str], labels: np.ndarray, names: list[str]) -> None:
    pq.write_table(pa.table({"text": texts, "label": [names[label] for label in labels]}), place)


if __name__ == "__main__":
    run_and_exit(main)
