"""Two small models that differ in tokenizer, length and order of labels, rows that they disagree on, and a cascade."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sentiment_core.adoption import AdoptSettings, adopt
from sentiment_core.api import Classifier
from sentiment_core.cascading.job import make_cascade
from sentiment_core.cascading.settings import CascadeSettings
from tests.conftest import BAD, GOOD
from tests.ready_models import LABELS, make_classifier

ROWS = 600


@dataclass(frozen=True)
class Models:
    """Paths of the models, of the rows that chose the cascade's threshold, and of the cascade."""

    small: str  # a bundle that reads 12 tokens of a text
    large: str  # a ready classifier with another tokenizer
    data: str
    cascade: str


def make_models(packaged_encoder: str, folder: Path) -> Models:
    """Make the models, and a cascade of them."""
    ready = make_classifier("distilbert", folder / "ready", packaged_encoder)
    small = str(folder / "small")
    adopt(AdoptSettings(model=ready, out=small, label_names=LABELS[::-1], max_length=12))
    large = make_classifier("roberta", folder / "large", packaged_encoder)
    data = write_rows(small, large, folder / "unseen.parquet")
    models = Models(small, large, data, str(folder / "cascade"))
    make_cascade(settings_of(models))
    return models


def settings_of(models: Models, **changes: object) -> CascadeSettings:
    """Return the settings that made the cascade, with some changed."""
    named = {"small": models.small, "large": models.large, "data": models.data, "out": models.cascade, "max_loss": 0.1}
    return CascadeSettings(**named | changes)


@functools.cache
def load(path: str) -> Classifier:
    """Load a model once for all tests of a process, in float32, as tests score: some rows are near the threshold."""
    return Classifier.load(path, precision="float32")


def make_texts(rows: int, seed: int) -> list[str]:
    """Make different texts of 1 to 25 words."""
    rng = np.random.default_rng(seed)
    words = [*GOOD, *BAD, "film", "book", "the", "was", "and", "not", "we", "talked", "about", "it"]
    return [f"{' '.join(rng.choice(words, rng.integers(1, 25)))} {seed} {i}" for i in range(rows)]


def write_rows(small: str, large: str, path: Path, rows: int = ROWS) -> str:
    """Write labelled rows on which the small model is right if it is sure, and the large one on most others."""
    texts = make_texts(rows, seed=7)
    probabilities = {model: load(model).predict_proba(texts) for model in (small, large)}
    labels = {model: np.array(load(model).labels)[own.argmax(axis=1)] for model, own in probabilities.items()}
    confidence = probabilities[small].max(axis=1)
    is_sure = confidence >= np.quantile(confidence, 0.6)
    pq.write_table(pa.table({"text": texts, "label": np.where(is_sure, labels[small], labels[large])}), path)
    return str(path)
