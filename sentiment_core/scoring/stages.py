"""The stages of scoring, as Ray Data runs them.

Each takes a task as a table and returns it with more known of its rows.
`read_and_tokenize` is followed by `ClassifyStage` and then by `write_outputs` or `compare_outputs`, which leave one
record of the task.

Whatever goes wrong with a unit becomes its error and leaves the other units alone. What kills a whole process, or hangs
in it, costs that process. Ray tries the task again elsewhere, as often as the task guard lets it; then the task is lost
with all its units.
"""

import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import ray

from sentiment_core.data import columns, shards
from sentiment_core.data.shards import Unit
from sentiment_core.data.types import canonical_type, set_types
from sentiment_core.model import bundle
from sentiment_core.model.objective import Objective
from sentiment_core.runtime import cluster, connection, storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.runtime.task_guard import AttemptsExhausted, TaskGuard, limit_memory
from sentiment_core.scoring import comparison, outputs
from sentiment_core.scoring.records import Run
from sentiment_core.scoring.rows import ReadTexts, ScoredRows
from sentiment_core.scoring.statistics import Counts
from sentiment_core.scoring.task_table import CLASSIFY, FINISH, READ, TaskRecord, TaskTable, UnitRecord
from sentiment_core.text.arrow import deduplicate_texts
from sentiment_core.text.status import apply_min_confidence
from sentiment_core.text.token_lists import DistinctLists, TokenLists
from sentiment_core.text.tokenizer import Tokenizer

LOAD_S = 1800.0  # for an actor to load the bundle, and to compile it if it does
CACHED_TOKENIZERS = 2  # in a worker process: a process is reused by later runs, which may have other bundles


@dataclass(frozen=True)
class ScoringContext:
    """The context that all tasks of a run share."""

    input_root: str
    output_folder: str
    run: Run
    objective: Objective
    labels: list[str]
    column_types: dict[str, pa.DataType]  # of columns that some shards have only nulls in


def read_and_tokenize(table: pa.Table, context: ScoringContext, files: ray.ObjectRef, guard: TaskGuard) -> pa.Table:
    """Read the texts of a task's units and turn them into token ids."""
    started = time.monotonic()
    task = TaskTable(table)
    errors, lost = [""] * len(task.units), False
    counts = [json.dumps(Counts.zero(context.labels).to_json())] * len(task.units)
    tokens, status = [TokenLists(np.zeros(0, np.int32), np.zeros(1, np.int64))], [np.zeros(0, np.int8)]
    try:
        with guard(task.key("read")):
            for i, unit in enumerate(task.units):
                try:
                    with limit_memory():
                        unit_tokens, unit_status, unit_counts = _tokenize_unit(context, unit, files)
                except Exception as error:
                    errors[i] = describe_error(error)
                else:
                    tokens += unit_tokens
                    status += unit_status
                    counts[i] = json.dumps(unit_counts.to_json())
    except AttemptsExhausted as error:
        errors, lost = [str(error)] * len(task.units), True
    # here, where tasks run side by side: the actors' processors should not wait for it
    distinct = DistinctLists.find(_join(tokens))
    task = task.replace(
        errors=errors,
        lost=lost,
        counts=counts,
        status=np.concatenate(status),
        lists=distinct.lists,
        inverse=distinct.inverse,
    )
    return task.add_seconds(READ, started).table


def _tokenize_unit(
    context: ScoringContext, unit: Unit, files: ray.ObjectRef
) -> tuple[list[TokenLists], list[np.ndarray], Counts]:
    """Return tokens and status codes of the unit's rows, in parts, and the statistics of its texts."""
    tokenizer = _load_tokenizer(context.run.bundle, files)
    tokens, status, counts = [], [], Counts.zero(context.labels)
    for chunk in shards.read_texts(context.input_root, unit, context.run.text_columns):
        texts, inverse = deduplicate_texts(chunk)
        text_tokens, text_status = tokenizer.encode(texts)
        row_tokens = text_tokens.take(inverse)
        tokens.append(row_tokens)
        status.append(text_status[inverse])
        counts = counts.add_texts(ReadTexts(texts, text_tokens.lengths, row_tokens, tokenizer.unknown_id))
    return tokens, status, counts


def _join(parts: list[TokenLists]) -> TokenLists:
    lengths = np.concatenate([part.lengths for part in parts])
    return TokenLists(np.concatenate([part.ids for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))


class ClassifyStage:
    """An actor that holds the bundle and turns a task's tokens into probabilities."""

    def __init__(self, files: ray.ObjectRef, engine: dict, guard: TaskGuard) -> None:
        """Load the bundle of these files; `engine` are settings of the engine."""
        # here, since torch and transformers take seconds that only this stage needs to spend
        from sentiment_core.inference.engine import Engine

        connection.leave_background()
        cluster.check_assigned_gpu()
        self.guard = guard
        key = "load", ray.get_runtime_context().get_actor_id()  # which stays when Ray restarts the actor
        with guard(key, LOAD_S), storage.unpack_files(ray.get(files)) as folder:
            self.engine = Engine.load(folder, **engine)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Compute the probabilities of a task's rows."""
        connection.leave_background()  # the thread that computes is another than the one that loaded
        started = time.monotonic()
        task = TaskTable(table)
        tokens, status, errors, lost = task.tokens, task.status, task.errors, task.lost
        lengths = tokens.lengths
        try:
            with self.guard(task.key("classify")):
                try:
                    probabilities, padding = self.engine.distinct_probabilities(tokens)
                except Exception:
                    probabilities, padding, rows = self._classify_by_unit(task, tokens, errors)
                    lengths, status = lengths[rows], status[rows]
        except AttemptsExhausted as error:
            errors, lost = [str(error)] * len(task.units), True
            probabilities, padding = np.zeros((0, self.engine.classes), np.float32), 0
            lengths, status = lengths[:0], status[:0]
        task = task.replace(
            lists=None,
            inverse=None,
            errors=errors,
            lost=lost,
            status=status,
            lengths=lengths,
            probabilities=probabilities,
            backend="; ".join([self.engine.backend.name, *self.engine.remarks]),
            choice=[self.engine.chip, str(self.engine.choice), self.engine.margin],
            padding_tokens=padding,
        )
        return task.add_seconds(CLASSIFY, started).table

    def _classify_by_unit(
        self, task: TaskTable, tokens: DistinctLists, errors: list[str]
    ) -> tuple[np.ndarray, int, np.ndarray]:
        """Compute the units one by one, and note the `errors` of those that fail.

        Returns the probabilities of the others, the tokens of padding, and which of the task's rows these are.
        """
        probabilities, padding, done_rows = [np.zeros((0, self.engine.classes), np.float32)], 0, [np.zeros(0, np.int64)]
        for i, rows in task.rows_of_units():
            try:
                unit_probabilities, unit_padding = self.engine.probabilities(tokens.take(rows))
            except Exception as error:
                if not self.engine.is_usable:
                    os._exit(1)  # the next process may use the GPU
                errors[i] = describe_error(error)
                continue
            probabilities.append(unit_probabilities)
            done_rows.append(rows)
            padding += unit_padding
        return np.concatenate(probabilities), padding, np.concatenate(done_rows)


def write_outputs(table: pa.Table, context: ScoringContext, guard: TaskGuard) -> pa.Table:
    """Write the output of every unit of the task that has no error."""
    folder = context.output_folder

    def write(unit: Unit, scored: pa.Table, rows: ScoredRows, counts: Counts) -> None:
        if storage.is_local(folder) and not storage.exists(storage.join(folder, outputs.RUN_FILE)):
            raise OSError(f"a node does not see the output folder {folder}; choose one that all nodes share")
        footer_hash = shards.hash_footer(context.input_root, unit.source, unit.size)
        outputs.commit(folder, context.run, replace(unit, footer_hash=footer_hash), scored, counts)

    return _finish(TaskTable(table), context, guard, write)


def compare_outputs(
    table: pa.Table, context: ScoringContext, guard: TaskGuard, units_of_parts: dict[str, Unit]
) -> pa.Table:
    """Compare every unit of the task with its output; a difference becomes the unit's error.

    `units_of_parts`: of units that are only a part of another one, that other one, by the part's output.
    """

    def compare(unit: Unit, scored: pa.Table, rows: ScoredRows, counts: Counts) -> None:
        scored_unit = units_of_parts.get(unit.output, unit)
        output = outputs.read_output(context.output_folder, scored_unit.output)
        output = output.slice(unit.start - scored_unit.start, unit.rows)
        try:
            comparison.check_same(output, scored, rows, context.run)
        except comparison.OutputDiffers as error:
            prefix = "" if scored_unit.output == unit.source else f"{scored_unit.output}: "
            raise comparison.OutputDiffers(f"{prefix}{error}") from None

    return _finish(TaskTable(table), context, guard, compare)


def _finish(
    task: TaskTable,
    context: ScoringContext,
    guard: TaskGuard,
    finish_unit: Callable[[Unit, pa.Table, ScoredRows, Counts], None],
) -> pa.Table:
    """Call `finish_unit` with the scored rows of each unit of the task; return the task's record."""
    started = time.monotonic()
    run = context.run
    lengths, probabilities = task.lengths, task.probabilities(len(context.labels))
    status = apply_min_confidence(task.status, context.objective.decide(probabilities)[1], run.min_confidence)
    errors, lost, counts_of_texts = task.errors, task.lost, task.counts
    done: dict[int, str] = {}
    try:
        with guard(task.key("finish")):
            for i, rows in task.rows_of_units():
                unit = task.units[i]
                try:
                    with limit_memory():
                        scored_rows = ScoredRows(
                            context.objective, context.labels, status[rows], probabilities[rows], lengths[rows]
                        )
                        counts = Counts.from_json(json.loads(counts_of_texts[i])).add_unit(scored_rows)
                        kept_columns = shards.read_rows(
                            context.input_root,
                            unit,
                            lambda schema: columns.kept_columns(schema, run.text_columns, run.keep),
                        )
                        types = {  # but of texts that are dictionaries, since they are so long
                            name: kind
                            for name, kind in context.column_types.items()
                            if name in kept_columns.column_names
                            and canonical_type(kept_columns.schema.field(name).type) != kind
                        }
                        kept_columns = set_types(kept_columns, types)
                        scored = outputs.scored_table(unit, kept_columns, scored_rows, run)
                        finish_unit(unit, scored, scored_rows, counts)
                except Exception as error:
                    errors[i] = describe_error(error)
                else:
                    done[i] = json.dumps(counts.to_json())
    except AttemptsExhausted as error:
        errors, lost = [str(error)] * len(task.units), True
    records = [
        UnitRecord(unit.output, unit.source, unit.rows, errors[i], done.get(i, "")) for i, unit in enumerate(task.units)
    ]
    seconds = task.add_seconds(FINISH, started).seconds
    tokens = int(lengths.sum())
    return TaskRecord(records, lost, seconds, tokens, task.padding_tokens, task.backend, task.choice).to_table()


# A worker process of Ray runs many tasks, and loads a bundle's tokenizer once for all of them.
_tokenizers: OrderedDict[str, Tokenizer] = OrderedDict()  # by digest of the bundle, the latest used last


def _load_tokenizer(digest: str, files: ray.ObjectRef) -> Tokenizer:
    """Return the tokenizer of a bundle, from this process's cache if it is there."""
    if digest not in _tokenizers:
        # Many tasks run side by side, so that none needs threads of its own. This is a worker process that Ray started
        # for this project's tasks: no user's process is changed.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with storage.unpack_files(ray.get(files)) as folder:
            _tokenizers[digest] = bundle.load_tokenizer(folder)
    _tokenizers.move_to_end(digest)
    while len(_tokenizers) > CACHED_TOKENIZERS:
        _tokenizers.popitem(last=False)
    return _tokenizers[digest]
