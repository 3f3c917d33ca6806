"""The stages of scoring, as Ray runs them: each takes one task, a table of one row that holds a few units and what is
known of their rows so far, and adds to it. The last, `write` or `compare`, makes of it one record for each unit.

Whatever goes wrong with a unit becomes its error and leaves the others alone. What takes a whole process along, or
hangs in it, costs that process, and Ray tries the task again elsewhere, as often as its `TaskGuard` lets it; then the task
is lost, with all its units.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import ray

from sentiment_core.data import columns, shards
from sentiment_core.data.shards import Unit
from sentiment_core.model import bundle
from sentiment_core.runtime import connection, storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.runtime.task_guard import AttemptsExhausted, TaskGuard, limit_memory
from sentiment_core.scoring import outputs as scored
from sentiment_core.scoring.outputs import Counts, Run
from sentiment_core.text import distinct_sketch
from sentiment_core.text.arrow import deduplicate_texts
from sentiment_core.text.status import apply_min_confidence
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.text.tokenizer import Tokenizer

LOAD_S = 1800.0  # for an actor to load the bundle, and to compile it if it does
STAGES = ("read and tokenise", "classify", "write")


@dataclass(frozen=True)
class Job:
    """What all tasks of a run share."""

    root: str  # of the corpus
    place: str  # of the output
    run: Run
    labels: list[str]


@dataclass(frozen=True)
class Texts:
    """What only the stage that reads a unit's texts can tell of them."""

    unknown_tokens: int
    sketch: list[int]


TEXTS = pa.struct({"unknown_tokens": pa.int64(), "sketch": pa.list_(pa.int64())})


def read_and_tokenise(task: pa.Table, job: Job, files: ray.ObjectRef, guard: TaskGuard) -> pa.Table:
    """Adds `lost`; `errors` (empty if none) and `texts`, one for each unit; `status` and `tokens` of the rows of all
    units without an error, one after another."""
    started = time.monotonic()
    units = units_of(task)
    errors, lists, status, lost = [""] * len(units), [], [], False
    seen = [Texts(0, [])] * len(units)
    try:
        with guard(_key("read", units)):
            for i, unit in enumerate(units):
                try:
                    with limit_memory():
                        tokens, codes, seen[i] = _tokenise(job, unit, files)
                except Exception as error:
                    errors[i] = describe_error(error)
                else:
                    lists += tokens
                    status += codes
    except AttemptsExhausted as error:
        errors, lost = [str(error)] * len(units), True
    ids = np.concatenate([np.zeros(0, np.int32), *(tokens.ids for tokens in lists)])
    lengths = np.concatenate([np.zeros(0, np.int64), *(tokens.lengths for tokens in lists)])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return (
        _with_errors(task, errors, lost)
        .append_column("texts", pa.array([[asdict(each) for each in seen]], pa.list_(TEXTS)))
        .append_column("status", _one_row(pa.array(np.concatenate([np.zeros(0, np.int8), *status]))))
        .append_column("tokens", _one_row(pa.ListArray.from_arrays(offsets, pa.array(ids))))
        .append_column("read_seconds", pa.array([time.monotonic() - started]))
    )


def _tokenise(job: Job, unit: Unit, files: ray.ObjectRef) -> tuple[list[TokenLists], list[np.ndarray], Texts]:
    """Tokens and status of the unit's rows, in pieces, and what is to be told of its texts."""
    tokenizer = _tokenizer(job.run.bundle, files)
    lists, status, unknown, different = [], [], 0, []
    for chunk in shards.read_texts(job.root, unit, job.run.text_column).chunks:
        texts, which = deduplicate_texts(chunk)
        tokens, codes = tokenizer.encode(texts)
        lists.append(tokens.take(which))
        status.append(codes[which])
        unknown += int((lists[-1].ids == tokenizer.unknown_id).sum())
        scored_texts = (text for text, length in zip(texts, tokens.lengths, strict=True) if length)
        different.append(distinct_sketch.sketch_texts(scored_texts))
    return lists, status, Texts(unknown, distinct_sketch.merge_sketches(*different))


class Classify:
    """Holds the bundle. Replaces `tokens` by `lengths` and `probabilities`, rows x classes in one flat list, NaN where
    there are no tokens."""

    def __init__(self, files: ray.ObjectRef, engine: dict, guard: TaskGuard) -> None:
        from sentiment_core.inference.engine import (
            Engine,  # torch and transformers: seconds that only this stage spends
        )

        connection.leave_background()
        self.guard = guard
        key = "load", ray.get_runtime_context().get_actor_id()  # which stays when Ray starts the actor anew
        with guard(key, LOAD_S), storage.unpack_files(ray.get(files)) as folder:
            self.engine = Engine.load(folder, **engine)

    def __call__(self, task: pa.Table) -> pa.Table:
        started = time.monotonic()
        lists = task["tokens"].chunk(0).flatten()
        offsets = lists.offsets.to_numpy().astype(np.int64)
        tokens = TokenLists(lists.flatten().to_numpy(), offsets - offsets[0])
        status = task["status"].chunk(0).flatten().to_numpy()
        units, errors, lost = units_of(task), task["errors"][0].as_py(), task["lost"][0].as_py()
        try:
            with self.guard(_key("classify", units)):
                try:
                    probabilities, padding = self.engine.probabilities(tokens)
                except Exception:
                    probabilities, padding, keep = self._one_by_one(tokens, units, errors)
                    tokens, status = tokens.take(keep), status[keep]
        except AttemptsExhausted as error:
            errors, lost = [str(error)] * len(units), True
            probabilities, padding, nothing = np.zeros((0, self.engine.classes), np.float32), 0, np.zeros(0, np.int64)
            tokens, status = tokens.take(nothing), status[nothing]
        backend = "; ".join([self.engine.backend.name, *self.engine.remarks])
        return (
            _with_errors(task.drop_columns(["tokens", "status", "errors", "lost"]), errors, lost)
            .append_column("status", _one_row(pa.array(status)))
            .append_column("lengths", _one_row(pa.array(tokens.lengths)))
            .append_column("probabilities", _one_row(pa.array(probabilities.ravel())))
            .append_column("backend", pa.array([backend]))
            .append_column("padding_tokens", pa.array([padding]))
            .append_column("classify_seconds", pa.array([time.monotonic() - started]))
        )

    def _one_by_one(
        self, tokens: TokenLists, units: list[Unit], errors: list[str]
    ) -> tuple[np.ndarray, int, np.ndarray]:
        """Probabilities of the units that can be computed, the padding, and which rows that are; tells the `errors` of
        the others."""
        found, padding, keep = [np.zeros((0, self.engine.classes), np.float32)], 0, [np.zeros(0, np.int64)]
        for i, rows in rows_of(units, errors):
            try:
                probabilities, more = self.engine.probabilities(tokens.take(rows))
            except Exception as error:
                if "CUDA error" in str(error):
                    os._exit(1)  # this process cannot use its GPU any more; the next one may
                errors[i] = describe_error(error)
                continue
            found.append(probabilities)
            keep.append(rows)
            padding += more
        return np.concatenate(found), padding, np.concatenate(keep)


def write(task: pa.Table, job: Job, guard: TaskGuard) -> pa.Table:
    """Commits every unit of the task without an error."""

    def commit(unit: Unit, table: pa.Table, probabilities: np.ndarray, counts: Counts) -> None:
        if storage.is_local(job.place) and not storage.exists(storage.join(job.place, scored.RUN_FILE)):
            raise OSError(f"a node does not see the output folder {job.place}; it must be one that all nodes share")
        scored.commit(job.place, job.run, unit, table, counts)

    return _finish(task, job, guard, commit)


def compare(task: pa.Table, job: Job, guard: TaskGuard, outputs: dict[str, Unit]) -> pa.Table:
    """Compares every unit of the task with what was committed for it, or for the unit that `outputs` says it is a part
    of: a difference is its error."""

    def check(unit: Unit, table: pa.Table, probabilities: np.ndarray, counts: Counts) -> None:
        whole = outputs.get(unit.output, unit)
        found = scored.read(job.place, whole.output).slice(unit.start - whole.start, unit.rows)
        try:
            scored.check_same(found, table, probabilities, job.labels, job.run)
        except scored.Different as error:
            where = "" if whole.output == unit.source else f"{whole.output}: "
            raise scored.Different(f"{where}{error}") from None

    return _finish(task, job, guard, check)


def _finish(
    task: pa.Table, job: Job, guard: TaskGuard, each: Callable[[Unit, pa.Table, np.ndarray, Counts], None]
) -> pa.Table:
    """Gives the scored rows of each unit of the task to `each`; one record for each unit."""
    started = time.monotonic()
    status, lengths, flat = (
        task[name].chunk(0).flatten().to_numpy() for name in ("status", "lengths", "probabilities")
    )
    probabilities = flat.reshape(-1, len(job.labels))
    status = apply_min_confidence(status, probabilities, job.run.min_confidence)
    units, errors, lost = units_of(task), task["errors"][0].as_py(), task["lost"][0].as_py()
    texts = [Texts(**each) for each in task["texts"][0].as_py()]
    done = {}
    try:
        with guard(_key("finish", units)):
            for i, rows in rows_of(units, errors):
                unit = units[i]
                try:
                    with limit_memory():
                        counts = scored.count(
                            status[rows],
                            probabilities[rows],
                            job.labels,
                            lengths[rows],
                            texts[i].unknown_tokens,
                            texts[i].sketch,
                        )
                        kept = shards.read_rows(
                            job.root,
                            unit,
                            lambda schema: columns.kept_columns(schema, job.run.text_column, job.run.keep),
                        )
                        table = scored.make_table(
                            unit, kept, status[rows], probabilities[rows], job.labels, job.run.probabilities
                        )
                        each(unit, table, probabilities[rows], counts)
                except Exception as error:
                    errors[i] = describe_error(error)
                else:
                    done[i] = json.dumps(asdict(counts))
    except AttemptsExhausted as error:
        errors, lost = [str(error)] * len(units), True
    seconds = [task["read_seconds"][0].as_py(), task["classify_seconds"][0].as_py(), time.monotonic() - started]
    records = [
        {
            "output": unit.output,
            "source": unit.source,
            "rows": unit.rows,
            "error": errors[i],
            "lost": lost,
            "counts": done.get(i, ""),
            # of the whole task: told once
            "seconds": dict(zip(STAGES, seconds if i == 0 else (0.0, 0.0, 0.0), strict=True)),
            "tokens": int(lengths.sum()) if i == 0 else 0,
            "padding_tokens": task["padding_tokens"][0].as_py() if i == 0 else 0,
            "backend": task["backend"][0].as_py(),
        }
        for i, unit in enumerate(units)
    ]
    return pa.Table.from_pylist(records)


def units_of(task: pa.Table) -> list[Unit]:
    return [Unit(**fields) for fields in task["units"][0].as_py()]


def _key(stage: str, units: list[Unit]) -> tuple:
    """Tells a task from all others of the run."""
    return stage, units[0].output, len(units)


def rows_of(units: list[Unit], errors: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Of each unit without an error, its number and the task's rows that are its own."""
    first = 0
    for i, (unit, error) in enumerate(zip(units, errors.copy(), strict=True)):
        if not error:
            yield i, np.arange(first, first := first + unit.rows)


def _with_errors(task: pa.Table, errors: list[str], lost: bool) -> pa.Table:
    errors_column = pa.array([errors], pa.list_(pa.string()))
    return task.append_column("lost", pa.array([lost])).append_column("errors", errors_column)


def _one_row(values: pa.Array) -> pa.Array:
    """All values as the list in a table's only row."""
    return pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)


_loaded: dict[str, Tokenizer] = {}  # a Ray worker process runs many tasks: it loads a bundle's tokenizer once


def _tokenizer(digest: str, files: ray.ObjectRef) -> Tokenizer:
    if digest not in _loaded:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # many tasks run side by side instead
        with storage.unpack_files(ray.get(files)) as folder:
            _loaded[digest] = bundle.load_tokenizer(folder)
    return _loaded[digest]
