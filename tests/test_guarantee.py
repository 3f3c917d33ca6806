"""`evaluate --target-accuracy`: the guarantee on the user's own rows, printed and in `metrics.json`."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.api import Classifier
from sentiment_core.data import labelled
from sentiment_core.data.labels import LabelScheme
from sentiment_core.errors import UserError
from sentiment_core.evaluation import EvaluateSettings, describe_evaluation, evaluate
from sentiment_core.model import bundle
from sentiment_core.model.guarantee import count_above, promise

pytestmark = pytest.mark.slow

LABELS = np.array(["negative", "positive"])
TEXTS = [f"word{i} good bad {i}" * (1 + i % 7) for i in range(600)]


@pytest.fixture(scope="module")
def answers(tiny_bundle) -> tuple[np.ndarray, np.ndarray]:
    """Compute labels and confidences of the texts."""
    probabilities = Classifier.load(tiny_bundle, precision="float32").predict_proba(TEXTS)
    return LABELS[probabilities.argmax(axis=1)], probabilities.max(axis=1)


@pytest.fixture(scope="module")
def data(answers, tmp_path_factory) -> str:
    """Label the texts so that the model is right on the more confident half, and on half of the others."""
    predicted, confidence = answers
    wrong = (confidence < np.median(confidence)) & (np.arange(len(TEXTS)) % 2 == 0)
    truth = np.where(wrong, LABELS[(predicted == "negative").astype(int)], predicted)
    path = tmp_path_factory.mktemp("labelled") / "data.parquet"
    pq.write_table(pa.table({"text": TEXTS, "label": truth.tolist()}), path)
    return str(path)


def test_the_metrics_file_holds_the_guarantee_and_the_terminal_says_it(tiny_bundle, data, answers, tmp_path):
    out = tmp_path / "metrics.json"
    options = {"model": tiny_bundle, "data": data, "precision": "float32", "target_accuracy": 0.95, "certainty": 0.9}
    result = evaluate(EvaluateSettings(**options, out=str(out)))
    predicted, confidence = answers
    is_right = predicted == pq.read_table(data)["label"].to_numpy()
    expected = promise(count_above(confidence, is_right), 0.95, 0.9)
    assert result.guarantee == expected
    assert 0.4 < expected.share_labelled < 0.7
    assert json.loads(out.read_text())["guarantee"] == {
        "target": 0.95,
        "certainty": 0.9,
        "min_confidence": expected.min_confidence,
        "share_labelled": expected.share_labelled,
        "rows": 600,
        "accuracy": expected.accuracy,
    }
    printed = describe_evaluation(result)
    assert f"--min-confidence {expected.min_confidence!r} labels {100 * expected.share_labelled:.0f} %" in printed
    assert "with certainty 0.9 at least 95 % of those labels are right" in printed


def test_each_label_gets_its_own_on_request(tiny_bundle, data, answers):
    options = {"model": tiny_bundle, "data": data, "precision": "float32", "target_accuracy": 0.9}
    result = evaluate(EvaluateSettings(**options, guarantee_labels=True))
    parts = result.to_json()["guarantee"]["by_label"]
    assert list(parts) == LABELS.tolist()
    for label, part in parts.items():
        assert part["rows"] == (answers[0] == label).sum()
        assert (part["min_confidence"] is None) == ("reason" in part) == ("precision" not in part)
    assert any(part["min_confidence"] is not None for part in parts.values())
    assert all(f"{label}: " in describe_evaluation(result) for label in parts)


def test_too_few_rows_give_null_and_the_reason(tiny_bundle, data, tmp_path):
    pq.write_table(pq.read_table(data).slice(0, 40), tmp_path / "few.parquet")
    settings = EvaluateSettings(model=tiny_bundle, data=str(tmp_path / "few.parquet"), target_accuracy=0.95)
    result = evaluate(settings)
    content = result.to_json()["guarantee"]
    assert (content["min_confidence"], content["share_labelled"], content["rows"]) == (None, 0, 40)
    assert "40 evaluation rows are too few" in content["reason"]
    assert content["reason"] in describe_evaluation(result)


def test_thresholds_read_off_the_curve_are_called_estimates(tiny_bundle, data):
    result = evaluate(EvaluateSettings(model=tiny_bundle, data=data))
    assert "guarantee" not in result.to_json()
    printed = describe_evaluation(result)
    assert "--min-confidence" in printed
    assert "these thresholds are estimates" in printed


def fingerprint(path: object) -> str:
    return labelled.read(str(path), scheme=LabelScheme(LABELS.tolist())).fingerprint()


def test_rows_that_made_the_model_promise_less_or_nothing(tiny_bundle, data, tmp_path):
    """Rows that it was trained on are refused. On those that chose its epoch the epochs are compared."""
    table, trained = pq.read_table(data), tmp_path / "bundle"
    pq.write_table(table.slice(0, 40), tmp_path / "few.parquet")
    pq.write_table(table.slice(40, 40), tmp_path / "others.parquet")
    shutil.copytree(tiny_bundle, trained)
    card = json.loads((trained / bundle.CARD).read_text())
    card["training"] = {
        "epochs": 4,
        "data": {"rows": 600, "fingerprint": fingerprint(data)},
        "eval_data": {"rows": 40, "fingerprint": fingerprint(tmp_path / "few.parquet")},
    }
    (trained / bundle.CARD).write_text(json.dumps(card))

    def reason(name: str) -> str:
        settings = EvaluateSettings(model=str(trained), data=str(tmp_path / name), target_accuracy=0.9)
        return evaluate(settings).guarantee.reason

    with pytest.raises(UserError, match="the model was made with the rows of --data"):
        evaluate(EvaluateSettings(model=str(trained), data=data, target_accuracy=0.9))
    assert evaluate(EvaluateSettings(model=str(trained), data=data)).guarantee is None
    # the logarithms of 0.05 / (20 * 4) and of 0.05 / 20 over that of 0.9
    assert "needs at least 57" in reason("few.parquet")
    assert "needs at least 44" in reason("others.parquet")


def test_a_path_that_the_model_was_trained_or_chosen_on_counts_as_its_rows(tiny_bundle, data, tmp_path):
    """The bundle notes the fingerprint of a part after the split; the path is that of all rows."""
    trained = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, trained)

    def note(**parts: str) -> None:
        card = json.loads((trained / bundle.CARD).read_text())
        rows = {name: {"place": path, "rows": 600, "fingerprint": "of a part"} for name, path in parts.items()}
        (trained / bundle.CARD).write_text(json.dumps(card | {"training": {"epochs": 4, **rows}}))

    few = str(tmp_path / "few.parquet")
    pq.write_table(pq.read_table(data).slice(0, 40), few)
    settings = EvaluateSettings(model=str(trained), data=few, target_accuracy=0.9)
    note(data=few, eval_data=few)
    with pytest.raises(UserError, match="the model was made with the rows of --data"):
        evaluate(settings)
    rest = str(tmp_path / "rest.parquet")
    pq.write_table(pq.read_table(data).slice(30), rest)
    note(data=rest, eval_data=few)
    result = evaluate(settings)
    own, others = set(pq.read_table(few)["text"].to_pylist()), set(pq.read_table(rest)["text"].to_pylist())
    assert result.guarantee.rows == sum(text not in others for text in pq.read_table(few)["text"].to_pylist()) > 0
    assert own & others
    assert "needs at least 57" in result.guarantee.reason  # of four epochs
    for eval_data in (few, data):  # these rows are a copy of rows of the training data
        note(data=data, eval_data=eval_data)
        with pytest.raises(UserError, match="the model was made with the rows of --data"):
            evaluate(settings)


def test_copies_of_rows_that_made_the_model_promise_nothing(tiny_bundle, data, tmp_path):
    """The bundle notes the fingerprint of a part after the split, so that of a copy of the file differs."""
    trained, copy, mixed = (tmp_path / name for name in ("bundle", "copy.parquet", "mixed.parquet"))
    shutil.copytree(tiny_bundle, trained)
    card = json.loads((trained / bundle.CARD).read_text())
    part = {"place": data, "rows": 600, "fingerprint": "of a part"}
    (trained / bundle.CARD).write_text(json.dumps(card | {"training": {"epochs": 4, "data": part, "eval_data": part}}))
    table = pq.read_table(data)
    pq.write_table(table.slice(0, 100), copy)
    with pytest.raises(UserError, match="the model was made with the rows of --data"):
        evaluate(EvaluateSettings(model=str(trained), data=str(copy), target_accuracy=0.9))
    others = [f"{text} again" for text in table["text"].to_pylist()[:40]]
    new = pa.table({"text": others, "label": table["label"].combine_chunks().slice(0, 40)})
    pq.write_table(pa.concat_tables([table.slice(0, 100).select(new.column_names), new]), mixed)
    result = evaluate(EvaluateSettings(model=str(trained), data=str(mixed), target_accuracy=0.9))
    assert result.metrics.n == 140
    assert "100 rows promise nothing: the model was made with their texts" in result.remarks
    assert result.guarantee.reason.startswith("40 evaluation rows are too few")


def test_wrong_requests_are_refused():
    with pytest.raises(UserError, match="--guarantee-labels needs --target-accuracy"):
        EvaluateSettings(model="m", data="d", guarantee_labels=True)
    with pytest.raises(UserError, match=r"--target-accuracy is 95\.0; expected a share"):
        EvaluateSettings(model="m", data="d", target_accuracy=95.0)
