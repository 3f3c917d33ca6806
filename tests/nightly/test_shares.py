"""Nights with shares: intervals for what the sample was drawn from, and a line that says when a new one is due."""

import csv
import io
import json

import pytest

from sentiment_core.analysis.sample_file import DrawnRow, format_sample
from sentiment_core.analysis.shares import CORRECTED, NOT_ESTIMATED, SAMPLED
from sentiment_core.errors import UserError
from sentiment_core.nightly import record
from sentiment_core.nightly.job import nightly
from sentiment_core.nightly.settings import NightlySettings
from tests.conftest import sentences
from tests.scoring.runs import write_shard

ROWS = 60


def add_day(corpus, day: str, rows: int = ROWS) -> None:
    write_shard(corpus, f"day={day}/a.parquet", {"text": sentences(rows, seed=int(day))["text"]})


def write_sample(path, day: str, of_day: str = "") -> str:
    """Write a labelled sample of half of a day's rows; `of_day`: with the texts of another one."""
    texts = sentences(ROWS, seed=int(of_day or day))["text"].to_pylist()
    labels = sentences(ROWS, seed=int(day))["label"].to_pylist()
    drawn = [DrawnRow(f"day={day}/a.parquet", i, f"day={day}", 2.0) for i in range(0, ROWS, 2)]
    content = format_sample(drawn, {"text": texts[::2]}).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(content)))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"label": labels[int(row["row"])]} for row in rows)
    return str(path)


def test_nights_report_shares_and_when_a_sample_is_due(in_process, models, tmp_path):
    corpus, out = tmp_path / "in", tmp_path / "out"
    flags = {"model": str(models), "input": str(corpus), "out": str(out), "shares_by": ("day",)}
    add_day(corpus, "1")
    first = nightly(NightlySettings(night="n1", **flags))
    assert first.exit_code == 0
    assert {share.method for share in first.shares.shares} <= {CORRECTED, NOT_ESTIMATED}
    assert "without a labelled sample" in first.shares.due
    sample = write_sample(tmp_path / "sample.csv", "1")
    second = nightly(NightlySettings(night="n2", shares_sample=sample, **flags))
    assert second.shares.due == ""
    assert {share.method for share in second.shares.shares} == {SAMPLED}
    add_day(corpus, "2")
    third = nightly(NightlySettings(night="n3", shares_sample=sample, **flags))
    methods = {tuple(share.by.values()): share.method for share in third.shares.shares}
    assert methods[("1",)] == SAMPLED
    assert methods[("2",)] != SAMPLED
    assert f"the sample covers {ROWS} rows, and the corpus has {2 * ROWS} rows with text" in third.shares.due
    page = (out / "_nights" / "n3.html").read_text()
    assert "Shares of labels in the corpus" in page
    assert "A new sample is due" in page
    assert record.read_nights(str(out))[-1].shares == third.shares
    line = json.loads((out / "_nights" / "nights.jsonl").read_text().splitlines()[-1])
    assert "shares" not in line


def test_a_night_whose_sample_no_longer_fits_is_done_and_says_so(in_process, models, tmp_path):
    corpus, out = tmp_path / "in", tmp_path / "out"
    add_day(corpus, "2")
    sample = write_sample(tmp_path / "sample.csv", "1")
    flags = {"model": str(models), "input": str(corpus), "out": str(out)}
    night = nightly(NightlySettings(night="n1", shares_sample=sample, **flags))
    assert (night.state, night.exit_code, night.alarms) == ("done", 0, [])
    assert f"has {ROWS // 2} of its {ROWS // 2} rows in input files that are gone" in night.shares.due
    assert {share.low for share in night.shares.shares} == {None}


def test_a_sample_of_other_texts_is_not_used(in_process, models, tmp_path):
    add_day(tmp_path / "in", "1")
    sample = write_sample(tmp_path / "sample.csv", "1", of_day="2")
    flags = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    night = nightly(NightlySettings(night="n1", shares_sample=sample, **flags))
    assert "was drawn from other texts" in night.shares.due
    assert {share.low for share in night.shares.shares} == {None}


def test_a_damaged_sample_or_a_wrong_model_is_refused_before_the_night(models, tmp_path):
    add_day(tmp_path / "in", "1")
    flags = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    (tmp_path / "sample.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no column 'sample'"):
        nightly(NightlySettings(shares_sample=str(tmp_path / "sample.csv"), **flags))
    with pytest.raises(UserError, match="--shares-model is topic; leave it out"):
        nightly(NightlySettings(shares_by=("day",), shares_model="topic", **flags))
    unlabelled = format_sample([DrawnRow("a.parquet", 0, "all", 1.0)], {"text": ["t"]})
    (tmp_path / "empty.csv").write_bytes(unlabelled)
    with pytest.raises(UserError, match="has no label yet"):
        nightly(NightlySettings(shares_sample=str(tmp_path / "empty.csv"), **flags))
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_is_refused_before_a_night_that_continues_others(in_process, models, tmp_path):
    add_day(tmp_path / "in", "1")
    flags = {"model": str(models), "input": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    nightly(NightlySettings(night="n1", **flags))
    with pytest.raises(UserError, match="--by is 'month'"):
        nightly(NightlySettings(night="n2", shares_by=("month",), **flags))
