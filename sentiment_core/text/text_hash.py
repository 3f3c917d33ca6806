"""Hash texts, so that one that was scored before is recognized without keeping it."""

import hashlib
from collections.abc import Iterable

import pyarrow as pa

HASH_BYTES = 16  # the chance that any two of 10^15 texts share a hash is about 10^-9
HASH_TYPE = pa.binary(HASH_BYTES)


def hash_texts(texts: Iterable[str | None]) -> pa.FixedSizeBinaryArray:
    """Hash texts by blake2b; null stays null."""
    return pa.array([None if text is None else _hash(text) for text in texts], HASH_TYPE)


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()
