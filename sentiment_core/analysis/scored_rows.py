"""Read the rows of an output folder as columns, file by file, and only the columns that are asked for.

Footers alone decide which files count, so that no row comes twice, and nothing here holds memory by rows.
"""

import bisect
import itertools
import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sentiment_core.data.partitions import partition_values
from sentiment_core.data.shards import read_metadata
from sentiment_core.errors import UserError
from sentiment_core.model.probability_column import read_column
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import UNREADABLE, describe_error
from sentiment_core.scoring import outputs
from sentiment_core.scoring.outputs import Output
from sentiment_core.scoring.records import ModelColumns, RunFile, UnitOrigin, may_stand_beside
from sentiment_core.scoring.rows import LABELLED
from sentiment_core.text.status import ABSTAINED, STATUS_NAMES

Item = TypeVar("Item")
Result = TypeVar("Result")
Group = tuple[str | None, ...]  # values of the grouping keys, in their order; None: null

WITH_TEXT = (*LABELLED, ABSTAINED)  # status of the rows that have a score
ASIDE = re.compile(r"(.*)\.replaced-[0-9a-f]{8}(\.[^.]*)")  # see `outputs.aside_path`
NO_LABEL = -1
MAX_THREADS = 16  # that read outputs: they decode more than they wait


class NothingScored(UserError):
    """An output folder has no rows yet."""


@dataclass(frozen=True)
class OpenedOutput:
    """An output folder, and the files in it that count."""

    folder: str
    run_file: RunFile
    model: ModelColumns  # of the model that was asked for
    several: bool  # labels a row: the model is multi-label
    labels: list[str]  # of the model, in the order of its probabilities; then those of earlier bundles only
    outputs: list[Output]  # no row stands in two of them
    partition_keys: tuple[str, ...]  # of the folders on their paths
    ignored: int = 0  # outputs of other settings, replaced ones, or those of earlier versions of their shards
    missing_rows: int = 0  # of the shards that have outputs; with --limit 0

    @property
    def rows(self) -> int:
        """The number of rows, whatever their status."""
        return sum(output.rows for output in self.outputs)


@dataclass(frozen=True)
class ScoredBatch:
    """The rows of one output, as columns."""

    source: str  # path of their shard, relative to the input
    rows: np.ndarray  # (n,) int64, their numbers in the shard
    status: np.ndarray  # (n,) int8 codes
    # (n,) int32 indices into the labels, `NO_LABEL` where there is none; of a multi-label model (n, labels) bool
    labels: np.ndarray
    confidence: np.ndarray  # (n,) float32, NaN where there is no score
    probabilities: (
        np.ndarray | None
    )  # (n, labels) float32 by the opened output's labels; None: not asked for, or absent
    groups: list[Group]  # that occur, by the keys that were asked for
    group_of: np.ndarray  # (n,) int64 indices into `groups`

    @property
    def has_text(self) -> np.ndarray:
        """(n,) bool: rows with text, abstained ones included."""
        return np.isin(self.status, WITH_TEXT)

    @property
    def has_label(self) -> np.ndarray:
        """(n,) bool: rows that the model labelled; of a multi-label model, perhaps with no label."""
        return np.isin(self.status, LABELLED)


def open_output(folder: str, model_name: str | None = None) -> OpenedOutput:
    """Open an output folder for the analysis of one of its models.

    Args:
        folder: Output folder of `sentiment-core score`.
        model_name: Name of one of several models; None: the only one.

    Raises:
        UserError: It is not an output folder, holds no rows, or has no such model.
    """
    folder = storage.absolute(folder)
    run_file = outputs.read_run_file(folder) if storage.is_folder(folder) else None
    if run_file is None:
        raise UserError(
            f"--scored {folder} has no readable {outputs.RUN_FILE}; expected an output folder of sentiment-core score"
        )
    run = run_file.run
    model = _choose_model(folder, run.columns_of_models, model_name)
    existing = list(outputs.read_outputs(folder))
    counted = choose_outputs(existing, run_file)
    if not sum(output.rows for output in counted):
        raise NothingScored(f"--scored {folder} holds no scored rows; run sentiment-core score first")
    several = run.models[model.model].multi_label if run.models else run.multi_label
    latest_first = sorted(counted, key=lambda output: bool(output.origin and output.origin.run.bundle != run.bundle))
    labels = dict.fromkeys(name for output in latest_first for name in _labels_of(output, model))
    keys = dict.fromkeys(key for output in counted for key in partition_values(output.path))
    missing = 0 if run.limit else _count_missing(counted)
    return OpenedOutput(
        folder, run_file, model, several, list(labels), counted, tuple(keys), len(existing) - len(counted), missing
    )


def _choose_model(folder: str, models: Sequence[ModelColumns], name: str | None) -> ModelColumns:
    names = [model.model for model in models if model.model]
    if name is None and len(models) == 1:
        return models[0]
    chosen = next((model for model in models if model.model and model.model == name), None)
    if chosen is None and not names:
        raise UserError(f"--name is {name!r}; --scored {folder} was scored by one model without a name; leave it out")
    if chosen is None:
        asked = f"--name is {name!r}" if name is not None else "--name is not given"
        raise UserError(f"{asked}; expected a model of --scored {folder}: {', '.join(names)}")
    return chosen


def _labels_of(output: Output, model: ModelColumns) -> list[str]:
    return list(output.counts.models[model.model].labels.value) if output.counts else []


def _count_missing(counted: Iterable[Output]) -> int:
    """Return how many rows of the shards that have outputs stand in none."""
    shard_rows = {output.origin.unit.source: output.origin.unit.shard_rows for output in counted if output.origin}
    return sum(shard_rows.values()) - sum(output.rows for output in counted)


def choose_outputs(existing: Sequence[Output], run_file: RunFile) -> list[Output]:
    """Choose the outputs that count, by their footers: none of their rows stands in two of them.

    Not counted are foreign files, outputs of other settings, copies that a run keeps of outputs that it replaces, and
    outputs of a shard's earlier version. Outputs of gone shards count here: see `input_texts.keep_current`.
    """
    belonging = [
        output
        for output in existing
        if output.origin and output.counts and may_stand_beside(output.origin, run_file) and not is_aside(output)
    ]
    by_source: dict[str, list[tuple[Output, UnitOrigin]]] = defaultdict(list)
    for output in belonging:
        if output.origin:
            by_source[output.origin.unit.source].append((output, output.origin.unit))
    chosen = [output for candidates in by_source.values() for output in _without_overlaps(candidates)]
    return sorted(chosen, key=lambda output: output.path)


def is_aside(output: Output) -> bool:
    """Return whether an output is a copy of one that a newer output replaces."""
    match = ASIDE.fullmatch(output.path)
    if not (match and output.origin):
        return False
    return outputs.aside_path(match[1] + match[2], output.origin.unit) == output.path


def _without_overlaps(candidates: list[tuple[Output, UnitOrigin]]) -> Iterator[Output]:
    """Yield the outputs of a shard's latest scored version; of two with the same rows the newer one."""
    candidates = sorted(candidates, key=lambda pair: (-pair[0].mtime_ns, pair[0].path))
    latest = candidates[0][1]
    taken: list[tuple[int, int]] = []  # first row and the one behind the last, in order, without overlaps
    for output, unit in candidates:
        before_stop = bisect.bisect_left(taken, (unit.stop,))
        is_free = before_stop == 0 or taken[before_stop - 1][1] <= unit.start
        if unit.has_version(latest.size, latest.mtime_ns, latest.footer_hash) and is_free:
            taken.insert(before_stop, (unit.start, unit.stop))
            yield output


def check_keys(opened: OpenedOutput, keys: Sequence[str]) -> None:
    """Refuse grouping keys that are neither partition keys nor kept columns with plain values. Raises `UserError`."""
    reserved = {*opened.run_file.run.scored_columns, opened.run_file.run.text_hash_column}
    for key in keys:
        if key in opened.partition_keys:
            continue
        schemas = map_outputs(lambda output: _read_schema(opened, output), opened.outputs)
        fields: dict[str, pa.Field] = {}
        for schema in schemas:
            fields |= {field.name: field for field in schema if field.name not in reserved}
            if key in fields:
                break
        if key not in fields:
            names = ", ".join([*opened.partition_keys, *fields]) or "none"
            raise UserError(f"--by is {key!r}; expected a partition key or a kept column of the output: {names}")
        if not _is_plain(fields[key].type):
            raise UserError(
                f"--by {key} holds {fields[key].type}; expected a column of texts, numbers, truth values or dates"
            )


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether each value of a type is written as a text that people read."""
    types = pa.types
    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    is_time = types.is_date(kind) or types.is_timestamp(kind)
    return is_text or is_number or is_time or types.is_boolean(kind) or types.is_null(kind)


def _read_schema(opened: OpenedOutput, output: Output) -> pa.Schema:
    try:
        return read_metadata(opened.folder, output.path).schema.to_arrow_schema()
    except UNREADABLE as error:
        raise _describe_unreadable(opened, output, error) from None


def _describe_unreadable(opened: OpenedOutput, output: Output, error: Exception) -> UserError:
    return UserError(
        f"{output.path} of {opened.folder} cannot be read: {describe_error(error)}; run sentiment-core score again"
    )


def read_batch(
    opened: OpenedOutput, output: Output, keys: Sequence[str] = (), with_probabilities: bool = False
) -> ScoredBatch:
    """Read one of the outputs that count.

    Args:
        opened: The output folder.
        output: One of its `outputs`.
        keys: Partition keys or kept columns to group the rows by; a column that this output lacks is null.
        with_probabilities: Whether to read the probabilities of all labels.

    Raises:
        UserError: The file is gone or damaged.
    """
    assert output.origin is not None, "an output that counts has a footer"
    model, unit = opened.model, output.origin.unit
    names = [model.label, "confidence", "status", *["probabilities"] * with_probabilities]
    in_folders = partition_values(output.path)
    columns = [key for key in keys if key not in in_folders]
    try:
        table = outputs.read_output(opened.folder, output.path, [*(model.prefix + name for name in names), *columns])
    except UNREADABLE as error:
        raise _describe_unreadable(opened, output, error) from None
    own = {
        name: table[model.prefix + name].combine_chunks() for name in names if model.prefix + name in table.schema.names
    }
    status = pc.index_in(own["status"], pa.array(STATUS_NAMES)).to_numpy(zero_copy_only=False).astype(np.int8)
    read_labels = _read_label_sets if opened.several else _read_labels
    values = {key: table[key] if key in table.schema.names else pa.nulls(len(table)) for key in columns} | in_folders
    groups, group_of = _group_rows([values[key] for key in keys], len(table))
    return ScoredBatch(
        unit.source,
        np.arange(unit.start, unit.stop),
        status,
        read_labels(own[model.label], opened.labels),
        own["confidence"].to_numpy(zero_copy_only=False),
        _order_probabilities(own["probabilities"], _labels_of(output, model), opened.labels)
        if "probabilities" in own
        else None,
        groups,
        group_of,
    )


def _read_labels(column: pa.Array, labels: list[str]) -> np.ndarray:
    """Return the index (n,) int32 of each row's label."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    numbers = pc.fill_null(pc.index_in(encoded.dictionary.cast(pa.string()), pa.array(labels)), NO_LABEL)
    lookup = np.append(numbers.to_numpy(zero_copy_only=False), NO_LABEL).astype(np.int32)
    return lookup[pc.fill_null(encoded.indices.cast(pa.int32()), len(lookup) - 1).to_numpy(zero_copy_only=False)]


def _read_label_sets(column: pa.Array, labels: list[str]) -> np.ndarray:
    """Return (n, labels) bool, which labels each row has."""
    sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    index = pc.index_in(column.flatten(), pa.array(labels)).to_numpy(zero_copy_only=False)
    chosen = np.zeros((len(column), len(labels)), bool)
    chosen[np.repeat(np.arange(len(column)), sizes), index] = True
    return chosen


def _order_probabilities(column: pa.Array, own_labels: list[str], labels: list[str]) -> np.ndarray:
    """Return probabilities (n, labels), those of labels that the output's bundle does not have as 0."""
    own = read_column(column, len(own_labels))
    if own_labels == labels:
        return own
    ordered = np.zeros((len(own), len(labels)), np.float32)
    ordered[:, [labels.index(name) for name in own_labels]] = own
    return ordered


def _group_rows(keys: Sequence[pa.ChunkedArray | pa.Array | str | None], rows: int) -> tuple[list[Group], np.ndarray]:
    """Return the groups that occur, and each row's. A key has a value for each row, or one for all."""
    groups: list[Group] = [()]
    group_of = np.zeros(rows, np.int64)
    for key in keys:
        if key is None or isinstance(key, str):
            groups = [(*group, key) for group in groups]
            continue
        encoded = pa.chunked_array([key] if isinstance(key, pa.Array) else key.chunks, key.type).combine_chunks()
        encoded = encoded.cast(pa.string()).dictionary_encode("encode")
        values = encoded.dictionary.to_pylist()
        codes = group_of * max(1, len(values)) + encoded.indices.to_numpy(zero_copy_only=False)
        used, group_of = np.unique(codes, return_inverse=True)
        groups = [(*groups[code // len(values)], values[code % len(values)]) for code in used.tolist()]
    return groups, group_of


def map_outputs(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Apply a function to all items, such as outputs, in parallel; yield its results in their order.

    Few results wait at a time, however many items there are. pyarrow and numpy let threads run side by side.
    """
    threads = min(MAX_THREADS, 2 * (os.cpu_count() or 1))
    remaining = iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = deque(pool.submit(function, item) for item in itertools.islice(remaining, 2 * threads))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
    finally:
        pool.shutdown(cancel_futures=True)
