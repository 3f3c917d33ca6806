"""Output folders for tests, written by the functions that scoring writes them with, without a model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sentiment_core.data import shards
from sentiment_core.data.unit_reader import read_rows
from sentiment_core.model.objective import Objective, SingleLabel
from sentiment_core.runtime import storage
from sentiment_core.scoring import outputs
from sentiment_core.scoring.records import ModelRun, Run, RunFile
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.text.arrow import join_texts
from sentiment_core.text.status import EMPTY, NULL, OK, apply_min_confidence

Predict = Callable[[list[str | None]], np.ndarray]  # from texts to probabilities (n, classes)


def write_output(
    root: Path | str,
    out: Path | str,
    predict: Predict,
    labels: Sequence[str] = ("no", "yes"),
    objective: Objective = SingleLabel(),  # noqa: B008 (frozen)
    names: Sequence[str] = ("",),
    only: Callable[[shards.Unit], bool] = lambda unit: True,
    model: str = "",
    digest: str = "digest",
    **settings: object,
) -> Run:
    """Write what scoring the folder or table `root` would write, if models gave the probabilities of `predict`.

    Null texts and those without letters get no score. `names`: of the models, all alike. `only`: the units to write.
    `model`: the path of the bundle to note, `digest`: its digest.
    """
    by_name = {name: ModelRun(digest, objective.several) for name in names if name}
    settings = {"text_column": "text", "probabilities": objective.several} | settings
    run = Run(str(root), digest, multi_label=objective.several and not by_name, models=by_name, **settings)
    corpus = shards.plan(str(root), run.text_columns, None, run.scored_columns)
    table = corpus.columns
    version = corpus.table.version if corpus.table else None
    storage.write_file(storage.join(str(out), "_keep"), b"")
    outputs.write_run_file(str(out), RunFile(run, model, input_version=version))
    for unit in filter(only, corpus.units):
        columns = read_rows(corpus.root, unit, lambda schema: list(schema.names), table)
        batches = columns.select(run.text_columns).combine_chunks().to_batches()
        texts = [text for batch in batches for text in join_texts(batch.columns)]
        status = np.array([NULL if text is None else OK if text.strip() else EMPTY for text in texts], np.int8)
        probabilities = np.asarray(predict(texts), np.float32).reshape(len(texts), len(labels))
        probabilities[status != OK] = np.nan
        confidence = objective.decide(probabilities)[1]
        status = apply_min_confidence(status, confidence, run.min_confidence)
        rows = {
            name: ScoredRows(objective, list(labels), status, probabilities, np.full(len(texts), 3)) for name in names
        }
        kept = columns.drop_columns(run.text_columns)
        counts = PassCounts.zero({name: list(labels) for name in names}).add_unit(rows)
        outputs.commit(str(out), run, unit, outputs.scored_table(unit, kept, rows, run), counts)
    return run
