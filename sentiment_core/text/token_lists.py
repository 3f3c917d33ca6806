"""Hold token lists of different lengths.

They are one flat array of ids and one of offsets, the way Arrow keeps lists.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

LENGTH_BINS = 15  # of `length_histogram`


@dataclass(frozen=True)
class TokenLists:
    """Token ids of n texts; text i is `ids[offsets[i]:offsets[i + 1]]`.

    A text that cannot be scored has no ids.
    """

    ids: np.ndarray  # (tokens,) int32
    offsets: np.ndarray  # (n + 1,) int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each list, (n,) int64."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "TokenLists":
        """Select rows, in the order of `rows`, with repetitions. Consecutive rows are not copied."""
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
            offsets = self.offsets[rows[0] : rows[-1] + 2]
            return TokenLists(self.ids[offsets[0] : offsets[-1]], offsets - offsets[0])
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return TokenLists(self.ids[np.repeat(self.offsets[rows], lengths) + within], offsets)

    def windows(self, max_length: int) -> tuple["TokenLists", np.ndarray]:
        """Cut the lists into consecutive windows of up to `max_length` tokens.

        Returns the windows, and the index of each list's first window, (n,). A list without tokens is one window
        without tokens.
        """
        counts = np.maximum(1, -(-self.lengths // max_length))
        first = np.cumsum(counts) - counts
        starts = np.repeat(self.offsets[:-1] - first * max_length, counts) + np.arange(counts.sum()) * max_length
        return TokenLists(self.ids, np.append(starts, self.offsets[-1])), first


def mean_over_windows(logits: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Average the `logits` (windows, classes) of each list's windows, (n, classes).

    `first`: index of each list's first window, as `TokenLists.windows` returns it.
    """
    if len(logits) == len(first):
        return logits
    counts = np.diff(np.append(first, len(logits)))
    return np.add.reduceat(logits, first) / counts[:, None]


@dataclass(frozen=True)
class DistinctLists:
    """The distinct lists of some rows, longest first, and which of them each row holds."""

    lists: TokenLists
    inverse: np.ndarray  # (rows,) int64: `values[inverse]` are the rows' values, of the lists' `values`

    @classmethod
    def find(cls, tokens: TokenLists) -> "DistinctLists":
        """Find the distinct ones of token lists; of equal length, those that come first stay first."""
        buffers = [None, pa.py_buffer(tokens.offsets * tokens.ids.itemsize), pa.py_buffer(tokens.ids)]
        as_bytes = pa.Array.from_buffers(pa.large_binary(), len(tokens), buffers)
        numbers = as_bytes.dictionary_encode().indices.to_numpy()
        first_rows = np.unique(numbers, return_index=True)[1]
        order = np.argsort(-tokens.lengths[first_rows], kind="stable")
        position = np.empty_like(order)
        position[order] = np.arange(len(order))
        return cls(tokens.take(first_rows[order]), position[numbers])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,) int64."""
        return self.lists.lengths[self.inverse]

    def select(self, rows: np.ndarray) -> "DistinctLists":
        """Select rows, in the order of `rows`, with the distinct lists that they hold."""
        numbers, inverse = np.unique(self.inverse[rows], return_inverse=True)
        return DistinctLists(self.lists.take(numbers), inverse)


def length_histogram(lengths: np.ndarray) -> list[int]:
    """Count texts by length in bins that double: 1 token, 2 to 3, 4 to 7, ...

    The last of the `LENGTH_BINS` bins holds all longer ones. Texts without tokens are in none.
    """
    bins = np.minimum(np.log2(lengths[lengths > 0]).astype(int), LENGTH_BINS - 1)
    return np.bincount(bins, minlength=LENGTH_BINS).tolist()
