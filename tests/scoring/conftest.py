"""A corpus of odd rows, scored once for all tests that look at the result."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sentiment_core.scoring.job import ScoreResult
from tests.scoring.runs import score_folder, write_shard

ODD_TEXTS = [
    "good", None, "", "   \n\t", "word " * 100, "naïve café 😀", "\x00\x01", "a\u200b", "\ufeff", "<br />", "🎉" * 50,
    "NULL",
    "x" * 5000,
]  # fmt: skip
ODD_CORPUS_ROWS = 3 * len(ODD_TEXTS) + 5


def invalid_utf8() -> pa.Array:
    """Return one text whose bytes are not UTF-8."""
    offsets = pa.py_buffer(np.array([0, 9], np.int32))
    return pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"caf\xe9 \xff ok")])


@pytest.fixture(scope="session")
def odd_corpus(tmp_path_factory) -> Path:
    """Every odd text in several kinds of text column, shards and folders."""
    root = tmp_path_factory.mktemp("odd") / "corpus"
    ids = list(range(len(ODD_TEXTS)))
    dictionary = pa.array(ODD_TEXTS).dictionary_encode()
    no_rows = pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())})
    write_shard(root, "kind=a/plain.parquet", {"id": ids, "text": ODD_TEXTS}, row_group_size=3)
    write_shard(root, "kind=a/large.parquet", {"id": ids, "text": pa.array(ODD_TEXTS, pa.large_string())})
    write_shard(root, "kind=b/deep/dictionary.parquet", {"id": ids, "text": dictionary})
    write_shard(root, "kind=b/huge.parquet", {"id": [1, 2], "text": ["good " * 2_000_000, "fine"]})
    write_shard(root, "kind=b/invalid.parquet", {"id": [1], "text": invalid_utf8()})
    write_shard(root, "kind=c/empty.parquet", no_rows)
    write_shard(root, "kind=c/nulls.parquet", {"id": [1, 2], "text": pa.nulls(2)})
    return root


@pytest.fixture(scope="session")
def odd_scored(ray_here, tiny_bundle, odd_corpus, tmp_path_factory) -> ScoreResult:
    """The odd corpus, scored with probabilities."""
    return score_folder(tiny_bundle, odd_corpus, tmp_path_factory.mktemp("odd") / "scored", probabilities=True)


@pytest.fixture
def root(tmp_path) -> Path:
    """Where a test puts its corpus."""
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path) -> Path:
    """Where its scored rows go."""
    return tmp_path / "out"
