"""Evaluating a sample weighs its rows; suspected labels are ranked in a file."""

import csv
import io
import json
import shutil

import numpy as np
import pytest

from sentiment_core.analysis.sample_file import DrawnRow, format_sample
from sentiment_core.api import Classifier
from sentiment_core.errors import UserError
from sentiment_core.evaluation import EvaluateSettings, describe_evaluation, evaluate
from sentiment_core.model import bundle
from sentiment_core.model.records import Metrics
from tests.scoring.runs import write_shard

TEXTS = [f"text {i} about {'plot' * (i % 5)}" for i in range(40)]
LABELS = ["negative", "positive"]
SIZES = {"one": 1_000, "two": 100, "three": 10}  # rows of the corpus, by stratum


def stratum_of(i: int) -> str:
    return "three" if i >= 35 else "two" if i >= 20 else "one"


def write_sample(path, labels, weighted=True):
    drawn = {name: sum(stratum_of(i) == name for i in range(40)) for name in SIZES}
    rows = [DrawnRow("a.parquet", i, stratum_of(i), SIZES[stratum_of(i)] / drawn[stratum_of(i)]) for i in range(40)]
    if not weighted:
        rows = [DrawnRow(row.source, row.row) for row in rows]
    cells = list(csv.reader(io.StringIO(format_sample(rows, {"text": TEXTS}).decode("utf-8-sig"), newline="")))
    for row, label in zip(cells[1:], labels, strict=True):
        row[4] = label
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(cells)
    return str(path)


def labels_of(rows=range(40)):
    """Return labels, half of them right by chance; none of rows that are not among `rows`."""
    chance = np.random.default_rng(3)
    return [LABELS[chance.integers(2)] if i in rows else "" for i in range(40)]


def by_hand(model, labels):
    """Return accuracy and confusion in rows of the corpus, from the weights of labelled rows."""
    p = Classifier.load(model, precision="float32").predict_proba(TEXTS)
    labelled_rows = {name: sum(bool(labels[i]) for i in range(40) if stratum_of(i) == name) for name in SIZES}
    confusion = np.zeros((2, 2))
    for i, label in enumerate(labels):
        if label:
            name = stratum_of(i)
            confusion[LABELS.index(label), p[i].argmax()] += SIZES[name] / labelled_rows[name]
    return confusion.trace() / confusion.sum(), confusion


@pytest.mark.parametrize("rows", [range(40), range(3, 38)], ids=["all labelled", "some not reached"])
def test_rows_of_a_sample_count_as_their_weights_say(tiny_bundle, tmp_path, rows):
    labels = labels_of(rows)
    path = write_sample(tmp_path / "s.csv", labels)
    result = evaluate(EvaluateSettings(tiny_bundle, path, out=str(tmp_path / "m.json"), precision="float32"))
    accuracy, confusion = by_hand(tiny_bundle, labels)
    metrics = result.metrics
    assert metrics.n == len(rows)
    assert metrics.population_rows == 1110
    assert metrics.accuracy == pytest.approx(accuracy)
    assert metrics.confusion == np.rint(confusion).astype(int).tolist()
    assert sum(metrics.reliability.rows) == pytest.approx(1110, abs=2)
    assert metrics.risk_coverage.coverage[-1] == pytest.approx(1)
    assert metrics.risk_coverage.accuracy[-1] == pytest.approx(accuracy)
    assert json.loads((tmp_path / "m.json").read_text())["population_rows"] == 1110
    assert f"{len(rows)} rows, weighted to stand for 1,110: accuracy" in describe_evaluation(result)
    unreached = [remark for remark in result.remarks if "have no label yet" in remark]
    assert len(unreached) == (len(rows) < 40)
    skipped = [remark for remark in result.remarks if "rows of the sample stand before the last labelled one" in remark]
    assert [remark.partition(" ")[0] for remark in skipped] == ["3"] * (len(rows) < 40)


def test_equal_weights_change_nothing(tiny_bundle, tmp_path):
    labels = labels_of()
    rows = [DrawnRow("a.parquet", i, "all", 7.0) for i in range(40)]
    content = format_sample(rows, {"text": TEXTS}).decode("utf-8-sig")
    for i, label in enumerate(labels):
        content = content.replace(f",{i},{TEXTS[i]},,", f",{i},{TEXTS[i]},{label},")
    (tmp_path / "s.csv").write_bytes(content.encode())
    write_shard(tmp_path, "plain.parquet", {"text": TEXTS, "label": labels})
    weighted, plain = (
        evaluate(EvaluateSettings(tiny_bundle, str(tmp_path / name), precision="float32")).metrics
        for name in ("s.csv", "plain.parquet")
    )
    assert plain.population_rows is None
    assert "population_rows" not in plain.to_json()
    for name in ("accuracy", "macro_f1", "ece", "brier"):
        assert getattr(weighted, name) == pytest.approx(getattr(plain, name))
    assert (7 * np.array(plain.confusion)).tolist() == weighted.confusion
    assert weighted.find_constant_answer() == plain.find_constant_answer()
    assert weighted.risk_coverage.coverage == pytest.approx(plain.risk_coverage.coverage)
    assert Metrics.from_json(weighted.to_json()).population_rows == 280


def test_several_labels_are_weighted_too(multi_label_bundle, tmp_path):
    sets = [["anger|joy", "|", "love"][i % 3] for i in range(40)]
    path = write_sample(tmp_path / "s.csv", sets)
    settings = EvaluateSettings(multi_label_bundle, path, label_separator="|", precision="float32")
    metrics = evaluate(settings).metrics
    p = Classifier.load(multi_label_bundle, precision="float32").predict_proba(TEXTS)
    chosen = p >= np.array([0.5, 0.45, 0.55])
    targets = np.array([[i % 3 == 0, i % 3 == 0, i % 3 == 2] for i in range(40)])
    weights = np.array([SIZES[stratum_of(i)] / {"one": 20, "two": 15, "three": 5}[stratum_of(i)] for i in range(40)])
    right = (chosen == targets).all(axis=1)
    assert metrics.exact_match == pytest.approx((weights * right).sum() / weights.sum())
    hits = (weights[:, None] * (chosen & targets)).sum()
    assert metrics.micro_f1 == pytest.approx(2 * hits / (weights @ chosen + weights @ targets).sum())
    assert metrics.brier == pytest.approx((weights @ ((p - targets) ** 2)).sum() / weights.sum() / 3, abs=1e-6)
    assert metrics.by_label["love"].rows == round(weights @ targets[:, 2])
    assert metrics.population_rows == 1110


def test_groups_are_weighted_too(tiny_bundle, tmp_path):
    labels = labels_of()
    result = evaluate(EvaluateSettings(tiny_bundle, write_sample(tmp_path / "s.csv", labels), by="stratum"))
    assert {name: numbers["n"] for name, numbers in result.by.items()} == {"one": 20, "two": 15, "three": 5}


def test_a_stratum_without_labels_is_said(tiny_bundle, tmp_path):
    path = write_sample(tmp_path / "s.csv", labels_of(range(35)))
    result = evaluate(EvaluateSettings(tiny_bundle, path))
    assert result.metrics.population_rows == 1100
    assert any("10 of 1,110 rows of the corpus are in strata without a labelled row" in r for r in result.remarks)


def test_samples_that_cannot_be_weighted_are_refused(tiny_bundle, tmp_path):
    training = write_sample(tmp_path / "training.csv", labels_of(), weighted=False)
    with pytest.raises(UserError, match="is a sample for training, whose rows do not stand for the corpus"):
        evaluate(EvaluateSettings(tiny_bundle, training))
    (tmp_path / "both").mkdir()
    write_sample(tmp_path / "both/s.csv", labels_of())
    write_shard(tmp_path, "both/more.parquet", {"text": TEXTS, "label": labels_of()})
    with pytest.raises(UserError, match="beside other files; evaluate each sample by itself"):
        evaluate(EvaluateSettings(tiny_bundle, str(tmp_path / "both")))
    path = write_sample(tmp_path / "s.csv", labels_of())
    content = (tmp_path / "s.csv").read_text(encoding="utf-8-sig")
    (tmp_path / "s.csv").write_text(content.replace(",one,50", ",one,51"))
    with pytest.raises(UserError, match="has other values in row"):
        evaluate(EvaluateSettings(tiny_bundle, path))


def suspects_of(model, tmp_path, columns, **settings):
    write_shard(tmp_path, "data.parquet", columns)
    path = tmp_path / "suspects.csv"
    settings |= {"precision": "float32", "suspects": str(path)}
    result = evaluate(EvaluateSettings(model, str(tmp_path / "data.parquet"), **settings))
    with open(path, encoding="utf-8-sig", newline="") as file:
        return result, list(csv.DictReader(file))


def test_flipped_labels_are_ranked_by_how_sure_the_model_is(tiny_bundle, tmp_path):
    p = Classifier.load(tiny_bundle, precision="float32").predict_proba(TEXTS)
    answers = p.argmax(axis=1)
    flipped = {3, 7, 20}
    labels = [LABELS[1 - a] if i in flipped else LABELS[a] for i, a in enumerate(answers)]
    texts = [None, *TEXTS]  # rows are counted as they stand in the file
    result, rows = suspects_of(tiny_bundle, tmp_path, {"text": texts, "label": ["negative", *labels]})
    assert {row["text"] for row in rows} == {TEXTS[i] for i in flipped}
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    probabilities = [float(row["label_probability"]) for row in rows]
    assert probabilities == sorted(probabilities)
    for row in rows:
        i = TEXTS.index(row["text"])
        assert (row["label"], row["predicted"]) == (labels[i], LABELS[answers[i]])
        assert float(row["confidence"]) == pytest.approx(p[i].max(), abs=1e-4)
        assert (row["file"], row["row"]) == (str(tmp_path / "data.parquet"), str(i + 2))
    line = f"3 of 40 labels are suspected to be wrong, the worst first in {tmp_path / 'suspects.csv'}"
    assert line in describe_evaluation(result)


def test_a_set_of_labels_is_suspected_by_its_worst_label(multi_label_bundle, tmp_path):
    p = Classifier.load(multi_label_bundle, precision="float32").predict_proba(TEXTS)
    chosen = p >= np.array([0.5, 0.45, 0.55])
    wrong = chosen.copy()
    wrong[5, 1] ^= True
    names = np.array(["anger", "joy", "love"])
    labels = [names[row].tolist() for row in wrong]
    _, rows = suspects_of(multi_label_bundle, tmp_path, {"text": TEXTS, "label": labels})
    assert [row["text"] for row in rows] == [TEXTS[5]]
    assert float(rows[0]["label_probability"]) == pytest.approx(p[5, 1] if wrong[5, 1] else 1 - p[5, 1], abs=1e-4)
    assert rows[0]["label"] == (", ".join(labels[5]) or "no label")


def test_rows_that_the_model_was_made_with_are_said(tiny_bundle, tmp_path):
    model = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, model)
    record = json.loads((model / bundle.CARD).read_text())
    record["training"] = {"data": {"place": str(tmp_path / "data.parquet"), "rows": 40}}
    (model / bundle.CARD).write_text(json.dumps(record))
    result, _ = suspects_of(str(model), tmp_path, {"text": TEXTS, "label": labels_of()})
    assert any("the model was made with this data" in remark for remark in result.remarks)


def test_a_file_for_suspects_is_csv(tiny_bundle):
    with pytest.raises(UserError, match=r"--suspects is 'x.txt'; expected a file that ends in .csv"):
        EvaluateSettings(tiny_bundle, "d", suspects="x.txt")
