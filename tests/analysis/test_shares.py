"""Shares of labels in a scored corpus, with and without a labelled sample."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from sentiment_core.analysis.sample_file import DrawnRow, format_sample, read_sample
from sentiment_core.analysis.scored_rows import open_output
from sentiment_core.analysis.shares import (
    CORRECTED,
    NOT_ESTIMATED,
    SAMPLED,
    SharesSettings,
    estimate_shares,
    shares,
)
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.bundle import PARTS, BundleInfo
from sentiment_core.model.cascade import CascadeRecord
from sentiment_core.model.multi_label_records import LabelMetrics, MultiLabelMetrics
from sentiment_core.model.objective import MultiLabel
from sentiment_core.model.records import Metrics, TrainingRecord, TrainingRows
from tests.analysis.outputs import write_output
from tests.scoring.runs import write_shard

ROWS = 400  # of each day
LABELS = ("no", "yes")
RATES = {"no": 0.2, "yes": 0.9}  # of rows predicted as yes, by their true label


@pytest.fixture
def corpus(tmp_path):
    """Two days with other shares, scored by a model that errs at `RATES`; texts say what is true and predicted."""
    rng = np.random.default_rng(3)
    for day, share in (("1", 0.2), ("2", 0.6)):
        true = np.where(rng.random(ROWS) < share, "yes", "no")
        predicted = ["yes" if rng.random() < RATES[label] else "no" for label in true]
        texts = [f"{label} {answer} {i}" for i, (label, answer) in enumerate(zip(true, predicted, strict=True))]
        lang = np.where(rng.random(ROWS) < 0.4, "de", "en")
        write_shard(tmp_path / "in", f"day={day}/a.parquet", {"text": texts, "lang": lang})
    return tmp_path / "in"


def predict(texts):
    """Answer as the texts say, with a confidence of 0.8."""
    return np.array([[0.2, 0.8] if text and text.split()[1] == "yes" else [0.8, 0.2] for text in texts])


@pytest.fixture
def model(tmp_path):
    """The record of a bundle whose evaluation rows show `RATES`."""
    metrics = Metrics(n=200, labels=list(LABELS), accuracy=0.85, confusion=[[80, 20], [10, 90]])
    return write_info(tmp_path / "model", BundleInfo("standard", list(LABELS), 64, metrics=metrics))


def write_info(folder, info):
    """Write the record of a bundle; return what `write_output` notes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / bundle.CARD).write_text(json.dumps(info.to_json()))
    return {"model": str(folder), "digest": bundle.digest_of(bundle.read_files(str(folder))[1])}


def true_labels(root):
    """Return the true label of each row with its day and language."""
    rows = []
    for day in ("1", "2"):
        table = pq.read_table(root / f"day={day}" / "a.parquet", partitioning=None).to_pylist()
        rows += [(day, row["lang"], row["text"].split()[0], i) for i, row in enumerate(table)]
    return rows


def write_sample(root, path, per_day, rng, labelled=None, change=lambda rows: rows):
    """Write a sample with labels, stratified by day; `labelled`: how many of its rows are labelled."""
    by_day = {day: [row for row in true_labels(root) if row[0] == day] for day in ("1", "2")}
    drawn, true = [], []
    for day, rows in by_day.items():
        for i in rng.choice(len(rows), per_day, replace=False):
            drawn.append(DrawnRow(f"day={day}/a.parquet", rows[i][3], f"day={day}", ROWS / per_day))
            true.append(rows[i][2])
    order = rng.permutation(len(drawn))
    content = format_sample(
        [drawn[i] for i in order], {"text": [f"{drawn[i].source} {drawn[i].row}" for i in order]}
    ).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content)))
    for number, (i, row) in enumerate(zip(order, rows, strict=True)):
        row["label"] = true[i] if labelled is None or number < labelled else ""
    rows = change(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def share_of(root, label, day=None, lang=None):
    rows = [row for row in true_labels(root) if day in (None, row[0]) and lang in (None, row[1])]
    return np.mean([row[2] == label for row in rows])


def by_group(result, label="yes"):
    return {tuple(share.by.values()): share for share in result.shares if share.label == label}


def test_intervals_come_from_the_sample_for_groups_that_are_strata(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)
    sample = write_sample(corpus, tmp_path / "s.csv", 60, np.random.default_rng(0))
    result = estimate_shares(open_output(str(tmp_path / "out")), ("day",), sample)
    groups = by_group(result)
    assert list(groups) == [(), ("1",), ("2",)]
    for (*day,), share in groups.items():
        truth = share_of(corpus, "yes", *day)
        assert share.method == SAMPLED
        assert share.low <= truth <= share.high
        assert share.high - share.low < 0.25
        assert share.labelled_rows == (60 if day else 120)
        assert abs(share.counted - truth) > 0.02  # counting is biased
    assert groups[()].rows == 2 * ROWS
    accuracy = groups[()].accuracy
    right = np.mean([text.split()[0] == text.split()[1] for text in all_texts(corpus)])
    assert accuracy.low <= right <= accuracy.high
    sums = [sum(share.estimate for share in result.shares if tuple(share.by.values()) == key) for key in groups]
    assert sums == pytest.approx([1, 1, 1])


def all_texts(root):
    return [text for path in sorted(root.rglob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]


def test_intervals_for_kept_columns_that_cut_strata(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)
    sample = write_sample(corpus, tmp_path / "s.csv", 150, np.random.default_rng(2))
    groups = by_group(estimate_shares(open_output(str(tmp_path / "out")), ("lang",), sample))
    for lang in ("de", "en"):
        share = groups[(lang,)]
        assert share.method == SAMPLED
        assert share.low <= share_of(corpus, "yes", lang=lang) <= share.high


def test_without_a_sample_counts_are_corrected_without_an_interval(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)
    groups = by_group(estimate_shares(open_output(str(tmp_path / "out")), ("day",)))
    for (*day,), share in groups.items():
        truth = share_of(corpus, "yes", *day)
        assert (share.method, share.low, share.high, share.accuracy) == (CORRECTED, None, None, None)
        assert abs(share.estimate - truth) < abs(share.counted - truth)


def test_rows_scored_after_the_sample_are_corrected_and_the_others_have_intervals(corpus, model, tmp_path):
    sample = write_sample(corpus, tmp_path / "s.csv", 50, np.random.default_rng(2))
    write_shard(corpus, "day=3/a.parquet", {"text": ["no yes 1"] * 30, "lang": ["en"] * 30})
    write_output(corpus, tmp_path / "out", predict, **model)
    groups = by_group(estimate_shares(open_output(str(tmp_path / "out")), ("day",), sample))
    assert {key: share.method for key, share in groups.items()} == {
        (): CORRECTED,
        ("1",): SAMPLED,
        ("2",): SAMPLED,
        ("3",): CORRECTED,
    }
    assert "draw a new one" in groups[("3",)].note


def test_groups_with_few_labels_say_so(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)
    opened = open_output(str(tmp_path / "out"))
    sample = write_sample(corpus, tmp_path / "s.csv", 20, np.random.default_rng(4))
    share = by_group(estimate_shares(opened, ("day",), sample))[("1",)]
    assert share.method == SAMPLED
    assert "only 20 labelled rows" in share.note
    sample = write_sample(corpus, tmp_path / "few.csv", 20, np.random.default_rng(4), labelled=8)
    share = by_group(estimate_shares(opened, ("day",), sample))[("1",)]
    assert (share.method, share.low) == (CORRECTED, None)
    assert "too few for an interval" in share.note


def test_who_stops_early_still_has_a_sample(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)
    sample = write_sample(corpus, tmp_path / "s.csv", 100, np.random.default_rng(5), labelled=90)
    share = by_group(estimate_shares(open_output(str(tmp_path / "out")), (), sample))[()]
    assert share.labelled_rows == 90
    assert share.low <= share_of(corpus, "yes") <= share.high


def test_strata_that_nobody_reached_give_no_interval(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)

    def label_one_day(rows):
        return [row | {"label": row["label"] if row["stratum"] == "day=1" else ""} for row in rows]

    sample = write_sample(corpus, tmp_path / "s.csv", 60, np.random.default_rng(8), change=label_one_day)
    groups = by_group(estimate_shares(open_output(str(tmp_path / "out")), ("day",), sample))
    assert (groups[()].method, groups[()].low) == (CORRECTED, None)
    assert "50 % of the rows are in strata without a label" in groups[()].note
    assert groups[("1",)].method == SAMPLED


def test_skipped_rows_are_told(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)

    def skip(rows):
        return [row | {"label": "" if i < 20 else row["label"]} for i, row in enumerate(rows)]

    sample = write_sample(corpus, tmp_path / "s.csv", 60, np.random.default_rng(9), change=skip)
    result = estimate_shares(open_output(str(tmp_path / "out")), (), sample)
    assert any(remark.startswith("20 rows of ") and "were skipped" in remark for remark in result.remarks)


def test_outputs_of_gone_shards_are_left_out_as_samples_leave_them_out(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)
    (corpus / "day=2" / "a.parquet").unlink()
    result = estimate_shares(open_output(str(tmp_path / "out")), ("day",))
    assert list(by_group(result)) == [(), ("1",)]
    assert f"{ROWS} rows are in no share, since their input files are gone" in result.remarks


def test_errors_of_another_bundle_at_the_same_path_are_not_used(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, model=model["model"], digest="another")
    share = by_group(estimate_shares(open_output(str(tmp_path / "out"))))[()]
    assert (share.estimate, share.method) == (None, NOT_ESTIMATED)
    assert "is not the one that scored the output" in share.note


def test_a_sample_that_the_model_was_trained_on_is_refused(corpus, tmp_path):
    sample = write_sample(corpus, tmp_path / "s.csv", 20, np.random.default_rng(0))
    metrics = Metrics(n=200, labels=list(LABELS), accuracy=0.85, confusion=[[80, 20], [10, 90]])
    training = TrainingRecord(data=TrainingRows(place=sample, rows=40))
    noted = write_info(tmp_path / "model", BundleInfo("standard", list(LABELS), 64, metrics=metrics, training=training))
    write_output(corpus, tmp_path / "out", predict, **noted)
    copy = shutil.copy(sample, tmp_path / "copy.csv")
    for path in (sample, copy):
        with pytest.raises(UserError, match="the model was trained on 40 of the 40 labelled rows of"):
            estimate_shares(open_output(str(tmp_path / "out")), (), str(path))
    other = write_sample(corpus, tmp_path / "other.csv", 60, np.random.default_rng(1))
    rows = [{*zip(read.source, read.row, strict=True)} for read in map(read_sample, (sample, other))]
    both = len(rows[0] & rows[1])
    result = estimate_shares(open_output(str(tmp_path / "out")), (), other)
    assert 0 < both < 60
    told = f"the model was trained on the texts of {both} labelled rows of {other}, and knows them better"
    assert told in result.remarks


def test_a_cascade_was_trained_on_what_its_models_were(corpus, tmp_path):
    sample = write_sample(corpus, tmp_path / "s.csv", 20, np.random.default_rng(0))
    cascade = BundleInfo("cascade", list(LABELS), 64, cascade=CascadeRecord(threshold=0.9))
    training = TrainingRecord(data=TrainingRows(place=sample, rows=40))
    for part in PARTS:
        write_info(tmp_path / "model" / part, BundleInfo("standard", list(LABELS), 64, training=training))
    noted = write_info(tmp_path / "model", cascade)
    write_output(corpus, tmp_path / "out", predict, **noted)
    with pytest.raises(UserError, match="the model was trained on 40 of the 40 labelled rows of"):
        estimate_shares(open_output(str(tmp_path / "out")), (), sample)


def test_a_sample_stays_good_for_partitions_that_stay(corpus, model, tmp_path):
    """The files of one group are gone; where strata have rows of other files, too, a new sample is needed."""
    write_output(corpus, tmp_path / "out", predict, **model)
    opened = open_output(str(tmp_path / "out"))
    sample = write_sample(corpus, tmp_path / "s.csv", 60, np.random.default_rng(1))
    before = by_group(estimate_shares(opened, ("day",), sample))[("1",)]
    (corpus / "day=2" / "a.parquet").unlink()
    result = by_group(estimate_shares(opened, ("day",), sample))
    assert (result[("1",)].method, result[()].method) == (SAMPLED, SAMPLED)
    assert result[("1",)].estimate == pytest.approx(before.estimate, abs=0.02)
    assert ("2",) not in result
    (tmp_path / "out" / "day=2" / "a.parquet").unlink()  # as --prune does
    pruned = estimate_shares(open_output(str(tmp_path / "out")), ("day",), sample)
    assert by_group(pruned)[("1",)] == result[("1",)]
    assert pruned.sampled_rows == ROWS
    read = read_sample(sample)
    with pytest.raises(UserError, match=r"has \d+ of its 120 rows in input files that are gone; draw a new sample"):
        replace(read, source=np.array(["a", "b"] * 60, object)).without_sources({"a"})


def test_abstained_rows_are_in_the_shares(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model, min_confidence=0.9)
    opened = open_output(str(tmp_path / "out"))
    bare = by_group(estimate_shares(opened))[()]
    assert (bare.rows, bare.counted, bare.estimate, bare.method) == (2 * ROWS, 0.0, None, NOT_ESTIMATED)
    assert "abstained" in bare.note
    sample = write_sample(corpus, tmp_path / "s.csv", 60, np.random.default_rng(6))
    share = by_group(estimate_shares(opened, (), sample))[()]
    assert share.low <= share_of(corpus, "yes") <= share.high
    assert share.accuracy is None  # no row has a label


def test_abstained_rows_with_probabilities_can_be_corrected(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model, min_confidence=0.9, probabilities=True)
    share = by_group(estimate_shares(open_output(str(tmp_path / "out"))))[()]
    assert share.method == CORRECTED
    assert abs(share.estimate - share_of(corpus, "yes")) < 0.08


def test_a_model_that_is_gone_gives_no_corrected_shares(corpus, tmp_path):
    write_output(corpus, tmp_path / "out", predict, model=str(tmp_path / "gone"))
    share = by_group(estimate_shares(open_output(str(tmp_path / "out"))))[()]
    assert (share.estimate, share.method) == (None, NOT_ESTIMATED)
    assert 0 < share.counted < 1


def test_several_labels(corpus, tmp_path):
    by_label = {
        "long": LabelMetrics(rows=100, predicted=110, recall=0.9),
        "yes": LabelMetrics(rows=100, predicted=110, recall=0.9),
    }
    metrics = MultiLabelMetrics(n=200, labels=["long", "yes"], by_label=by_label)
    info = BundleInfo("standard", ["long", "yes"], 64, metrics=metrics, problem_type=MultiLabel.problem_type)
    noted = write_info(tmp_path / "several", info)
    write_output(
        corpus,
        tmp_path / "out",
        lambda texts: np.array([[0.9, predict([text])[0, 1]] for text in texts]),
        ("long", "yes"),
        MultiLabel(),
        **noted,
    )
    opened = open_output(str(tmp_path / "out"))
    corrected = by_group(estimate_shares(opened))[()]
    assert corrected.method == CORRECTED
    assert abs(corrected.estimate - share_of(corpus, "yes")) < abs(corrected.counted - share_of(corpus, "yes"))

    def label_both(rows):
        return [row | {"label": "long|yes" if row["label"] == "yes" else "long"} for row in rows]

    sample = write_sample(corpus, tmp_path / "s.csv", 60, np.random.default_rng(7), change=label_both)
    result = estimate_shares(opened, (), sample)
    share = by_group(result)[()]
    assert share.low <= share_of(corpus, "yes") <= share.high
    assert by_group(result, "long")[()].estimate > 0.95


def test_the_file_is_a_list_of_shares(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)
    sample = write_sample(corpus, tmp_path / "s.csv", 60, np.random.default_rng(0))
    settings = SharesSettings(str(tmp_path / "out"), sample, ("day",), to=str(tmp_path / "shares.json"))
    report = shares(settings).report()
    content = json.loads((tmp_path / "shares.json").read_text())
    assert [(entry["by"], entry["label"]) for entry in content[:3]] == [({}, "no"), ({}, "yes"), ({"day": "1"}, "no")]
    assert {"by", "label", "rows", "counted", "estimate", "low", "high", "method"} <= content[0].keys()
    assert f"of {2 * ROWS} rows are yes" in report
    assert "with 95 % certainty" in report


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: [row | {"label": "maybe"} for row in rows], "maybe"),
        (lambda rows: [row | {"label": ""} for row in rows], "no label yet"),
        (lambda rows: [row | {"weight": ""} for row in rows], "weight"),
        (lambda rows: rows[1:], "were drawn"),
    ],
)
def test_bad_samples_are_refused(corpus, model, tmp_path, change, sentence):
    write_output(corpus, tmp_path / "out", predict, **model)
    sample = write_sample(corpus, tmp_path / "s.csv", 20, np.random.default_rng(0), change=change)
    with pytest.raises(UserError, match=sentence):
        estimate_shares(open_output(str(tmp_path / "out")), (), sample)


def test_a_sample_of_another_output_is_refused(corpus, model, tmp_path):
    sample = write_sample(corpus, tmp_path / "s.csv", 20, np.random.default_rng(0))
    write_output(corpus, tmp_path / "out", predict, **model, only=lambda unit: unit.source.startswith("day=1"))
    with pytest.raises(UserError, match="not among the scored rows"):
        estimate_shares(open_output(str(tmp_path / "out")), (), sample)


def test_unknown_keys_are_refused(corpus, model, tmp_path):
    write_output(corpus, tmp_path / "out", predict, **model)
    with pytest.raises(UserError, match="day, lang"):
        estimate_shares(open_output(str(tmp_path / "out")), ("month",))
