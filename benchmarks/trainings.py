"""Find distinct texts, and note results that a rerun resumes, for benchmarks of many trainings."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sentiment_core.model.known_texts import hash_text


def find_distinct(texts: Sequence[str], left_out: Iterable[str] = ()) -> np.ndarray:
    """Return the indices (n,) int64, ascending, of the first rows of all texts but those left out."""
    seen = set(map(hash_text, left_out))
    first = []
    for i, text in enumerate(texts):
        if (text_hash := hash_text(text)) not in seen:
            seen.add(text_hash)
            first.append(i)
    return np.array(first, np.int64)


class ResultLines:
    """Lines of JSON in a file, one for each training that is done."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.lines = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the first line that has all these values; None if no line was there at the start."""
        return next((line for line in self.lines if all(line.get(name) == key[name] for name in key)), None)

    def append(self, line: Mapping[str, Any]) -> None:
        """Append a line to the file."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
