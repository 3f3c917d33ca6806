"""How many of many texts are different, from a few numbers that can be added up.

A sketch holds the least of the texts' hash values: the closer these lie together, the more different texts there are
(Beyer et al. 2007, On synopses for distinct-value estimation under multiset operations). Of up to `SIZE` different
texts it is exact, of more right to 9 % (one standard deviation).
"""

import hashlib
from collections.abc import Iterable

SIZE = 128
BITS = 48  # of a hash value: few enough for every reader of JSON


def sketch(texts: Iterable[str | None]) -> list[int]:
    """Of these texts, nulls apart: up to `SIZE` hash values, ascending."""
    return merged({_value(text) for text in texts if text is not None})


def merged(*sketches: Iterable[int]) -> list[int]:
    """The sketch of all texts of several."""
    return sorted(set().union(*sketches))[:SIZE]


def distinct(values: list[int]) -> float:
    """How many different texts a sketch stands for."""
    return float(len(values)) if len(values) < SIZE else (SIZE - 1) * 2.0**BITS / values[-1]


def relative_error(values: list[int]) -> float:
    """One standard deviation of `distinct`, as a share of it."""
    return 0.0 if len(values) < SIZE else (SIZE - 2) ** -0.5


def _value(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=BITS // 8).digest(), "big")
