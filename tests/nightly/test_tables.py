"""Nights of a table: each scores what is new in the table's version, and its page names the version."""

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from sentiment_core.errors import UserError
from sentiment_core.nightly import record
from sentiment_core.nightly.job import nightly
from sentiment_core.nightly.plan import make_plan
from sentiment_core.nightly.settings import NightlySettings
from tests.lake import delta_rows
from tests.scoring.runs import read_scored


def add_day(folder, day: str, rows: int) -> None:
    texts = [f"a good film of {day}, seen {i} times" for i in range(rows)]
    write_deltalake(str(folder), pa.table({"text": texts, "day": [day] * rows}), mode="append", partition_by=["day"])


def test_nights_of_a_table_with_compaction(in_process, models, tmp_path):
    folder, out = tmp_path / "lake", tmp_path / "out"
    flags = {"model": str(models), "input": str(folder), "out": str(out), "date_key": "day"}

    def night(name: str, **more) -> record.Night:
        played = nightly(NightlySettings(night=name, **flags, **more))
        assert (played.exit_code, played.alarms) == (0, [])
        return played

    add_day(folder, "2026-11-01", 30)
    add_day(folder, "2026-11-02", 20)
    first = night("n1", date="2026-11-02")
    assert (first.rows, first.left, first.input_version) == (20, 30, 1)
    assert night("n2").rows == 30
    assert list(first.partitions) == ["day=2026-11-02"]
    add_day(folder, "2026-11-02", 10)
    DeltaTable(str(folder)).optimize.compact()
    third = night("n3")
    assert third.input_version == 3
    assert read_scored(out).num_rows == len(delta_rows(folder)) == 60
    assert (out / "_SUCCESS").exists()
    page = (out / "_nights" / "n3.html").read_text()
    assert "version of the table" in page
    again = record.read_nights(str(out))[-1]
    assert again.input_version == 3


def test_a_day_that_the_table_does_not_have_is_refused(models, tmp_path):
    add_day(tmp_path / "lake", "2026-11-01", 2)
    settings = NightlySettings(
        model=str(models), input=str(tmp_path / "lake"), out=str(tmp_path / "out"), date_key="day", date="2026-11-07"
    )
    with pytest.raises(UserError, match=r"--date 2026-11-07: --input .*/lake has no partition day=2026-11-07"):
        make_plan(settings)
