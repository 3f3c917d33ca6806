"""Rows of a work unit that need not be computed, on their way from reading to writing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sentiment_core.model.probability_column import make_column, read_column
from sentiment_core.scoring.records import ModelColumns, Run
from sentiment_core.scoring.rows import ReusedRows
from sentiment_core.text.status import STATUS_NAMES

TEXTS, ANSWER_OF, REPLACED = "text_hash", "answer", b"replaced"  # names in the tables that travel
NO_ANSWER = -1


@dataclass(frozen=True)
class KnownRows:
    """The hashes of a unit's texts, and the rows whose scores stand in earlier outputs.

    `answers` has the columns of all models, under their names in the output, each distinct text once.
    """

    text_hash: pa.Array | None  # (rows,) of the texts, null where there is none; None: outputs have no hashes
    answer_of: np.ndarray  # (rows,) int32: each row's answer, `NO_ANSWER` where it is to be computed
    answers: pa.Table
    replaced: tuple[str, ...] = ()  # outputs of shards that are gone, with which the unit shares texts

    @classmethod
    def nothing(cls, rows: int) -> "KnownRows":
        """Return that nothing is known of so many rows."""
        return cls(None, np.full(rows, NO_ANSWER, np.int32), pa.table({}))

    @cached_property
    def is_reused(self) -> np.ndarray:
        """(rows,) bool: rows that are not computed."""
        return self.answer_of != NO_ANSWER

    @property
    def reused(self) -> int:
        """The number of rows that are not computed."""
        return int(self.is_reused.sum())

    @property
    def computed(self) -> int:
        """The number of rows that are computed."""
        return len(self.answer_of) - self.reused

    def fill_in(self, name: str, computed: pa.Array) -> pa.Array:
        """Return a column of the output: its computed values, and the reused ones in their places."""
        if not self.reused:
            return computed
        order = np.empty(len(self.answer_of), np.int64)
        order[~self.is_reused] = np.arange(len(computed))
        order[self.is_reused] = len(computed) + self.answer_of[self.is_reused]
        return pa.concat_arrays([computed, self.answers[name].combine_chunks()]).take(pa.array(order))

    def reused_rows(self, run: Run, labels: Mapping[str, Sequence[str]]) -> dict[str, ReusedRows]:
        """Return the reused rows as each model's statistics need them, by its name; nothing if there are none."""
        if not self.reused:
            return {}
        return {names.model: self._rows_of_model(names, labels[names.model]) for names in run.columns_of_models}

    def _rows_of_model(self, names: ModelColumns, labels: Sequence[str]) -> ReusedRows:
        columns = [names.prefix + name for name in (names.label, "status", "confidence")]
        label, status, confidence = self.answers.select(columns).take(pa.array(self.answer_of[self.is_reused])).columns
        values = pc.list_flatten(label) if pa.types.is_list(label.type) else label.cast(pa.string())
        index = pc.index_in(values.drop_null(), value_set=pa.array(labels, pa.string())).to_numpy()
        return ReusedRows(
            list(labels),
            pc.index_in(status, value_set=pa.array(STATUS_NAMES)).to_numpy(),
            confidence.to_numpy(),
            np.bincount(index, minlength=len(labels)),
        )

    def to_bytes(self) -> bytes:
        """Return the record as a task carries it."""
        stream = pa.BufferOutputStream()
        answer_of = pa.array(self.answer_of)
        columns = {ANSWER_OF: answer_of} | ({} if self.text_hash is None else {TEXTS: self.text_hash})
        rows = pa.table(columns).replace_schema_metadata({REPLACED: json.dumps(self.replaced).encode()})
        for table in (rows, self.answers):
            with pa.ipc.new_stream(stream, table.schema) as writer:
                writer.write_table(table)
        return stream.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> "KnownRows":
        """Undo `to_bytes`."""
        reader = pa.BufferReader(content)
        rows, answers = (pa.ipc.open_stream(reader).read_all() for _ in range(2))
        hashes = rows[TEXTS].combine_chunks() if TEXTS in rows.column_names else None
        replaced = tuple(json.loads(rows.schema.metadata[REPLACED]))
        return cls(hashes, rows[ANSWER_OF].to_numpy(), answers, replaced)


def as_written_now(stored: pa.ChunkedArray, written: pa.Array, labels: Sequence[str]) -> pa.Array:
    """Return a column of an earlier output in the type in which it is written now, that of `written`."""
    kind = written.type
    if pa.types.is_dictionary(kind):  # row groups may have different dictionaries
        names = pa.array(labels, pa.string())
        codes = pc.index_in(stored.cast(pa.string()).combine_chunks(), value_set=names)
        return pa.DictionaryArray.from_arrays(codes, names)
    column = stored.combine_chunks()
    if pa.types.is_fixed_size_list(kind):
        values = read_column(column, kind.list_size)
        (made,) = make_column(values, ~np.isnan(values).any(axis=1)).values()
        return made
    return column if column.type == kind else column.cast(kind)
