"""Delete the outputs that new ones replace, at the end of a run.

Until then a reader sees some rows twice, and misses none. A run that is killed or ends early deletes nothing; a later
one does, since the files themselves tell what is to go.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.types import is_dictionary, is_nested

from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import UNREADABLE
from sentiment_core.scoring import outputs
from sentiment_core.scoring.plan import ScorePlan
from sentiment_core.scoring.tally import Tally

MOST_LATER = 1_024  # outputs that are searched for the last rows of a gone shard, in milliseconds each
NOW = 1 << 62  # later than any time in ns


@dataclass
class Tidied:
    """The outputs that a run deleted, and those that it left."""

    deleted: set[str] = field(default_factory=set)
    stale: int = 0  # outputs of changed shards that are left
    orphans: int = 0  # outputs of gone shards that are left
    orphans_wait: bool = False  # for a run without failures, which deletes them
    fault: str = ""  # why some could not be deleted


def delete_replaced(plan: ScorePlan, tally: Tally) -> Tidied:
    """Delete outputs of changed shards whose new ones are there, and of gone shards if nothing failed.

    Of the latter those whose rows were all found again, and with --prune or of a table the others too.
    """
    tidied = Tidied()
    paths = [*_find_stale(plan, tally), *_find_orphans(plan, tally)]
    for path, error in zip(paths, storage.map_in_threads(lambda path: _delete(plan, path), paths), strict=True):
        if error is None:
            tidied.deleted.add(path)
        else:
            tidied.fault = tidied.fault or (
                f"old files in --out {plan.output_folder} cannot be deleted: {error}; check who may write there"
            )
    tidied.stale = len(set(plan.stale) - tidied.deleted)
    tidied.orphans = len(set(plan.orphans) - tidied.deleted)
    tidied.deleted -= set(plan.aside.values())  # copies of what new outputs have taken the place of
    tidied.orphans_wait = bool(tidied.orphans) and (plan.settings.prune or plan.replaces_gone)
    return tidied


def _find_stale(plan: ScorePlan, tally: Tally) -> list[str]:
    """List the outputs of changed shards all of whose units are scored, and those that were set aside."""
    if tally.stopped or tally.out_of_time:
        return []
    failed = {shard.source for shard in tally.failed}
    paths = [path for path in (*plan.stale, *plan.aside.values()) if plan.old_units[path].source not in failed]
    if not (failed or plan.unreadable_shards) and _is_whole(plan, tally):
        return paths
    # rows may have moved to a shard without an output yet: only those go whose rows all stand in the shard's new ones
    new: dict[str, list[str]] = {}
    for unit in plan.corpus.units:
        new.setdefault(unit.source, []).append(unit.output)
    pairs = [(path, new.get(plan.old_units[path].source, [])) for path in paths]
    were_found = storage.map_in_threads(lambda pair: _was_found_again(plan, *pair), pairs)
    return [path for path, was_found in zip(paths, were_found, strict=True) if was_found]


def _find_orphans(plan: ScorePlan, tally: Tally) -> Iterable[str]:
    """List the outputs of gone shards that may go."""
    if tally.stopped or tally.out_of_time or tally.failed or plan.unreadable_shards:
        return []
    if plan.settings.prune or (plan.replaces_gone and _is_whole(plan, tally)):
        return plan.orphans
    named_in = {path: [*plan.found_again.get(path, ()), *tally.found_again.get(path, ())] for path in plan.orphans}
    named = [path for path in plan.orphans if named_in[path]]
    new = {unit.output for unit in plan.units_to_score}

    def was_found(path: str) -> bool:
        return _was_found_again(plan, path, _list_others(plan, path, named_in[path], new))

    return [path for path, was in zip(named, storage.map_in_threads(was_found, named), strict=True) if was]


def _list_others(plan: ScorePlan, path: str, naming: list[str], new: set[str]) -> Iterator[str]:
    """List the outputs in which the texts of a gone shard's output may stand: those that name it, then later ones.

    Outputs name those that they share many texts with, so that a sketch shows it. A few rows may stand in others: in
    units of the same shards, or in any that was written since.

    Args:
        plan: Of the run.
        path: Of the output.
        naming: Outputs that name it.
        new: Outputs that this run has written.
    """
    yield from naming
    sources = {unit.source for unit in plan.corpus.units if unit.output in naming}
    written = plan.written_at | dict.fromkeys(new, NOW)
    later = [unit for unit in plan.corpus.units if written.get(unit.output, 0) >= plan.written_at[path]]
    later.sort(key=lambda unit: (unit.source not in sources, -written[unit.output]))
    yield from (unit.output for unit in later[:MOST_LATER] if unit.output not in naming)


def _is_whole(plan: ScorePlan, tally: Tally) -> bool:
    """Return whether all units of the input have an output: a night may leave some for another one."""
    return plan.scored_counts.units + tally.totals.units == len(plan.corpus.units)


def _was_found_again(plan: ScorePlan, path: str, others: Iterable[str]) -> bool:
    """Return whether each row of an output stands in other ones at least as often as in itself.

    A row is its text with the kept columns that both outputs have: the same text with another id is another row.
    """
    hash_column = plan.run.text_hash_column
    with contextlib.suppress(Exception):  # one that is gone or damaged may raise anything: the output stays
        rows = _read_rows(plan, path)
        for output in others:
            with contextlib.suppress(Exception):
                hashes = outputs.read_output(plan.output_folder, output, [hash_column])[hash_column]
                is_shared = pc.is_in(hashes, value_set=rows[hash_column].combine_chunks())
                if pc.any(is_shared).as_py():
                    rows = _subtract(rows, _read_rows(plan, output).filter(is_shared))
            if not rows.num_rows:
                return True
    return False


def _read_rows(plan: ScorePlan, path: str) -> pa.Table:
    """Read the texts' hashes and the kept columns of an output, the texts left out."""
    table = outputs.read_output(plan.output_folder, path)
    left_out = (*plan.run.scored_columns, *plan.run.text_columns)
    return table.drop_columns([name for name in left_out if name in table.column_names])


def _subtract(rows: pa.Table, others: pa.Table) -> pa.Table:
    """Leave out the rows that are among others, each as often as it is there, by the columns that both have."""
    names = [name for name in rows.column_names if name in others.column_names]
    both = pa.concat_tables([rows.select(names), others.select(names)], promote_options="permissive")
    codes = np.stack([_encode(both[name]) for name in names], axis=1)
    numbers = np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1)
    own, there = numbers[: rows.num_rows], numbers[rows.num_rows :]
    order = np.argsort(own, kind="stable")
    repetition = np.empty_like(own)  # how many equal ones stand before
    repetition[order] = np.arange(len(own))
    repetition -= np.searchsorted(own[order], own)
    return rows.filter(pa.array(repetition >= np.bincount(there, minlength=numbers.max() + 1)[own]))


def _encode(column: pa.ChunkedArray) -> np.ndarray:
    """Return a number for each value of a column, the same for equal ones, (rows,) int32."""
    if is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if is_nested(column.type) or isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([pa.array(map(repr, column.to_pylist()), pa.string())])
    return pc.dictionary_encode(column.combine_chunks(), null_encoding="encode").indices.to_numpy()


def _delete(plan: ScorePlan, path: str) -> Exception | None:
    """Delete an output; return the error if that fails. One that another run has made meanwhile is left alone."""
    try:
        origin = outputs.read_origin(plan.output_folder, path)
        if origin is None or origin.unit == plan.old_units[path]:
            storage.delete_file(storage.join(plan.output_folder, path))
    except UNREADABLE as error:
        return error
    return None
