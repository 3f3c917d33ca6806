"""Estimate how many distinct texts there are from small, mergeable sketches.

A sketch holds the smallest of the texts' hash values: the closer these lie together, the more distinct texts there are
(Beyer et al. 2007, On synopses for distinct-value estimation under multiset operations). Up to `SIZE` distinct texts it
is exact; above that its standard error is 9 %.
"""

import hashlib
from collections.abc import Iterable

SIZE = 128  # hash values
HASH_BITS = 48  # few enough for every reader of JSON


def sketch_texts(texts: Iterable[str | None]) -> list[int]:
    """Sketch texts, ignoring nulls: up to `SIZE` hash values, ascending."""
    return merge_sketches({hash_text(text) for text in texts if text is not None})


def merge_sketches(*sketches: Iterable[int]) -> list[int]:
    """Merge sketches into the sketch of all their texts."""
    return sorted(set().union(*sketches))[:SIZE]


def estimate_distinct(sketch: list[int]) -> float:
    """Estimate the number of distinct texts behind a sketch."""
    return float(len(sketch)) if len(sketch) < SIZE else (SIZE - 1) * 2.0**HASH_BITS / sketch[-1]


def relative_error(sketch: list[int]) -> float:
    """Return the standard error of `estimate_distinct`, as a share of it."""
    return 0.0 if len(sketch) < SIZE else (SIZE - 2) ** -0.5


def hash_text(text: str) -> int:
    """Return the hash value of a text; a sketch holds the smallest ones."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=HASH_BITS // 8).digest(), "big")
