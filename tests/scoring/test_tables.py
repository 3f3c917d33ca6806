"""Tables as input: each version's rows are scored exactly once, and only those of files that are new in it."""

import json

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.types import LongType

from sentiment_core.data import labelled
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.lake import delta_rows, iceberg_folder, make_iceberg, to_rows, write_delta
from tests.scoring.runs import plan_folder, score_folder


def scored_rows(out, *names: str) -> list[dict]:
    return to_rows(pads.dataset(str(out)).to_table(), *names)


def check_scored(out, table: pa.Table, names: tuple[str, ...], place) -> None:
    """Check that the output holds these columns of the table's rows, and that `verify` finds nothing."""
    assert scored_rows(out, *names) == to_rows(table, *names)
    findings = verify(VerifySettings(input=str(place), out=str(out)))
    assert (findings.exit_code, findings.rows_in, findings.rows_out) == (0, len(table), len(table))


def test_the_nights_of_a_delta_table(in_process, tiny_bundle, tmp_path):
    folder, out = tmp_path / "t", tmp_path / "out"

    def score_version(new_rows: int, *names: str) -> None:
        result = score_folder(tiny_bundle, folder, out)
        assert (result.exit_code, result.summary["complete"], result.summary["run"]["rows"]) == (0, True, new_rows)
        check_scored(out, delta_rows(folder), ("id", *names), folder)
        assert json.loads((out / "_run.json").read_text())["input_version"] == DeltaTable(str(folder)).version()

    rows = pa.table({"id": [1, 2, 3], "text": ["a good one", "bad", "so so"], "day": ["x", "y z", "x"]})
    write_deltalake(str(folder), rows, partition_by=["day"])
    score_version(3, "day")
    write_delta(folder, id=[4], text=["new"], day=["y z"], stars=[5])
    score_version(1, "day")  # outputs keep the columns that they had
    DeltaTable(str(folder)).delete("id = 1")
    score_version(0, "day")  # the file of the other row of its day is another one, with a known text
    write_delta(folder, id=[5], text=["newer"], day=["x"], stars=[1])
    DeltaTable(str(folder)).optimize.compact()
    score_version(1, "day")
    with pytest.raises(UserError, match=r"holds version \d of .*/t, which is newer than 1; choose another --out"):
        plan_folder(tiny_bundle, folder, out, input_version=1)
    DeltaTable(str(folder)).vacuum(0, enforce_retention_duration=False, dry_run=False)
    score_version(0, "day", "stars")
    write_deltalake(str(folder), rows.slice(0, 1), mode="overwrite", schema_mode="overwrite", partition_by=["day"])
    score_version(1, "day")
    assert duckdb.sql(f"select id, day from '{out}/**/*.parquet'").fetchall() == [(1, "x")]


def test_a_pinned_version_is_scored_and_verified_as_it_was(in_process, tiny_bundle, tmp_path):
    folder, out = tmp_path / "t", tmp_path / "out"
    write_delta(folder, id=[1], text=["a"])
    write_delta(folder, id=[2], text=["b"])
    write_deltalake(str(folder), pa.table({"id": [3], "text": ["c"]}), mode="overwrite")
    score_folder(tiny_bundle, folder, out, input_version=1)
    check_scored(out, delta_rows(folder, 1), ("id",), folder)
    findings = verify(VerifySettings(input=str(folder), out=str(out), full=True))
    assert (findings.exit_code, findings.compared) == (0, 2)
    DeltaTable(str(folder)).vacuum(0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(UserError, match=r"version 1 of .*/t is not whole any more: .* is gone, most likely by VACUUM"):
        plan_folder(tiny_bundle, folder, tmp_path / "other", input_version=1)


def test_the_nights_of_an_iceberg_table(in_process, tiny_bundle, tmp_path):
    out = tmp_path / "out"
    rows = pa.table({"id": [1, 2, 3], "text": ["a good one", "bad", "so so"], "day": ["x", "y z", "x"]})
    table = make_iceberg(tmp_path / "lake", **{name: rows[name] for name in rows.column_names})
    folder = iceberg_folder(table)

    def score_snapshot(new_rows: int, *names: str, **settings) -> None:
        result = score_folder(tiny_bundle, folder, out, **settings)
        assert (result.exit_code, result.summary["complete"], result.summary["run"]["rows"]) == (0, True, new_rows)
        check_scored(out, table.scan().to_arrow(), ("id", *names), folder)

    score_snapshot(3, "day")
    with table.update_spec() as update:
        update.add_identity("day")
    table.append(pa.table({"id": [4, 5], "text": ["new", "newer"], "day": ["x", None]}))
    score_snapshot(2, "day")
    table.delete("id == 2")
    score_snapshot(0, "day")  # the rows beside it stand in another file, with known texts
    table.overwrite(rows)
    score_snapshot(1, "day")
    first = table.snapshots()[0].snapshot_id
    with pytest.raises(UserError, match=rf"holds version \d+ of .*/t, which is newer than {first}"):
        plan_folder(tiny_bundle, folder, out, input_version=first)


def test_a_text_column_that_was_renamed_is_read_from_old_files(in_process, tiny_bundle, tmp_path):
    table = make_iceberg(tmp_path / "lake", id=[1, 2], text=["good", "bad"])
    with table.update_schema() as update:
        update.rename_column("text", "body")
    table.append(pa.table({"id": [3], "body": ["so so"]}))
    folder, out = iceberg_folder(table), tmp_path / "out"
    result = score_folder(tiny_bundle, folder, out, text_column=("body",))
    assert result.summary["status"] == {"ok": 3, "truncated": 0, "empty": 0, "null": 0, "abstained": 0}
    check_scored(out, table.scan().to_arrow(), ("id",), folder)


def test_partition_folders_of_a_table_are_no_partition_folders_of_its_output(in_process, tiny_bundle, tmp_path):
    rows = pa.table({"text": ["a", "b"], "_part": ["007", "x y"]})
    write_deltalake(str(tmp_path / "t"), rows, partition_by=["_part"])
    score_folder(tiny_bundle, tmp_path / "t", tmp_path / "out")
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*.parquet")) == ["part-007", "part-x%20y"]
    assert scored_rows(tmp_path / "out", "_part") == [{"_part": "007"}, {"_part": "x y"}]


def test_a_dry_run_names_the_version(tiny_bundle, tmp_path):
    write_delta(tmp_path / "t", text=["a", "b"])
    lines = plan_folder(tiny_bundle, tmp_path / "t", tmp_path / "out").describe().split("\n")
    assert lines[0].startswith("2 rows in 1 units")
    assert lines[1] == "version 0 of a table of Delta Lake"


def test_a_version_without_a_table_is_refused(tiny_bundle, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"--input-version is 3; only tables have versions, and .*/in holds none"):
        plan_folder(tiny_bundle, tmp_path / "in", tmp_path / "out", input_version=3)


def test_an_output_in_the_table_is_refused(tiny_bundle, tmp_path):
    write_delta(tmp_path / "t", text=["a"])
    with pytest.raises(UserError, match="overlap; choose an --out outside the input"):
        plan_folder(tiny_bundle, tmp_path / "t", tmp_path / "t" / "out")


def test_verify_says_which_run_deletes_what_a_new_version_lacks(in_process, tiny_bundle, tmp_path, monkeypatch):
    folder, out = tmp_path / "t", tmp_path / "out"
    write_delta(folder, id=[1], text=["a"])
    write_delta(folder, id=[2], text=["b"])
    score_folder(tiny_bundle, folder, out)
    DeltaTable(str(folder)).optimize.compact()
    with monkeypatch.context() as patch:  # a run that dies before it deletes
        patch.setattr("sentiment_core.scoring.job.delete_replaced", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            score_folder(tiny_bundle, folder, out)
    assert sorted(row["id"] for row in scored_rows(out)) == [1, 1, 2, 2]
    findings = verify(VerifySettings(input=str(folder), out=str(out)))
    assert (findings.exit_code, len(findings.orphaned), findings.doubled) == (1, 2, [])
    assert findings.orphaned[0].endswith("is gone; the next sentiment-core score deletes it")
    again = score_folder(tiny_bundle, folder, out)
    assert (again.summary["run"]["rows"], again.summary["complete"]) == (0, True)
    check_scored(out, delta_rows(folder), ("id",), folder)


def test_labelled_rows_of_a_table(tmp_path):
    folder = tmp_path / "t"
    rows = pa.table({"text": ["good", "bad"], "label": ["positive", "negative"]})
    write_deltalake(str(folder), rows, partition_by=["label"])
    write_delta(folder, text=["fine"], label=["positive"])
    DeltaTable(str(folder)).delete("text = 'bad'")
    data = labelled.read(str(folder), Columns())
    assert sorted(data.texts) == ["fine", "good"]
    assert (data.label_names, data.origin.version) == (["positive"], 2)


def test_outputs_follow_columns_that_were_renamed_added_or_widened(in_process, tiny_bundle, tmp_path):
    rows = {"id": pa.array([1, 2], pa.int32()), "text": ["good", "bad"], "raw": ["awful", "great"]}
    table = make_iceberg(tmp_path / "lake", **rows)
    folder, out = iceberg_folder(table), tmp_path / "out"

    def score_again(*names: str) -> tuple[int, int]:
        run = score_folder(tiny_bundle, folder, out).summary["run"]
        check_scored(out, table.scan().to_arrow(), names, folder)
        return run["rows"], run["reused_rows"]

    assert score_again("id", "raw") == (2, 0)
    assert score_again("id", "raw") == (0, 0)
    with table.update_schema() as update:
        update.add_column("stars", LongType())
        update.update_column("id", LongType())
    assert score_again("id", "raw", "stars") == (0, 2)  # written again, with known texts
    assert pads.dataset(str(out)).schema.field("id").type == pa.int64()
    with table.update_schema() as update:
        update.rename_column("text", "clean")
        update.rename_column("raw", "text")
    assert score_again("id", "clean", "stars") == (2, 0)  # another column is called text now


def test_a_nested_column_that_changed_can_be_left_out(in_process, tiny_bundle, tmp_path):
    table = make_iceberg(tmp_path / "lake", id=[1], text=["good"], inner=[{"x": 1, "y": 2}])
    with table.update_schema() as update:
        update.rename_column(("inner", "x"), "z")
    table.append(pa.table({"id": [2], "text": ["bad"], "inner": [{"z": 1, "y": 2}]}))
    folder = iceberg_folder(table)
    result = score_folder(tiny_bundle, folder, tmp_path / "out")
    assert (result.exit_code, result.summary["rows"]) == (3, 1)
    assert "leave the column out with --keep" in result.summary["failed_shards"][0]["reason"]
    assert score_folder(tiny_bundle, folder, tmp_path / "kept", keep=("id",)).summary["rows"] == 2


def test_an_iceberg_table_that_was_rolled_back_is_scored_as_it_is(in_process, tiny_bundle, tmp_path):
    table = make_iceberg(tmp_path / "lake", id=[1], text=["good"])
    first = table.current_snapshot().snapshot_id
    table.append(pa.table({"id": [2], "text": ["bad"]}))
    folder, out = iceberg_folder(table), tmp_path / "out"
    score_folder(tiny_bundle, folder, out)
    table.manage_snapshots().rollback_to_snapshot(first).commit()
    assert score_folder(tiny_bundle, folder, out).summary["complete"]
    check_scored(out, table.scan().to_arrow(), ("id",), folder)


def test_a_table_without_rows_empties_its_output(in_process, tiny_bundle, tmp_path):
    folder, out = tmp_path / "t", tmp_path / "out"
    write_delta(folder, id=[1], text=["a"])
    score_folder(tiny_bundle, folder, out)
    DeltaTable(str(folder)).delete()
    with pytest.raises(UserError, match="no column 'body'; it has id, text; choose with --text-column"):
        plan_folder(tiny_bundle, folder, tmp_path / "other", text_column=("body",))
    result = score_folder(tiny_bundle, folder, out)
    assert (result.exit_code, result.summary["rows"], result.summary["complete"]) == (0, 0, True)
    assert list(out.rglob("*.parquet")) == []
