"""The benchmark of chosen labels asks for the rows that a sample for training would have, and resumes."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).resolve().parents[2]
sys.path += [str(REPO), str(REPO / "benchmarks")]

from benchmarks.label_choice import (  # noqa: E402
    LabelChoiceSettings,
    choose,
    format_table,
    measure,
    read_rows,
)
from sentiment_core.analysis.uncertain import CANDIDATES  # noqa: E402
from sentiment_core.api import Classifier  # noqa: E402
from sentiment_core.errors import UserError  # noqa: E402


def write_numbered(path: Path, numbers: range) -> str:
    """Write distinct sentences whose label shows in one of their words."""
    words = ("awful", "great")
    texts = [f"the film number {i} was {words[i % 2]}" for i in numbers]
    pq.write_table(pa.table({"text": texts, "label": [("negative", "positive")[i % 2] for i in numbers]}), path)
    return str(path)


@pytest.fixture
def small_settings(tiny_encoder, tmp_path) -> LabelChoiceSettings:
    return LabelChoiceSettings(
        name="tiny",
        data=write_numbered(tmp_path / "data.parquet", range(120)),
        eval_data=write_numbered(tmp_path / "eval.parquet", range(100, 160)),
        model=tiny_encoder,
        first_rows=12,
        round_rows=6,
        rounds=2,
        pool_rows=60,
        selection_rows=20,
        seeds=1,
        epochs=1,
        max_length=16,
        results=str(tmp_path / "results.jsonl"),
    )


def test_the_least_confident_texts_without_labels_are_candidates(tiny_bundle):
    classifier = Classifier.load(tiny_bundle)
    texts = [*(f"the film number {i} was fun" for i in range(80)), "", *["the same text"] * 5]
    confidence = classifier.predict_proba(texts).max(axis=1)
    labelled_rows = np.argsort(confidence)[:10].tolist()
    chosen = choose(classifier, texts, labelled_rows, 4, seed=0)
    assert len({texts[i] for i in chosen}) == len(chosen) == 4
    assert not set(chosen) & {*labelled_rows, 80}
    assert confidence[chosen].max() <= np.sort(confidence)[10 + CANDIDATES * 4 + 4]
    everything = choose(classifier, texts, labelled_rows, 200, seed=0)
    assert {texts[i] for i in everything} == {*texts} - {texts[i] for i in labelled_rows} - {""}


def test_texts_of_the_evaluation_rows_are_not_in_the_pool(small_settings):
    rows = read_rows(small_settings)
    evaluated = {*rows.selection.texts, *rows.test.texts}
    assert (len(rows.data), len(rows.selection), len(rows.test)) == (100, 20, 40)
    assert not evaluated & {*rows.data.texts}
    assert rows.draw_pool(60, 0).texts != rows.draw_pool(60, 1).texts
    with pytest.raises(UserError, match="has 60 rows; expected more than --selection-rows 60"):
        read_rows(replace(small_settings, selection_rows=60))
    with pytest.raises(UserError, match="has 100 distinct texts that are not in --eval-data; expected 102 or more"):
        read_rows(replace(small_settings, pool_rows=200, rounds=15))


@pytest.mark.journey
def test_trainings_that_have_a_line_are_skipped_and_others_come_out_the_same(small_settings, ray_here, capsys):
    first = measure(small_settings)
    assert [(line["arm"], line["labels"]) for line in first] == [("both", 12), ("random", 18), ("chosen", 18)]
    assert [len(line["next"]) for line in first] == [6, 0, 6]
    assert not {*first[0]["next"]} & {*range(12), *first[2]["next"]}
    results = Path(small_settings.results)
    lines = results.read_text().splitlines()
    assert [json.loads(line) for line in lines] == first
    results.write_text("\n".join(lines[:2]) + "\n")
    capsys.readouterr()
    second = measure(small_settings)
    assert capsys.readouterr().out.count("accuracy") == 1
    assert second[:2] == first[:2]
    assert {name for name in first[2] if first[2][name] != second[2][name]} <= {"seconds", "train_seconds"}


def test_the_table_compares_the_arms_within_each_seed():
    accuracies = {("both", 50): (0.5, 0.7), ("random", 100): (0.6, 0.8), ("chosen", 100): (0.7, 0.9)}
    lines = [
        {"seed": seed, "arm": arm, "labels": labels, "accuracy": values[seed]}
        for seed in range(2)
        for (arm, labels), values in accuracies.items()
    ]
    _, first, second = format_table(lines).splitlines()
    assert " ".join(first.split()) == "50 0.6000 ± 0.1414 0.6000 ± 0.1414 0.0000 ± 0.0000"
    assert " ".join(second.split()) == "100 0.7000 ± 0.1414 0.8000 ± 0.1414 0.1000 ± 0.0000"
