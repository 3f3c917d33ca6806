"""Texts of several columns are joined alike in training data, scoring, verifying, Python and requests."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sentiment_core.api import Classifier
from sentiment_core.data import labelled
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.evaluation import EvaluateSettings, evaluate
from sentiment_core.model import bundle
from sentiment_core.scoring.records import Run
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.scoring.verify import VerifySettings, verify
from sentiment_core.serving.model import ServedModel
from sentiment_core.training.settings import TrainSettings
from tests.scoring.runs import plan_folder, read_scored, score_folder, write_shard

TITLES = ["good", None, "bad", None, ""]
BODIES = ["a film", "a lovely book", None, None, "fine"]
JOINED = ["good\na film", "a lovely book", "bad", None, "\nfine"]
LABELS = ["positive", "positive", "negative", "negative", "positive"]


@pytest.fixture(scope="module")
def two_columns(tiny_bundle, tmp_path_factory) -> str:
    """A bundle that was trained on the columns title and body."""
    path = tmp_path_factory.mktemp("columns") / "bundle"
    shutil.copytree(tiny_bundle, path)
    record = json.loads((path / bundle.CARD).read_text())
    record["training"] = {"settings": {"text_column": ["title", "body"]}}
    (path / bundle.CARD).write_text(json.dumps(record))
    return str(path)


def to_column(kind: str, texts: list[str | None]) -> pa.Array:
    column = pa.array(texts)
    if kind == "dictionary":
        return column.dictionary_encode()
    return column.cast({"string": pa.string(), "large": pa.large_string(), "bytes": pa.binary()}[kind])


@pytest.mark.parametrize("kind", ["string", "large", "dictionary", "bytes"])
def test_labelled_columns_are_joined_by_line_breaks_without_nulls(tmp_path, kind):
    columns = {"body": to_column(kind, BODIES), "title": to_column("string", TITLES), "label": LABELS}
    write_shard(tmp_path, "a.parquet", columns)
    data = labelled.read(str(tmp_path), Columns(texts=("title", "body")))
    assert data.texts == [text for text in JOINED if text is not None]
    assert data.origin.dropped.without_text == 1


def test_columns_of_csv_and_json_files_are_joined_too(tmp_path):
    (tmp_path / "a.csv").write_text("label,title,body\npositive,007,a film\nnegative,,bad\n")
    (tmp_path / "b.jsonl").write_text('{"title": "fine", "body": null, "label": "positive"}\n')
    assert labelled.read(str(tmp_path), Columns(texts=("title", "body"))).texts == ["007\na film", "bad", "fine"]


def test_a_corpus_is_scored_by_the_columns_that_the_model_was_trained_on(in_process, two_columns, tmp_path):
    for name, kind in (("a", "string"), ("b", "dictionary"), ("c", "bytes")):
        columns = {"id": [*range(5)], "body": to_column(kind, BODIES), "title": to_column(kind, TITLES)}
        write_shard(tmp_path / "in", f"{name}.parquet", columns)
    result = score_folder(two_columns, tmp_path / "in", tmp_path / "out", probabilities=True)
    assert result.exit_code == 0
    scored = read_scored(tmp_path / "out")
    assert scored.column_names[:2] == ["id", "label"]  # both texts are left out
    expected = Classifier.load(two_columns).predict_proba(JOINED)
    values = [[np.nan] * 2 if row is None else row for row in scored["probabilities"].to_pylist()]
    np.testing.assert_allclose(values, np.tile(expected, (3, 1)), atol=0.01)
    assert scored["status"].to_pylist()[:5] == ["ok", "ok", "ok", "null", "ok"]
    again = plan_folder(two_columns, tmp_path / "in", tmp_path / "out", probabilities=True)
    assert not again.units_to_score
    checked = verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out"), model=two_columns, sample=9))
    assert checked.exit_code == 0
    with pytest.raises(UserError, match="text_column"):
        plan_folder(two_columns, tmp_path / "in", tmp_path / "out", probabilities=True, text_column=("title",))


@pytest.mark.slow
def test_evaluation_joins_the_columns_of_the_model(two_columns, tmp_path):
    write_shard(tmp_path, "a.parquet", {"title": TITLES, "body": BODIES, "label": LABELS})
    write_shard(tmp_path, "joined/a.parquet", {"text": JOINED, "label": LABELS})
    own = evaluate(EvaluateSettings(model=two_columns, data=str(tmp_path / "a.parquet"))).metrics
    joined = evaluate(EvaluateSettings(model=two_columns, data=str(tmp_path / "joined"), text_column=("text",))).metrics
    assert (own.n, own.brier) == (joined.n, pytest.approx(joined.brier, abs=0.01))


@pytest.mark.slow
def test_fields_of_a_mapping_are_joined_and_unknown_ones_refused(two_columns, tiny_bundle):
    classifier = Classifier.load(two_columns)
    rows = [{"title": title, "body": body} for title, body in zip(TITLES, BODIES, strict=True)]
    np.testing.assert_allclose(classifier.predict_proba(rows), classifier.predict_proba(JOINED), atol=0.01)
    assert classifier.predict([{}])[0].status == "null"
    with pytest.raises(UserError, match="text 1: it has the field 'author'; expected title, body"):
        classifier.predict(["fine", {"author": "x"}])
    with pytest.raises(UserError, match="text 0: it has the field 'title'; expected text"):
        Classifier.load(tiny_bundle).predict(rows)


@pytest.mark.slow
def test_a_served_model_reads_the_fields_of_a_request(two_columns):
    model = ServedModel(bundle.read_files(two_columns)[1], threads=1, min_confidence=0.0)
    assert model.join_fields({"body": "a film", "title": "good"}) == JOINED[0]
    (answer,) = model.answer([[model.join_fields({"title": None, "body": None}), "good"]])
    assert [result.status for result in answer.results] == ["null", "ok"]


def test_a_bundle_of_one_column_is_read_by_the_name_text(tiny_bundle):
    info = bundle.read_info(tiny_bundle)
    assert info.text_columns == ("text",)
    assert Run(input="i", bundle="b", text_column="title,body").text_columns == ["title", "body"]


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        (TrainSettings, {"data": "d", "model": "m", "out": "o"}),
        (EvaluateSettings, {"data": "d", "model": "m"}),
        (ScoreSettings, {"input": "i", "model": "m", "out": "o"}),
    ],
)
def test_a_column_named_twice_is_refused(settings, fields):
    with pytest.raises(UserError, match="--text-column is 'a,a'; expected different names"):
        settings(**fields, text_column=("a", "a"))


def test_columns_that_are_missing_or_hold_no_text_are_refused(two_columns, tmp_path):
    write_shard(Path(tmp_path), "a.parquet", {"title": ["x"], "n": [1]})
    with pytest.raises(UserError, match=r"a.parquet has no column 'body'; it has title, n; choose with --text-column"):
        plan_folder(two_columns, tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match=r"column 'n' of a.parquet holds int64; expected text"):
        plan_folder(two_columns, tmp_path, tmp_path / "out", text_column=("title", "n"))
