"""Compute texts with an engine alone, and measure how fast it is."""

import time
from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.inference.engine import Engine
from sentiment_core.model import bundle
from sentiment_core.runtime import cpu_threads, hardware, storage
from sentiment_core.text.token_lists import TokenLists

WARM_UP_ROWS = 64  # computed before the clock starts


@dataclass(frozen=True)
class MeasuredAnswers:
    """A model's answers to texts, and how fast it gave them."""

    probabilities: np.ndarray  # (n, classes), NaN where there are no tokens
    tokens: TokenLists
    unknown_id: int | None
    rows_per_second: float
    computed_by: str
    chip: str
    threads: int | None  # of a CPU

    def take(self, rows: np.ndarray) -> "MeasuredAnswers":
        """Select rows."""
        return replace(self, probabilities=self.probabilities[rows], tokens=self.tokens.take(rows))


def measure_answers(files: dict[str, bytes], texts: list[str], labels: list[str]) -> MeasuredAnswers:
    """Compute texts with the bundle of these files.

    The probabilities are in the order of `labels`, which are the bundle's in any order. Tokenizing is not timed.
    """
    own_labels = bundle.info_of(files).labels
    with storage.unpack_files(files) as folder:
        tokenizer = bundle.load_tokenizer(folder)
        tokens, _ = tokenizer.encode(texts)
        engine = Engine.load(folder, mean_tokens=float(tokens.lengths.mean()))
    engine.probabilities(tokens.take(np.arange(min(WARM_UP_ROWS, len(texts)))))
    started = time.perf_counter()
    probabilities, _ = engine.probabilities(tokens)
    seconds = time.perf_counter() - started
    return MeasuredAnswers(
        probabilities[:, [own_labels.index(label) for label in labels]],
        tokens,
        tokenizer.unknown_id,
        len(texts) / seconds,
        engine.computed_by,
        hardware.device_name(engine.device),
        cpu_threads.count_usable() if engine.device.type == "cpu" else None,
    )
