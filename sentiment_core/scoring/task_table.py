"""A task on its way through the stages of scoring, and the record that is left of it.

A task is a few work units that are read, computed and written together. Ray Data carries it as a table of one row, so
that it can neither split nor merge units. The names and types of that table's columns stand here only.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from sentiment_core.data.shards import Unit
from sentiment_core.inference.classified import Classified
from sentiment_core.scoring.known_rows import KnownRows
from sentiment_core.text.token_lists import DistinctLists, TokenLists

STAGES = ("read and tokenise", "classify", "write")  # keys of what `_summary.json` and the meters say of seconds
READ, CLASSIFY, FINISH = STAGES


class TaskTable:
    """A task's units and what is known of their rows so far.

    `status`, `tokens`, `lengths` and what is `classified` are those of the computed rows of all units without an error,
    one unit after another. The first three depend on the tokenizer: they are asked for by the name of the model whose
    token lists these are (`PassModel.tokenizer`). The others are asked for by the model's own name, which is "" for a
    single model. `tokens` are the columns `lists` and `inverse`.
    """

    def __init__(self, table: pa.Table) -> None:
        """Wrap a table as Ray Data hands it to a stage."""
        self.table = table

    @classmethod
    def build(cls, units: Sequence[Unit]) -> "TaskTable":
        """Return the task of these units, before its first stage."""
        return cls(pa.table({"units": [[asdict(unit) for unit in units]]}))

    @cached_property
    def units(self) -> list[Unit]:
        """The task's work units."""
        return [Unit(**fields) for fields in self._value("units")]

    @property
    def errors(self) -> list[str]:
        """The error of each unit; empty where there is none."""
        return self._value("errors")

    @property
    def lost(self) -> bool:
        """True if a stage gave the task up, since its process died or hung too often."""
        return self._value("lost")

    @property
    def counts(self) -> list[str]:
        """The statistics of each unit's texts, as JSON."""
        return self._value("counts")

    @cached_property
    def known_rows(self) -> list[KnownRows]:
        """The rows of each unit that are not computed, and the hashes of its texts; nothing is known after an error."""
        if "known_rows" not in self.table.column_names:
            return [KnownRows.nothing(unit.rows) for unit in self.units]
        return [KnownRows.from_bytes(content) for content in self._value("known_rows")]

    @property
    def computed_rows(self) -> list[int]:
        """The number of rows of each unit that are computed."""
        return [rows.computed for rows in self.known_rows]

    def status(self, tokenizer: str) -> np.ndarray:
        """Return the status codes, (rows,) int8, before abstention."""
        return self._rows("status", tokenizer).to_numpy()

    def tokens(self, tokenizer: str) -> DistinctLists:
        """Return the token ids of the rows."""
        lists = self._rows("lists", tokenizer)
        offsets = lists.offsets.to_numpy().astype(np.int64)
        tokens = TokenLists(lists.flatten().to_numpy(), offsets - offsets[0])
        return DistinctLists(tokens, self._rows("inverse", tokenizer).to_numpy().astype(np.int64))

    def lengths(self, tokenizer: str) -> np.ndarray:
        """Return the tokens of each row, (rows,) int64."""
        return self._rows("lengths", tokenizer).to_numpy()

    def probabilities(self, model: str, classes: int) -> np.ndarray:
        """Return the probabilities, (rows, classes) float32, NaN where there are no tokens."""
        return self._rows("probabilities", model).to_numpy().reshape(-1, classes)

    def classified(self, model: str, classes: int) -> Classified:
        """Return the rows as the engine computed them."""
        columns = self.table.column_names
        is_cascade, has_others = (_column(name, model) in columns for name in ("escalated", "others"))
        return Classified(
            self.probabilities(model, classes),
            self.padding_tokens(model),
            self._rows("escalated", model).to_numpy(zero_copy_only=False) if is_cascade else None,
            self._rows("others", model).to_numpy().reshape(-1, classes) if has_others else None,
        )

    def backend(self, model: str) -> str:
        """Return the backend that computed the task, and why no faster one did."""
        return self._value("backend", model)

    def choice(self, model: str) -> list[str]:
        """Return the chip that computed, what was chosen there, and by how much that was measured to be faster."""
        return self._value("choice", model)

    def padding_tokens(self, model: str) -> int:
        """Return the tokens of padding that were computed."""
        return self._value("padding_tokens", model)

    @property
    def seconds(self) -> dict[str, float]:
        """Busy seconds by stage."""
        return dict(zip(STAGES, self._value("seconds"), strict=True))

    def key(self, stage: str) -> tuple[str, str, int]:
        """Return what tells this task in a stage from all others of the run."""
        return stage, self.units[0].output, len(self.units)

    def rows_of_units(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the number of each unit without an error, and which of the task's computed rows are its own."""
        first = 0
        for i, (rows, error) in enumerate(zip(self.computed_rows, self.errors, strict=True)):
            if not error:
                yield i, np.arange(first, first := first + rows)

    def replace(self, model: str | None = None, /, **values: Any) -> "TaskTable":
        """Return the task with these columns added or replaced, or dropped where the value is None.

        `model`: the name of the model, or of that with the tokenizer, which the values belong to; None for those of the
        task as a whole.
        """
        columns = {_column(name, model): (name, value) for name, value in values.items()}
        table = self.table.drop_columns([column for column in columns if column in self.table.column_names])
        for column, (name, value) in columns.items():
            if value is not None:
                table = table.append_column(column, _TO_COLUMN[name](value))
        return TaskTable(table)

    def add_seconds(self, stage: str, started: float) -> "TaskTable":
        """Return the task with the time since `started`, by `time.monotonic()`, noted for a stage."""
        before = self.seconds if "seconds" in self.table.column_names else dict.fromkeys(STAGES, 0.0)
        return self.replace(seconds=before | {stage: time.monotonic() - started})

    def _value(self, name: str, model: str | None = None) -> Any:
        return self.table[_column(name, model)][0].as_py()

    def _rows(self, name: str, model: str) -> pa.Array:
        return self.table[_column(name, model)].chunk(0).flatten()


def _column(name: str, model: str | None) -> str:
    """Return the name of the table's column for a value of a model, or of the task."""
    return name if model is None else f"{name} of {model}"


def _one_list(values: pa.Array) -> pa.Array:
    """Return a column of one row: the list of all values."""
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


def _lists_column(tokens: TokenLists) -> pa.Array:
    return _one_list(pa.ListArray.from_arrays(pa.array(tokens.offsets, pa.int32()), pa.array(tokens.ids)))


_TO_COLUMN: dict[str, Callable[[Any], pa.Array]] = {
    "errors": lambda errors: pa.array([errors], pa.list_(pa.string())),
    "lost": lambda lost: pa.array([lost]),
    "counts": lambda counts: pa.array([counts], pa.list_(pa.string())),
    "known_rows": lambda rows: pa.array([[part.to_bytes() for part in rows]], pa.large_list(pa.large_binary())),
    "status": lambda status: _one_list(pa.array(status)),
    "lists": _lists_column,
    "inverse": lambda inverse: _one_list(pa.array(inverse, pa.int32())),
    "lengths": lambda lengths: _one_list(pa.array(lengths)),
    "probabilities": lambda probabilities: _one_list(pa.array(probabilities.ravel())),
    "escalated": lambda escalated: _one_list(pa.array(escalated)),
    "others": lambda probabilities: _one_list(pa.array(probabilities.ravel())),
    "backend": lambda backend: pa.array([backend]),
    "choice": lambda choice: pa.array([choice], pa.list_(pa.string())),
    "padding_tokens": lambda tokens: pa.array([tokens]),
    "seconds": lambda seconds: pa.array([[seconds[stage] for stage in STAGES]], pa.list_(pa.float64())),
}


@dataclass(frozen=True)
class UnitRecord:
    """The outcome of one unit of a task."""

    output: str  # path of its output below the output folder
    source: str  # path of its shard
    rows: int
    error: str  # empty if it is done
    counts: str  # its statistics as JSON; empty if it is not done
    reused_rows: int = 0
    replaced: str = ""  # JSON list of outputs of gone shards, with which it shares texts; empty if it is not done


@dataclass(frozen=True)
class ModelRecord:
    """The work of one model on a task."""

    model: str  # its name, "" of a single one
    tokens: int  # padding apart
    padding_tokens: int
    backend: str
    choice: list[str]  # as `TaskTable.choice`


@dataclass(frozen=True)
class TaskRecord:
    """The outcome of a task, which the last stage hands to the tally."""

    units: list[UnitRecord]
    lost: bool  # given up, since its process died or hung too often
    seconds: dict[str, float]  # busy, by stage
    models: list[ModelRecord]

    @property
    def rows(self) -> int:
        """The rows of all units."""
        return sum(unit.rows for unit in self.units)

    @property
    def computed_rows(self) -> int:
        """The rows of all units that were not reused."""
        return sum(unit.rows - unit.reused_rows for unit in self.units)

    @property
    def tokens(self) -> int:
        """The tokens that all models computed, padding apart."""
        return sum(model.tokens for model in self.models)

    @property
    def padding_tokens(self) -> int:
        """The tokens of padding that all models computed."""
        return sum(model.padding_tokens for model in self.models)

    def to_table(self) -> pa.Table:
        """Return the record as the table of one row that Ray Data carries."""
        return pa.Table.from_pylist([asdict(self)])

    @classmethod
    def from_table(cls, table: pa.Table) -> "TaskRecord":
        """Read the record from its table."""
        content = table.to_pylist()[0]
        units = [UnitRecord(**unit) for unit in content["units"]]
        models = [ModelRecord(**model) for model in content["models"]]
        return cls(units, content["lost"], content["seconds"], models)
