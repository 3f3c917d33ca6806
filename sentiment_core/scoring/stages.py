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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from sentiment_core.data import columns, shards, unit_reader
from sentiment_core.data.shards import Unit
from sentiment_core.data.types import canonical_type, set_types
from sentiment_core.inference.classified import Classified
from sentiment_core.model.naming import with_name
from sentiment_core.runtime import cluster, connection, storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.runtime.task_guard import AttemptsExhausted, TaskGuard, limit_memory
from sentiment_core.scoring import comparison, outputs
from sentiment_core.scoring.context import ScoringContext
from sentiment_core.scoring.known_rows import KnownRows
from sentiment_core.scoring.loading import FilesByModel, load_engine, load_tokenizers
from sentiment_core.scoring.models import PassModel, tokenizing_models
from sentiment_core.scoring.reuse import UnitTexts
from sentiment_core.scoring.rows import ReadTexts, ScoredRows
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.scoring.task_table import CLASSIFY, FINISH, READ, ModelRecord, TaskRecord, TaskTable, UnitRecord
from sentiment_core.text.status import apply_min_confidence
from sentiment_core.text.token_lists import DistinctLists, TokenLists

LOAD_S = 1800.0  # for an actor to load a bundle, and to compile it if it does
CANDIDATES = "candidates"  # key of the mapping in which they reach the tasks that read


def read_and_tokenize(
    table: pa.Table,
    context: ScoringContext,
    files: FilesByModel,
    guard: TaskGuard,
    candidates: Mapping[str, ray.ObjectRef] = MappingProxyType({}),
) -> pa.Table:
    """Read the texts of a task's units and turn them into token ids, once for each different tokenizer.

    Texts whose scores stand in earlier outputs are not tokenized, and their rows are left out from here to writing.

    Args:
        table: The task.
        context: The context of the run.
        files: Those of the models whose tokenizers are used, by the models' names; see `loading.load_tokenizers`.
        guard: The limits of the task.
        candidates: The context's candidates, where they travel by themselves.
    """
    started = time.monotonic()
    if candidates:
        context = replace(context, candidates=ray.get(candidates[CANDIDATES]))
    task = TaskTable(table)
    errors, lost = [""] * len(task.units), False
    counts = [json.dumps(context.no_counts.to_json())] * len(task.units)
    known_rows = [KnownRows.nothing(0)] * len(task.units)
    texts = {tokenizer: [TokenizedTexts.none()] for tokenizer in tokenizing_models(context.models)}
    try:
        with guard(task.key("read")):
            for i, unit in enumerate(task.units):
                try:
                    with limit_memory():
                        unit_texts, unit_counts, unit_known = _tokenize_unit(context, unit, files)
                except Exception as error:
                    errors[i] = describe_error(error)
                else:
                    for tokenizer, parts in unit_texts.items():
                        texts[tokenizer] += parts
                    counts[i], known_rows[i] = json.dumps(unit_counts.to_json()), unit_known
    except AttemptsExhausted as error:
        errors, lost = [str(error)] * len(task.units), True
    task = task.replace(errors=errors, lost=lost, counts=counts, known_rows=known_rows)
    for tokenizer, parts in texts.items():
        # here, where tasks run side by side: the actors' processors should not wait for it
        distinct = DistinctLists.find(_join([part.tokens for part in parts]))
        status = np.concatenate([part.status for part in parts])
        task = task.replace(tokenizer, status=status, lists=distinct.lists, inverse=distinct.inverse)
    return task.add_seconds(READ, started).table


@dataclass(frozen=True)
class TokenizedTexts:
    """Some computed rows of a unit, as one tokenizer makes them."""

    tokens: TokenLists
    status: np.ndarray  # (rows,) int8 codes

    @classmethod
    def none(cls) -> "TokenizedTexts":
        """Return no rows."""
        return cls(TokenLists(np.zeros(0, np.int32), np.zeros(1, np.int64)), np.zeros(0, np.int8))


def _tokenize_unit(
    context: ScoringContext, unit: Unit, files: FilesByModel
) -> tuple[dict[str, list[TokenizedTexts]], PassCounts, KnownRows]:
    """Return the rows to compute, in parts, by the tokenizers' names, the statistics of texts, and the known rows."""
    groups = tokenizing_models(context.models)
    tokenizers = load_tokenizers(context.models, files)
    parts: dict[str, list[TokenizedTexts]] = {name: [] for name in groups}
    unit_texts = UnitTexts(context, unit)
    counts = context.no_counts.add_reused_texts(unit_texts.sketch_known())
    for chunk in unit_texts.unknown_chunks():
        for name, tokenizer in tokenizers.items():
            text_tokens, text_status = tokenizer.encode(chunk.texts)
            row_tokens = text_tokens.take(chunk.inverse)
            parts[name].append(TokenizedTexts(row_tokens, text_status[chunk.inverse]))
            read_texts = ReadTexts(chunk.texts, text_tokens.lengths, row_tokens, tokenizer.unknown_id)
            counts = counts.add_texts([model.name for model in groups[name] if model.tokenizer == name], read_texts)
    return parts, counts, unit_texts.known_rows()


def _join(parts: list[TokenLists]) -> TokenLists:
    lengths = np.concatenate([part.lengths for part in parts])
    return TokenLists(np.concatenate([part.ids for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))


Scores = dict[str, Classified]  # by the model's name


class ClassifyStage:
    """An actor that holds the bundles and turns a task's tokens into probabilities."""

    def __init__(
        self, models: tuple[PassModel, ...], files: FilesByModel, engines: dict[str, dict[str, Any]], guard: TaskGuard
    ) -> None:
        """Load the bundles of these files; `engines` are settings of the engines, by the models' names."""
        connection.leave_background()
        cluster.check_assigned_gpu()
        self.guard = guard
        self.models = models
        key = "load", ray.get_runtime_context().get_actor_id()  # which stays when Ray restarts the actor
        with guard(key, LOAD_S * sum(len(model.tokenizers) for model in models)):
            self.engines = {model.name: load_engine(model.name, models, files, engines) for model in models}

    def __call__(self, table: pa.Table) -> pa.Table:
        """Compute the probabilities of a task's rows, by one model after the other."""
        connection.leave_background()  # the thread that computes is another than the one that loaded
        started = time.monotonic()
        task = TaskTable(table)
        tokens = {tokenizer: task.tokens(tokenizer) for tokenizer in tokenizing_models(self.models)}
        errors, lost = task.errors, task.lost
        done_rows: np.ndarray | slice = slice(None)
        try:
            with self.guard(task.key("classify")):
                try:
                    scores = {
                        model.name: self.engines[model.name].classify(*[tokens[name] for name in model.tokenizers])
                        for model in self.models
                    }
                except Exception:
                    scores, done_rows = self._classify_by_unit(task, tokens, errors)
        except AttemptsExhausted as error:
            errors, lost = [str(error)] * len(task.units), True
            scores, done_rows = self._no_scores(), slice(0)
        task = task.replace(errors=errors, lost=lost)
        for tokenizer, distinct in tokens.items():
            lengths, status = distinct.lengths[done_rows], task.status(tokenizer)[done_rows]
            task = task.replace(tokenizer, lists=None, inverse=None, lengths=lengths, status=status)
        for name, classified in scores.items():
            engine = self.engines[name]
            task = task.replace(
                name,
                probabilities=classified.probabilities,
                escalated=classified.escalated,
                others=classified.others,
                backend="; ".join([engine.computed_by, *engine.remarks]),
                choice=[engine.chip, str(engine.choice), engine.margin],
                padding_tokens=classified.padding_tokens,
            )
        return task.add_seconds(CLASSIFY, started).table

    def _no_scores(self) -> Scores:
        return {
            model.name: Classified.none(self.engines[model.name].classes, model.is_cascade) for model in self.models
        }

    def _classify_by_unit(
        self, task: TaskTable, tokens: dict[str, DistinctLists], errors: list[str]
    ) -> tuple[Scores, np.ndarray]:
        """Compute the units one by one, and note the `errors` of those that fail, whichever model cannot do them.

        Returns the scores of the others, and which of the task's rows these are.
        """
        done: list[Scores] = []
        done_rows = [np.zeros(0, np.int64)]
        for i, rows in task.rows_of_units():
            scores: Scores = {}
            for model in self.models:
                engine = self.engines[model.name]
                try:
                    scores[model.name] = engine.classify(*[tokens[name].select(rows) for name in model.tokenizers])
                except Exception as error:
                    if not engine.is_usable:
                        os._exit(1)  # the next process may use the GPU
                    errors[i] = with_name(model.name, describe_error(error))
                    break
            else:
                done.append(scores)
                done_rows.append(rows)
        joined = {name: Classified.join([part[name] for part in done]) for name in self.engines} if done else None
        return joined or self._no_scores(), np.concatenate(done_rows)


def write_outputs(table: pa.Table, context: ScoringContext, guard: TaskGuard) -> pa.Table:
    """Write the output of every unit of the task that has no error."""
    folder = context.output_folder

    def write(
        unit: Unit, scored: pa.Table, rows: Mapping[str, ScoredRows], counts: PassCounts, known_rows: KnownRows
    ) -> None:
        if storage.is_local(folder) and not storage.exists(storage.join(folder, outputs.RUN_FILE)):
            raise OSError(f"a node does not see the output folder {folder}; choose one that all nodes share")
        if context.table is None:
            unit = replace(unit, footer_hash=shards.hash_footer(context.input_root, unit.source, unit.size))
        if aside := context.aside.get(unit.output):
            outputs.set_aside(folder, unit, aside)
        outputs.commit(folder, context.run, unit, scored, counts, known_rows.replaced)

    return _finish(TaskTable(table), context, guard, write)


def compare_outputs(
    table: pa.Table, context: ScoringContext, guard: TaskGuard, units_of_parts: dict[str, Unit]
) -> pa.Table:
    """Compare every unit of the task with its output; a difference becomes the unit's error.

    `units_of_parts`: of units that are only a part of another one, that other one, by the part's output.
    """

    def compare(
        unit: Unit, scored: pa.Table, rows: Mapping[str, ScoredRows], counts: PassCounts, known_rows: KnownRows
    ) -> None:
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
    finish_unit: Callable[[Unit, pa.Table, Mapping[str, ScoredRows], PassCounts, KnownRows], None],
) -> pa.Table:
    """Call `finish_unit` with the table, the computed rows by model, the statistics and the known rows of each unit.

    Returns the task's record.
    """
    started = time.monotonic()
    scored_task = {model.name: _scored_rows(task, model, context.run.min_confidence) for model in context.models}
    errors, lost, counts_of_texts, known_rows = task.errors, task.lost, task.counts, task.known_rows
    done: dict[int, PassCounts] = {}
    try:
        with guard(task.key("finish")):
            for i, rows in task.rows_of_units():
                unit = task.units[i]
                try:
                    with limit_memory():
                        scored_unit = {name: scored.take(rows) for name, scored in scored_task.items()}
                        counts = PassCounts.from_json(json.loads(counts_of_texts[i]))
                        counts = counts.add_unit(scored_unit, known_rows[i].reused_rows(context.run, counts.labels))
                        table = _build_output(context, unit, scored_unit, known_rows[i])
                        finish_unit(unit, table, scored_unit, counts, known_rows[i])
                except Exception as error:
                    errors[i] = describe_error(error)
                else:
                    done[i] = counts
    except AttemptsExhausted as error:
        errors, lost = [str(error)] * len(task.units), True
    units = [
        UnitRecord(
            unit.output,
            unit.source,
            unit.rows,
            errors[i],
            json.dumps(done[i].to_json()) if i in done else "",
            reused_rows=done[i].reused_rows if i in done else 0,
            replaced=json.dumps(known_rows[i].replaced) if i in done else "",
        )
        for i, unit in enumerate(task.units)
    ]
    models = [
        ModelRecord(
            model.name,
            _count_computed_tokens(task, model),
            task.padding_tokens(model.name),
            task.backend(model.name),
            task.choice(model.name),
        )
        for model in context.models
    ]
    return TaskRecord(units, lost, task.add_seconds(FINISH, started).seconds, models).to_table()


def _build_output(
    context: ScoringContext, unit: Unit, rows: Mapping[str, ScoredRows], known_rows: KnownRows
) -> pa.Table:
    kept_columns = _read_kept_columns(context, unit)
    if context.run.text_hash_column in kept_columns.column_names:  # the input's own one, as with --no-reuse
        known_rows = replace(known_rows, text_hash=None)
    return outputs.scored_table(unit, kept_columns, rows, context.run, known_rows)


def _scored_rows(task: TaskTable, model: PassModel, min_confidence: float) -> ScoredRows:
    """Return the computed rows of a task as a model scored them."""
    lengths, statuses = task.lengths(model.tokenizer), [task.status(name) for name in model.tokenizers]

    def make(classified: Classified, alternative: ScoredRows | None = None) -> ScoredRows:
        confidence = model.objective.decide(classified.probabilities)[1]
        status = apply_min_confidence(classified.pick(*statuses), confidence, min_confidence)
        probabilities, escalated = classified.probabilities, classified.escalated
        return ScoredRows(model.objective, model.labels, status, probabilities, lengths, escalated, alternative)

    classified = task.classified(model.name, len(model.labels))
    other_side = classified.other_side()
    return make(classified, None if other_side is None else make(other_side))


def _count_computed_tokens(task: TaskTable, model: PassModel) -> int:
    """Count the tokens of a task that a model computed; a cascade computes some rows twice."""
    tokens = int(task.lengths(model.tokenizer).sum())
    escalated = task.classified(model.name, len(model.labels)).escalated
    return tokens if escalated is None else tokens + int(task.lengths(model.tokenizers[-1])[escalated].sum())


def _read_kept_columns(context: ScoringContext, unit: Unit) -> pa.Table:
    """Read the columns of a unit that go into its output, with the types that they have in other shards."""
    run = context.run
    table = unit_reader.read_rows(
        context.input_root, unit, lambda schema: columns.kept_columns(schema, run.text_columns, run.keep), context.table
    )
    types = {  # but of texts that are dictionaries, since they are so long
        name: kind
        for name, kind in context.column_types.items()
        if name in table.column_names and canonical_type(table.schema.field(name).type) != kind
    }
    return set_types(table, types)
