"""The Python API: a classifier in memory, commands as functions, and an import that changes nothing."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sentiment_core
from sentiment_core import Classifier, Prediction, UserError, evaluate, score, train, verify
from sentiment_core.runtime.environment import VARIABLES
from tests.conftest import shard

TEXTS = ["a wonderful film", "", None, "dull " * 100, "\x00", "caf\u00e9 \ud83d"]


@pytest.fixture(scope="module")
def classifier(tiny_bundle) -> Classifier:
    return Classifier.load(tiny_bundle)


def test_predictions_are_those_of_predict_proba(classifier):
    predictions, probabilities = classifier.predict(TEXTS), classifier.predict_proba(TEXTS)
    assert probabilities.shape == (len(TEXTS), 2)
    assert probabilities.dtype == np.float32
    assert [p.status for p in predictions] == ["ok", "empty", "null", "truncated", "empty", "ok"]
    for prediction, row in zip(predictions, probabilities, strict=True):
        if prediction.status in ("empty", "null"):
            assert np.isnan(row).all()
            assert (prediction.label, prediction.confidence) == (None, None)
        else:
            assert prediction.label == classifier.labels[row.argmax()]
            assert prediction.confidence == pytest.approx(row.max())
            assert row.sum() == pytest.approx(1, abs=1e-5)


def test_labels_are_the_bundles(classifier):
    assert classifier.labels == ["negative", "positive"]


def test_no_texts_give_no_predictions(classifier):
    assert classifier.predict([]) == []
    assert classifier.predict_proba([]).shape == (0, 2)


@pytest.mark.parametrize(
    "texts",
    [
        ("good", None),
        iter(["good", None]),
        np.array(["good", None], object),
        pd.Series(["good", float("nan")]),
        pd.Series(["good", pd.NA], dtype="string"),
        pa.array(["good", None]),
        pa.chunked_array([["good"], [None]]),
    ],
    ids=lambda texts: type(texts).__name__,
)
def test_columns_of_other_libraries_are_lists_of_texts(classifier, texts):
    first, second = classifier.predict(texts)
    assert first.label in classifier.labels
    assert second == Prediction(None, None, "null")


@pytest.mark.parametrize(
    ("texts", "words"), [("good", "expected a list of texts"), (["good", 3], "text 1: it is int"), (None, "NoneType")]
)
def test_what_is_no_list_of_texts_is_refused(classifier, texts, words):
    with pytest.raises(UserError, match=words):
        classifier.predict(texts)


def test_a_table_of_pandas_is_refused_and_one_of_its_columns_is_not(classifier):
    table = pd.DataFrame({"text": ["good", "bad"], "id": [1, 2]})
    with pytest.raises(UserError, match=r"texts is a DataFrame; expected one of its columns, such as texts\['text'\]"):
        classifier.predict(table)
    assert len(classifier.predict(table["text"])) == 2


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(UserError, match="--model"):
        Classifier.load(str(tmp_path))


@pytest.mark.parametrize(
    ("function", "keywords", "words"),
    [
        (train, {"data": "d", "model": "m", "out": "o", "epoch": 3}, "train.. has no setting 'epoch'.*'epochs'"),
        (train, {"data": "d", "model": "m"}, "train.. needs out"),
        (train, {"data": "d", "model": "m", "out": "o", "epochs": "3"}, "epochs is '3'; expected a whole number"),
        (score, {"model": "m", "input": "i"}, "score.. needs out"),
        (evaluate, {"model": "m"}, "evaluate.. needs data"),
        (verify, {}, "verify.. needs input, out"),
    ],
)
def test_wrong_keywords_are_named(function, keywords, words):
    with pytest.raises(UserError, match=words):
        function(**keywords)


@pytest.mark.slow
def test_evaluate_takes_paths_and_returns_the_metrics(tiny_bundle, labelled, tmp_path):
    metrics = evaluate(model=tiny_bundle, data=labelled, out=tmp_path / "metrics.json")
    assert metrics["n"] == 640
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.slow
def test_evaluate_gives_the_metrics_of_each_group(tiny_bundle, labelled, tmp_path):
    table = pq.read_table(labelled)
    for lang, start in (("de", 0), ("en", 400)):
        (tmp_path / f"lang={lang}").mkdir()
        pq.write_table(table.slice(start, 400), tmp_path / f"lang={lang}" / "a.parquet")
    metrics = evaluate(model=tiny_bundle, data=tmp_path, by="lang")
    assert {lang: group["n"] for lang, group in metrics["by"].items()} == {"de": 400, "en": 240}
    right = sum(group["n"] * group["accuracy"] for group in metrics["by"].values())
    assert right / 640 == pytest.approx(metrics["accuracy"])
    with pytest.raises(UserError, match="has no column 'country'; it has text, label; choose with --by"):
        evaluate(model=tiny_bundle, data=labelled, by="country")


@pytest.mark.slow
def test_an_import_changes_nothing_and_loads_nothing_heavy():
    code = (
        "import os, sys; before = dict(os.environ); import sentiment_core;"
        "heavy = {'torch', 'ray', 'transformers', 'pyarrow', 'numpy', 'yaml'} & set(sys.modules);"
        "assert not heavy, heavy; assert dict(os.environ) == before; from sentiment_core import Classifier;"
        "assert dict(os.environ) == before, set(os.environ.items()) ^ set(before.items())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HF_"))}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


SESSION = """
import os, sys
import psutil
from sentiment_core import score, verify
from sentiment_core.runtime.environment import VARIABLES
model, source, out = sys.argv[1:]
planned = score(model=model, input=source, out=out, dry_run=True)
assert planned.rows_to_score == 40 and not os.path.exists(out)
result = score(model=model, input=source, out=out, keep=[])
assert result.exit_code == 0 and result.summary["rows"] == 40, result.summary
assert verify(input=source, out=out).exit_code == 0
again = score(model=model, input=source, out=out, keep=[])  # Ray runs already
assert again.summary["run"]["rows"] == 0
assert not set(VARIABLES) & set(os.environ)  # Ray itself adds others
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
addresses = {c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
assert addresses and addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, addresses
"""


@pytest.mark.journey
@pytest.mark.ray
def test_a_session_scores_and_keeps_its_environment(tiny_bundle, tmp_path):
    shard(tmp_path / "in", "a.parquet", 40, seed=0)
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    arguments = [tiny_bundle, str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", SESSION, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_exported_name_is_there():
    assert {name: getattr(sentiment_core, name) for name in sentiment_core.__all__}
    assert set(sentiment_core.__all__) <= set(dir(sentiment_core))
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        sentiment_core.fit  # noqa: B018
