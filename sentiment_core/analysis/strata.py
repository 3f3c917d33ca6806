"""Divide the scored rows of a corpus into strata, and say how many rows of each stratum to draw.

Every row with text is in one stratum. Strata are groups of the corpus by the labels that rows got by bands of
confidence, so that rows whose labels are likely wrong are drawn more often.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.analysis.records import name_group
from sentiment_core.analysis.scored_rows import NO_LABEL, Group, ScoredBatch
from sentiment_core.errors import UserError

BINS = 200  # of confidence, of equal width from 0 to 1; bands are cut between them
MOST_BANDS = 4
LEAST_DRAWN = 5  # rows of a stratum, or all: fewer give no variance worth the name
DRAWN_FOR_BAND = 10  # rows of a group for each of its strata, so that half of them can go where errors are
LEAST_DRAWN_OF_GROUP = 10
# Of an error's standard deviation by the confidence: an overconfident model errs more often than it says.
LEAST_DEVIATION = 0.2
SEPARATOR = " | "

Cell = tuple[Group, int]  # a group, and the index of a label or `NO_LABEL`
BAND_EDGES = np.arange(BINS + 1) / BINS
BIN_CENTERS = (BAND_EDGES[1:] + BAND_EDGES[:-1]) / 2
DEVIATION = np.maximum(np.sqrt(BIN_CENTERS * (1 - BIN_CENTERS)), LEAST_DEVIATION)  # (BINS,)


@dataclass(frozen=True)
class Stratum:
    """Rows of a group that got the same label, or any, with a confidence between two bins."""

    group: Group
    label: int | None  # index, `NO_LABEL` for abstained rows; None: any
    first_bin: int
    stop_bin: int
    rows: int
    deviation: float  # standard deviation of an error, as the confidences have it
    drawn: int = 0  # rows to draw


@dataclass(frozen=True)
class CellsOfRows:
    """The cells of a batch's rows with text, and where each row is."""

    cells: list[Cell]
    rows: np.ndarray  # (m,) int64, indices of the rows in the batch
    cell_of: np.ndarray  # (m,) int64 indices into `cells`
    bin_of: np.ndarray  # (m,) int64


def find_cells(batch: ScoredBatch) -> CellsOfRows:
    """Return the cell and the bin of confidence of a batch's rows with text.

    Rows of a multi-label model are in one cell a group, whatever their labels.
    """
    rows = np.flatnonzero(batch.has_text)
    labels = batch.labels[rows] if batch.labels.ndim == 1 else np.zeros(len(rows), np.int64)
    width = labels.max(initial=NO_LABEL) + 2
    codes, cell_of = np.unique(batch.group_of[rows] * width + labels + 1, return_inverse=True)
    cells = [(batch.groups[code // width], code % width - 1) for code in codes.tolist()]
    return CellsOfRows(cells, rows, cell_of, np.minimum((batch.confidence[rows] * BINS).astype(np.int64), BINS - 1))


def count_cells(batch: ScoredBatch) -> dict[Cell, np.ndarray]:
    """Count a batch's rows with text by cell and bin of confidence, (BINS,) int64 each."""
    there = find_cells(batch)
    counts = np.bincount(there.cell_of * BINS + there.bin_of, minlength=len(there.cells) * BINS)
    return dict(zip(there.cells, counts.reshape(-1, BINS), strict=True))


def merge_counts(parts: Iterable[Mapping[Cell, np.ndarray]], most_groups: int | None) -> dict[Cell, np.ndarray]:
    """Add up counts of cells. Raises `UserError` as soon as there are more than `most_groups` groups."""
    counts: dict[Cell, np.ndarray] = {}
    groups: set[Group] = set()
    for part in parts:
        for cell, histogram in part.items():
            counts[cell] = counts[cell] + histogram if cell in counts else histogram
            groups.add(cell[0])
        if most_groups is not None and len(groups) > most_groups:
            raise UserError(
                f"--by gives more than {most_groups} groups, too many to draw {LEAST_DRAWN_OF_GROUP} rows of each; "
                "draw more --rows, or choose keys with fewer values"
            )
    return counts


def design(counts: Mapping[Cell, np.ndarray], rows: int) -> list[Stratum]:
    """Divide a corpus into strata, and choose how many of `rows` to draw from each.

    Each group gets rows by the root of its size (power allocation, Bankier 1988), so that small groups have a share
    that can be estimated and large ones a better one. Within a group they are allocated by the strata's sizes and
    expected errors (Neyman 1934), at least `LEAST_DRAWN` each. Bands have equal parts of these errors (Wright 1983).
    """
    by_group: dict[Group, dict[int | None, np.ndarray]] = {}
    for (group, label), histogram in sorted(counts.items(), key=lambda item: _sort_key(item[0])):
        by_group.setdefault(group, {})[label] = histogram
    sizes = np.array([sum(int(histogram.sum()) for histogram in cells.values()) for cells in by_group.values()])
    rows_of_groups = allocate(rows, np.sqrt(sizes), LEAST_DRAWN_OF_GROUP, sizes)
    strata: list[Stratum] = []
    for (group, cells), group_rows in zip(by_group.items(), rows_of_groups.tolist(), strict=True):
        strata += _design_group(group, cells, group_rows)
    return strata


def _sort_key(cell: Cell) -> tuple[list[tuple[bool, str]], int]:
    group, label = cell
    return [(value is not None, value or "") for value in group], label


def _design_group(group: Group, cells: Mapping[int | None, np.ndarray], rows: int) -> list[Stratum]:
    """Divide a group into strata from which `rows` are drawn in all."""
    are_few = len(cells) * LEAST_DRAWN <= rows
    by_label = cells if are_few else {None: np.sum(list(cells.values()), axis=0)}
    bands = int(np.clip(rows // (DRAWN_FOR_BAND * len(by_label)), 1, MOST_BANDS))
    strata = []
    for label, histogram in by_label.items():
        for first, stop in _cut_into_bands(histogram, bands):
            size = int(histogram[first:stop].sum())
            deviation = float(histogram[first:stop] @ DEVIATION[first:stop]) / size
            strata.append(Stratum(group, label, first, stop, size, deviation))
    sizes = np.array([stratum.rows for stratum in strata])
    shares = sizes * np.array([stratum.deviation for stratum in strata])
    drawn = allocate(rows, shares, LEAST_DRAWN, sizes)
    return [replace(stratum, drawn=int(number)) for stratum, number in zip(strata, drawn, strict=True)]


def _cut_into_bands(histogram: np.ndarray, bands: int) -> list[tuple[int, int]]:
    """Cut bins of confidence into up to `bands` ranges that are not empty and have equal parts of the deviations."""
    total = np.cumsum(histogram * DEVIATION)
    cuts = np.searchsorted(total, total[-1] * np.arange(1, bands) / bands) + 1
    edges = [0, *np.unique(cuts).tolist(), BINS]
    filled = [first for first, stop in itertools.pairwise(edges) if histogram[first:stop].any()]
    return list(itertools.pairwise([0, *filled[1:], BINS]))


def allocate(total: int, shares: np.ndarray, least: int, most: np.ndarray) -> np.ndarray:
    """Divide a number into whole parts in proportion to shares, within limits.

    Args:
        total: The number.
        shares: (n,) above 0.
        least: Of each part, where the total and `most` allow that.
        most: (n,) of each part.

    Returns:
        (n,) int64, whose sum is `total`, or that of `most` if it is smaller.
    """
    low_limit = np.minimum(min(least, total // len(most)), most).astype(np.float64)
    total = int(min(total, most.sum()))
    low, high = 0.0, float((most / shares).max())
    for _ in range(100):  # the sum grows with the factor
        factor = (low + high) / 2
        low, high = (low, factor) if np.clip(factor * shares, low_limit, most).sum() > total else (factor, high)
    exact = np.clip(low * shares, low_limit, most)
    parts = np.floor(exact + 1e-9).astype(np.int64)
    by_fraction = np.argsort(-(exact - parts), kind="stable")
    has_room = by_fraction[parts[by_fraction] < most[by_fraction]]
    parts[has_room[: total - int(parts.sum())]] += 1
    return parts


def name_strata(strata: Sequence[Stratum], keys: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Name strata for people: their groups, labels and confidences, as far as there are several.

    Names differ: weights are known by them. They have no white space that spreadsheets or people may change.
    """
    names = []
    for stratum in strata:
        parts = [name_group(dict(zip(keys, stratum.group, strict=True)))]
        if stratum.label is not None and any(cell.label not in (None, stratum.label) for cell in strata):
            parts.append("no label" if stratum.label == NO_LABEL else labels[stratum.label])
        if (stratum.first_bin, stratum.stop_bin) != (0, BINS):
            first, stop = BAND_EDGES[stratum.first_bin], BAND_EDGES[stratum.stop_bin]
            parts.append(f"confidence {first:.3g} to {stop:.3g}")
        names.append(" ".join(SEPARATOR.join(filter(None, parts)).split()) or "all")
    return _number_repeated(names)


def _number_repeated(names: Sequence[str]) -> list[str]:
    """Put a number behind names that stand before too, such as a group without a value and one called null."""
    unique: dict[str, None] = {}
    for name in names:
        candidates = (f"{name} ({number})" if number > 1 else name for number in itertools.count(1))
        unique[next(candidate for candidate in candidates if candidate not in unique)] = None
    return list(unique)


def make_lookup(strata: Sequence[Stratum]) -> Callable[[CellsOfRows], np.ndarray]:
    """Return a function that gives the stratum of each of a batch's rows with text, (m,) int64; -1 for none."""
    by_cell: dict[tuple[Group, int | None], np.ndarray] = {}
    for number, stratum in enumerate(strata):
        by_bin = by_cell.setdefault((stratum.group, stratum.label), np.full(BINS, -1))
        by_bin[stratum.first_bin : stratum.stop_bin] = number
    nothing = np.full(BINS, -1)

    def find_strata(there: CellsOfRows) -> np.ndarray:
        tables = [by_cell.get((group, label), by_cell.get((group, None), nothing)) for group, label in there.cells]
        return np.stack(tables)[there.cell_of, there.bin_of] if tables else np.empty(0, np.int64)

    return find_strata
