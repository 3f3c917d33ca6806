"""Encoder shapes and random token lists with realistic lengths, for `gpu.py`."""

from dataclasses import dataclass

import numpy as np

from sentiment_core.text.token_lists import TokenLists

MAX_LENGTH = 512
ID_RANGE = 1_000, 30_000  # of random token ids: special tokens of a vocabulary of 30,522 lie below
CHECK_LENGTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 127, 129, 255, 256, 257, 511, 512)


@dataclass(frozen=True)
class Shape:
    """The shape of a BERT encoder."""

    hidden: int
    layers: int
    heads: int
    inner: int


SHAPES = {
    "minilm-l6": Shape(384, 6, 12, 1_536),
    "bert-base": Shape(768, 12, 12, 3_072),
    "bert-large": Shape(1_024, 24, 16, 4_096),
}
SMALL_SHAPES = {
    "minilm-l6": Shape(64, 2, 2, 128),
    "bert-base": Shape(96, 3, 3, 192),
    "bert-large": Shape(128, 4, 4, 256),
}


@dataclass(frozen=True)
class TextLengths:
    """A distribution of text lengths in tokens: gamma, cut at both ends."""

    mean: float
    gamma_shape: float
    least: int
    most: int

    def draw(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Draw the lengths (rows,) int64."""
        lengths = rng.gamma(self.gamma_shape, self.mean / self.gamma_shape, rows)
        return np.clip(lengths.round().astype(np.int64), self.least, self.most)


TEXT_LENGTHS = {
    "sentences": TextLengths(mean=25, gamma_shape=4.0, least=3, most=128),  # as SST-2's
    "reviews": TextLengths(mean=292, gamma_shape=2.5, least=12, most=MAX_LENGTH),  # as IMDB's: 275 once cut
}


@dataclass(frozen=True)
class Sample:
    """Random token lists, described: every process draws the same ones."""

    lengths: str  # a key of `TEXT_LENGTHS`
    rows: int

    def draw(self) -> TokenLists:
        """Draw the lists."""
        rng = np.random.default_rng(0)
        return random_lists(TEXT_LENGTHS[self.lengths].draw(self.rows, rng), rng)


def random_lists(lengths: np.ndarray, rng: np.random.Generator) -> TokenLists:
    """Draw random token lists of these lengths."""
    ids = rng.integers(*ID_RANGE, int(lengths.sum()), dtype=np.int32)
    return TokenLists(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def draw_check_lists(sentences: int, reviews: int, longest: int = MAX_LENGTH) -> TokenLists:
    """Draw the rows whose probabilities are compared.

    Lengths at edges of kernels and both kinds of text, mixed.
    """
    rng = np.random.default_rng(1)
    parts = [np.array([length for length in CHECK_LENGTHS if length <= longest])]
    parts += [TEXT_LENGTHS["sentences"].draw(sentences, rng), TEXT_LENGTHS["reviews"].draw(reviews, rng)]
    return random_lists(rng.permutation(np.concatenate(parts)), rng)
