"""Classify texts in memory: texts in, labels and calibrated confidences out.

    classifier = Classifier.load("models/reviews")
    classifier.predict(["What a film!", "Dull."])

A call needs no Ray. For corpora that do not fit in memory use `sentiment_core.score`.
"""

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sentiment_core.errors import UserError
from sentiment_core.inference.cascade import load_engine
from sentiment_core.model import bundle, registry, source
from sentiment_core.runtime import storage
from sentiment_core.runtime.precision import Precision
from sentiment_core.text.arrow import join_fields
from sentiment_core.text.status import EMPTY, NULL, STATUS_NAMES
from sentiment_core.text.token_lists import DistinctLists


@dataclass(frozen=True)
class Prediction:
    """The label of one text, or its labels.

    Attributes:
        label: The most probable label; None for a text without anything to score, and of a multi-label model.
        confidence: Calibrated probability of that label, from 0 to 1; None for a text without anything to score. Of a
            multi-label model the least probability, over the labels, of what was decided.
        status: `ok`, `truncated` (longer than the model reads), `empty` or `null`.
        labels: Of a multi-label model the labels that reach their thresholds; None for a text without anything to
            score, and of other models.
    """

    label: str | None = None
    confidence: float | None = None
    status: str = "ok"
    labels: list[str] | None = None


class Classifier:
    """A model bundle, ready to classify texts.

    One call computes at a time; calls from several threads wait for one another.

    Attributes:
        labels: The labels, in the order of `predict_proba`'s columns.
        info: What the bundle says of itself: metrics, calibration, training data.
        digest: sha256 of all that decides a label, by which outputs name the bundle that made them.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        threads: int | None = None,
        precision: Precision = "auto",
        on_cpu: bool = False,
    ) -> None:
        """Load a bundle from the contents of its files.

        Args:
            files: The bundle's files by name, as `source.open_model` returns them.
            threads: CPU threads to compute with; None leaves the number to the library.
            precision: Number type to compute in: `float32`, `bfloat16`, `float16`, or the fastest as measured (`auto`).
            on_cpu: Whether to leave a GPU alone.

        Raises:
            UserError: The chip does not compute in that precision.
        """
        files = dict(files)
        with storage.unpack_files(files) as folder:
            self.info = bundle.read_info(folder)
            self._engine = load_engine(folder, threads=threads, precision=precision, on_cpu=on_cpu)
            self._tokenizers = bundle.load_tokenizers(folder)
        self.labels = list(self.info.labels)
        self.digest = bundle.digest_of(files)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str, threads: int | None = None, precision: Precision = "auto") -> "Classifier":
        """Load a bundle from a folder or URI; of a folder of bundles load the current one.

        A Hugging Face sequence classifier is loaded too. Its confidences are as it gives them, not calibrated, which a
        warning says.

        Args:
            path: Path or URI of the bundle, of a folder of bundles or of a classifier; or the name of a classifier on
                the Hugging Face hub, `owner/name` or `owner/name@revision`.
            threads: CPU threads to compute with; None leaves the number to the library.
            precision: Number type to compute in: `float32`, `bfloat16`, `float16`, or the fastest as measured (`auto`).

        Raises:
            UserError: `path` holds neither bundle nor classifier, it cannot be read, or the chip lacks that precision.
        """
        model = source.open_model(registry.resolve(str(path)))
        source.warn_if_uncalibrated(model.path, model.info)
        return cls(model.files, threads, precision)

    @property
    def computed_by(self) -> str:
        """Name of the backend and number type that compute, such as `openvino bfloat16`; of a cascade both."""
        return self._engine.computed_by

    def predict(self, texts: Iterable[str | None]) -> list[Prediction]:
        """Classify texts.

        Args:
            texts: The texts: a list, a pandas or Arrow column, ... None and NaN stand for a missing text. A model of
                several text columns also takes mappings with those fields.

        Returns:
            One prediction a text, in their order.

        Raises:
            UserError: `texts` is one text, or holds something that is no text.
        """
        probabilities, status = self.predict_with_status(texts)
        decisions, confidences = self.info.objective.decide(probabilities)
        return [
            Prediction(status=STATUS_NAMES[code])
            if code in (EMPTY, NULL)
            else Prediction(
                **self.info.objective.answer(decision, self.labels),
                confidence=float(confidence),
                status=STATUS_NAMES[code],
            )
            for decision, confidence, code in zip(decisions, confidences, status, strict=True)
        ]

    def predict_proba(self, texts: Iterable[str | None]) -> np.ndarray:
        """Compute calibrated probabilities of all labels.

        Args:
            texts: The texts, as for `predict`.

        Returns:
            (n, classes) float32 in the order of `labels`; NaN rows for texts without anything to score.

        Raises:
            UserError: `texts` is one text, or holds something that is no text.
        """
        return self.predict_with_status(texts)[0]

    def predict_with_status(self, texts: Iterable[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Compute probabilities (n, classes) as `predict_proba`, and status codes (n,) int8 as in `text.status`."""
        read = self._as_texts(texts)
        encoded = [tokenizer.encode(read) for tokenizer in self._tokenizers]
        with self._lock:
            classified = self._engine.classify(*[DistinctLists.find(tokens) for tokens, _ in encoded])
        return classified.probabilities, classified.pick(*[status for _, status in encoded])

    def join_fields(self, text: Any) -> str | None:
        """Return a text as the model reads it: the fields of a mapping are joined as scoring joins columns.

        Raises:
            UserError: It is no text, or has a field that the model does not have.
        """
        if not isinstance(text, Mapping):
            return _as_text(text)
        fields = self.info.text_columns
        if unknown := [name for name in text if name not in fields]:
            raise UserError(f"it has the field {unknown[0]!r}; expected {', '.join(fields)}")
        return join_fields([_as_text(text.get(name)) for name in fields])

    def _as_texts(self, texts: Iterable[Any]) -> list[str | None]:
        if isinstance(texts, str | bytes | Mapping | None):
            raise UserError(f"texts is {type(texts).__name__}; expected a list of texts: [text]")
        if hasattr(texts, "columns") and not hasattr(texts, "to_pylist"):  # iterating would give its columns' names
            raise UserError(f"texts is a {type(texts).__name__}; expected one of its columns, such as texts['text']")
        values = texts.to_pylist() if hasattr(texts, "to_pylist") else texts
        read: list[str | None] = []
        for value in values:
            try:
                read.append(self.join_fields(value))
            except UserError as error:
                raise UserError(f"text {len(read)}: {error}") from None
        return read

    def __repr__(self) -> str:
        return f"Classifier(labels={self.labels}, computed_by={self.computed_by!r})"


def _as_text(value: Any) -> str | None:
    """Return a text, None for a missing one; lone surrogates, which JSON may hold, become question marks."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if (
        value is None
        or type(value).__name__ in ("NAType", "NaTType")
        or (isinstance(value, float) and math.isnan(value))
    ):
        return None
    raise UserError(f"it is {type(value).__name__} ({value!r:.40}); expected text or None")
