"""Choose the earlier outputs in which a work unit's texts may stand, from footers alone.

An output's footer has a sketch: the smallest hashes of its distinct texts. A unit that has such a text shares at least
that one with the output, and the share of the sketch that it has tells about how many more. So texts are found again
whatever the new file is called. Where a sketch cannot tell, the output of the same shard, one with the same file name
and the latest one are looked at too.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sentiment_core.data.shards import Unit
from sentiment_core.scoring.outputs import Output
from sentiment_core.text import distinct_sketch

MOST_CANDIDATES = 64  # of a unit: each is read whole, in milliseconds on a disk and in tenths of a second in a store
UNSURE_CANDIDATES = 4  # among these, at most, of those whose sketch shares no hash with the unit
MOST_NAMED = 1_024  # of gone shards, in the footer of an output that may hold all of their rows
MOST_INDEXED = 1 << 17  # outputs, those written last: their sketches take 200 MB


@dataclass(frozen=True)
class _Groups:
    """Members of groups that have a name."""

    keys: np.ndarray  # (n,) uint64 hashes of names, ascending
    members: np.ndarray  # (n,) int64

    @classmethod
    def of(cls, names: Iterable[str]) -> "_Groups":
        """Group the positions of these names by name."""
        keys = np.fromiter(map(distinct_sketch.hash_text, names), np.uint64)
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], order)

    def find(self, name: str) -> np.ndarray:
        """Return the members of a group, in their order."""
        key = np.uint64(distinct_sketch.hash_text(name))
        return self.members[np.searchsorted(self.keys, key) : np.searchsorted(self.keys, key, side="right")]


@dataclass(frozen=True)
class Candidates:
    """Outputs whose shards have changed or are gone, the latest first, and an index over them.

    Everything is an array, so that tasks on a node share one copy.
    """

    paths: pa.StringArray
    is_gone: np.ndarray  # (n,) bool: the shard is gone, not changed
    starts: np.ndarray  # (n,) int64: first row in the shard
    is_sampled: np.ndarray  # (n,) bool: it has more texts than its sketch, so some may be shared though no hash is
    texts_per_hash: np.ndarray  # (n,) float32: about how many distinct texts each hash of the sketch stands for
    hashes: np.ndarray  # of all sketches, uint64, ascending
    owners: np.ndarray  # int32: whose sketch each hash is in
    by_source: _Groups
    by_name: _Groups  # of the shard's file, without its folder
    latest: np.ndarray  # int64: the first few of those that `is_sampled`

    @classmethod
    def of(cls, outputs: Collection[Output], is_gone: Callable[[Output], bool]) -> "Candidates | None":
        """Index outputs; None where there is none."""
        latest = sorted(outputs, key=lambda output: (-output.mtime_ns, output.path))[:MOST_INDEXED]
        if not latest:
            return None
        sketches = [_sketch_of(output) for output in latest]
        hashes = np.concatenate([np.array(sketch, np.uint64) for sketch in sketches])
        owners = np.repeat(np.arange(len(latest), dtype=np.int32), [len(sketch) for sketch in sketches])
        order = np.argsort(hashes, kind="stable")
        sources = [output.origin.unit.source if output.origin else "" for output in latest]
        is_sampled = np.array([len(sketch) >= distinct_sketch.SIZE for sketch in sketches])
        return cls(
            pa.array([output.path for output in latest], pa.string()),
            np.array([is_gone(output) for output in latest]),
            np.array([output.origin.unit.start if output.origin else 0 for output in latest], np.int64),
            is_sampled,
            np.array([distinct_sketch.estimate_distinct(sketch) / max(1, len(sketch)) for sketch in sketches], "f4"),
            hashes[order],
            owners[order],
            _Groups.of(sources),
            _Groups.of(source.rpartition("/")[2] for source in sources),
            np.flatnonzero(is_sampled)[:MOST_CANDIDATES],
        )

    def choose(self, unit: Unit, texts: Iterable[str | None]) -> tuple[list[int], list[int]]:
        """Choose outputs for a unit with these texts.

        Returns the positions of up to `MOST_CANDIDATES`, the best first; and of up to `MOST_NAMED` whose shards are
        gone and whose sketches share a hash with the unit.
        """
        hashes = np.unique([distinct_sketch.hash_text(text) for text in texts if text is not None]).astype(np.uint64)
        first, last = np.searchsorted(self.hashes, hashes), np.searchsorted(self.hashes, hashes, side="right")
        times = last - first
        within = np.arange(times.sum()) - np.repeat(np.cumsum(times) - times, times)
        sharing, shared = np.unique(self.owners[np.repeat(first, times) + within], return_counts=True)
        same_source = self.by_source.find(unit.source)
        order = np.lexsort(
            (
                sharing,
                np.abs(self.starts[sharing] - unit.start),
                ~np.isin(sharing, same_source),
                -shared * self.texts_per_hash[sharing],
            )
        )
        sure = sharing[order].tolist()[:MOST_CANDIDATES]
        nearest = np.argsort(np.abs(self.starts[same_source] - unit.start), kind="stable")
        same_name = self.by_name.find(unit.source.rpartition("/")[2])[:MOST_CANDIDATES]
        near = [*same_source[nearest].tolist(), *same_name[self.is_sampled[same_name]].tolist(), *self.latest.tolist()]
        unsure = [candidate for candidate in dict.fromkeys(near) if candidate not in sure][:UNSURE_CANDIDATES]
        gone = sharing[order][self.is_gone[sharing[order]]][:MOST_NAMED]
        return [*sure[: MOST_CANDIDATES - len(unsure)], *unsure], gone.tolist()


def _sketch_of(output: Output) -> list[int]:
    """Return the sketch of all texts of an output, as its first model read them."""
    counts = next(iter(output.counts.all_rows.models.values())) if output.counts else None
    return counts.texts.value if counts else []
