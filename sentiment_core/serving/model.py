"""Turn texts into the answers of the service: label, confidence, probabilities, and which words decide."""

import asyncio
import string
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sentiment_core.api import Classifier
from sentiment_core.runtime.precision import Precision
from sentiment_core.serving.micro_batching import MAX_BATCH_TEXTS
from sentiment_core.text.status import ABSTAINED, STATUS_NAMES, apply_min_confidence

# Of an explained text: its first words, and all its characters. One copy of it is computed for each word.
EXPLAINED_WORDS, EXPLAINED_CHARACTERS = 200, 20_000
SLICE_TEXTS = 16  # of these copies are computed at once: a text to score waits for no more
WARM_UP_BATCHES = 3  # after one, the engine's memory grew by 40 MB more under requests; after three by 2
MIN_PROBABILITY = 1e-6  # below, log odds mean nothing


@dataclass(frozen=True)
class Result:
    """Label and confidence of a text, as `sentiment-core score` writes them."""

    label: str | None
    confidence: float | None
    probabilities: dict[str, float] | None
    status: str


@dataclass(frozen=True)
class MultiLabelResult:
    """Labels and confidence of a text, as `sentiment-core score` writes them."""

    labels: list[str] | None
    confidence: float | None
    probabilities: dict[str, float] | None
    status: str


@dataclass(frozen=True)
class Results:
    """Results of a request's texts, in their order, and the digest of the bundle that computed them."""

    bundle: str
    results: list[Result] | list[MultiLabelResult]


@dataclass(frozen=True)
class Explanation(Result):
    """Result of a text, and for each word by how much the label's log odds fall without it."""

    bundle: str
    words: list[tuple[str, float]]


@dataclass(frozen=True)
class MultiLabelExplanation(MultiLabelResult):
    """Result of a text, and for each word by how much the log odds of the most probable label fall without it."""

    bundle: str
    words: list[tuple[str, float]]


class ServedModel:
    """A bundle, loaded and warmed up."""

    def __init__(
        self, files: Mapping[str, bytes], threads: int, min_confidence: float, precision: Precision = "auto"
    ) -> None:
        """Load a bundle from its files by name, and compute some texts, so that the first request is as fast as others.

        Args:
            files: The bundle's files, as `source.open_model` returns them.
            threads: CPU threads to compute with.
            min_confidence: Texts below this confidence abstain.
            precision: Number type to compute in, as `Classifier` takes it.
        """
        self._classifier = Classifier(files, threads, precision)
        self._objective = self._classifier.info.objective
        self._min_confidence = min_confidence
        self.digest = self._classifier.digest
        self._warm_up()

    @property
    def computed_by(self) -> str:
        """Name of the backend and number type that compute."""
        return self._classifier.computed_by

    def _warm_up(self) -> None:
        """Compute full batches of texts of all lengths, most of them short.

        Buffers then have their size, and kernels are compiled.
        """
        random = np.random.default_rng(0)
        letters = list(string.ascii_lowercase)  # words of one token
        for _ in range(WARM_UP_BATCHES):
            lengths = self._classifier.info.max_length ** random.random(MAX_BATCH_TEXTS)
            self._predict([" ".join(random.choice(letters, int(length))) for length in lengths])

    def join_fields(self, text: str | Mapping[str, str | None]) -> str | None:
        """Return a text as the model reads it, see `Classifier.join_fields`."""
        return self._classifier.join_fields(text)

    def answer(self, requests: list[list[str | None]]) -> list[Results]:
        """Compute the texts of several requests together."""
        probabilities, status = self._predict([text for texts in requests for text in texts])
        results = iter(self._to_results(probabilities, status))
        return [Results(self.digest, [next(results) for _ in texts]) for texts in requests]

    async def explain(
        self, text: str, compute: Callable[..., Awaitable[Any]] = asyncio.to_thread
    ) -> Explanation | MultiLabelExplanation:
        """Compute a text's result, and what each of its first words adds to the most probable label's log odds.

        Each word is left out once (Li et al. 2016, Understanding Neural Networks through Representation Erasure).

        Args:
            text: The text.
            compute: Makes a call in a thread; called for some copies of the text at a time.
        """
        words = text.split()
        explained = words[:EXPLAINED_WORDS]

        def predict(left_out: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
            return self._predict([text if i is None else " ".join(words[:i] + words[i + 1 :]) for i in left_out])

        left_out = [None, *range(len(explained))]  # of each copy, the word that it lacks
        slices = [left_out[start : start + SLICE_TEXTS] for start in range(0, len(left_out), SLICE_TEXTS)]
        parts = [await compute(predict, indexes) for indexes in slices]
        probabilities, status = (np.concatenate(values) for values in zip(*parts, strict=True))
        result = self._to_results(probabilities[:1], status[:1])[0]
        falls = np.zeros(len(explained))
        if result.confidence is not None:
            index = int(probabilities[0].argmax())
            uniform = 1 / len(self._classifier.labels)  # for what is left of a text of one word: nothing to score
            p = np.nan_to_num(probabilities[:, index], nan=uniform).clip(MIN_PROBABILITY, 1 - MIN_PROBABILITY)
            log_odds = np.log(p / (1 - p))
            falls = log_odds[0] - log_odds[1:]
        rounded = [round(float(fall), 4) for fall in falls]
        kind: Any = MultiLabelExplanation if self._objective.several else Explanation
        return kind(**asdict(result), bundle=self.digest, words=[*zip(explained, rounded, strict=True)])

    def _predict(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """Compute probabilities (n, classes), NaN where there is nothing to score, and status codes (n,)."""
        probabilities, status = self._classifier.predict_with_status(texts)
        return probabilities, apply_min_confidence(
            status, self._objective.decide(probabilities)[1], self._min_confidence
        )

    def _to_results(self, probabilities: np.ndarray, status: np.ndarray) -> list[Any]:
        """Return a `Result` for each text, or a `MultiLabelResult`."""
        labels, objective = self._classifier.labels, self._objective
        kind: Any = MultiLabelResult if objective.several else Result
        has_score = ~np.isnan(probabilities).any(axis=1)
        results = []
        for row, code, decision, confidence, scored in zip(
            probabilities, status, *objective.decide(probabilities), has_score, strict=True
        ):
            if not scored:
                results.append(kind(None, None, None, STATUS_NAMES[code]))
                continue
            answer = objective.answer(decision, labels)
            results.append(
                kind(
                    **(dict.fromkeys(answer) if code == ABSTAINED else answer),
                    confidence=float(confidence),
                    probabilities=dict(zip(labels, row.tolist(), strict=True)),
                    status=STATUS_NAMES[code],
                )
            )
        return results
