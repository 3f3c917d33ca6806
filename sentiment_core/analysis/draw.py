"""Draw rows of scored outputs in one pass, the same ones whatever the order of files."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sentiment_core.analysis.scored_rows import ScoredBatch, map_outputs
from sentiment_core.errors import UserError
from sentiment_core.scoring.outputs import Output


@dataclass(frozen=True)
class Draws:
    """Rows that were drawn, or may still be. All arrays are (n,)."""

    key: np.ndarray  # rows with the smallest keys are drawn
    part: np.ndarray  # int64, number of the stratum
    output: np.ndarray  # int64, number of the output
    index: np.ndarray  # int64, index of the row in the output

    def take(self, rows: np.ndarray) -> "Draws":
        """Select rows."""
        return Draws(self.key[rows], self.part[rows], self.output[rows], self.index[rows])

    def smallest(self, wanted: np.ndarray) -> "Draws":
        """Keep as many rows of each stratum as are wanted (strata,), those with the smallest keys."""
        order = np.lexsort((self.index, self.output, self.key, self.part))
        parts = self.part[order]
        rank = np.arange(len(parts)) - np.searchsorted(parts, parts)
        return self.take(order[rank < wanted[parts]])

    @classmethod
    def together(cls, draws: Iterable["Draws"]) -> "Draws":
        """Put several together."""
        columns = zip(*((part.key, part.part, part.output, part.index) for part in draws), strict=True)
        return cls(*map(np.concatenate, columns))


def hash_rows(seed: int, batch: ScoredBatch) -> np.ndarray:
    """Return a number for each row, (n,) uint64, as good as random, by seed, shard and row alone (splitmix64)."""
    start = hashlib.blake2b(f"{seed}:{batch.source}".encode(), digest_size=8).digest()
    mixed = np.uint64(int.from_bytes(start, "little")) + batch.rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def draw_smallest(
    outputs: Sequence[Output],
    find_rows: Callable[[Output], tuple[np.ndarray, np.ndarray, np.ndarray]],
    wanted: np.ndarray,
) -> tuple[Draws, np.ndarray]:
    """Draw the rows with the smallest keys of each stratum. Memory is by strata and wanted rows, not by rows.

    Args:
        outputs: Outputs to draw from.
        find_rows: From an output to keys, strata and indices of its rows, (m,) each; stratum -1 is drawn from never.
        wanted: (strata,) int, rows to draw.

    Returns:
        The rows, and how many there are of each stratum, (strata,) int64.
    """

    def draw(numbered: tuple[int, Output]) -> tuple[Draws, np.ndarray]:
        number, output = numbered
        key, part, index = find_rows(output)
        inside = np.flatnonzero(part >= 0)
        draws = Draws(key[inside], part[inside], np.full(len(inside), number), index[inside])
        return draws.smallest(wanted), np.bincount(part[inside], minlength=len(wanted))

    rows = np.zeros(len(wanted), np.int64)
    drawn: Draws | None = None
    for draws, counts in map_outputs(draw, enumerate(outputs)):
        rows += counts
        drawn = draws if drawn is None else Draws.together([drawn, draws]).smallest(wanted)
    assert drawn is not None, "an opened output has files"
    return drawn, rows


def check_unchanged(folder: str, rows: np.ndarray, expected: np.ndarray) -> None:
    """Refuse outputs that changed between two passes, by the rows of each stratum. Raises `UserError`."""
    if not np.array_equal(rows, expected):
        raise UserError(f"--scored {folder} changed while it was read; sample again when no run writes there")
