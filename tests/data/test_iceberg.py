"""Iceberg tables: a snapshot's rows are those that the table's own library reads, or the table is refused."""

import datetime
import json
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFileContent
from pyiceberg.transforms import DayTransform
from pyiceberg.types import LongType
from pyiceberg.utils.config import Config

from sentiment_core.data import files
from sentiment_core.errors import UserError
from tests.lake import add_delete_file, iceberg_folder, make_catalog, make_iceberg, move, read_rows, to_rows

PARQUET = (".parquet",)
NOON = datetime.datetime(2024, 1, 2, 12, 30, tzinfo=datetime.UTC)


def configure(monkeypatch, **uris: str) -> None:
    """Set catalogs as a user's environment does, which pyiceberg reads when it is imported."""
    for name, uri in uris.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__{name.upper()}__URI", uri)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())


def check(table) -> None:
    assert to_rows(read_rows(table.metadata_location)) == to_rows(table.scan().to_arrow())


def test_each_snapshot_has_the_rows_that_the_library_reads(tmp_path):
    table = make_iceberg(tmp_path, text=["a", "b"], n=[1, 2])
    table.append(pa.table({"text": ["c"], "n": [3]}))
    check(table)
    table.delete("n == 1")  # rewrites the file
    check(table)
    table.overwrite(pa.table({"text": ["new"], "n": [9]}))
    check(table)
    assert read_rows(table.metadata_location)["text"].to_pylist() == ["new"]
    for snapshot in table.snapshots():
        rows = read_rows(table.metadata_location, snapshot.snapshot_id)
        assert to_rows(rows) == to_rows(table.scan(snapshot_id=snapshot.snapshot_id).to_arrow())


def test_columns_are_followed_by_their_ids(tmp_path):
    table = make_iceberg(tmp_path, text=["a"], n=pa.array([1], pa.int32()), gone=["x"], inner=[[1, 2]])
    with table.update_schema() as update:
        update.rename_column("text", "body")
        update.delete_column("gone")
        update.update_column("n", LongType())
    with table.update_schema() as update:
        update.add_column("gone", LongType())  # of the same name, and another column
        update.move_first("n")
    table.append(pa.table({"n": [2], "body": ["b"], "inner": [[3]], "gone": [7]}))
    check(table)
    rows = read_rows(table.metadata_location)
    assert rows.column_names == ["n", "body", "inner", "gone"]
    assert to_rows(rows, "body", "gone") == [{"body": "a", "gone": None}, {"body": "b", "gone": 7}]


def test_partitions_may_change(tmp_path):
    table = make_iceberg(tmp_path, text=["a"], day=["x y%z"], at=pa.array([NOON], pa.timestamp("us", "UTC")))
    with table.update_spec() as update:
        update.add_identity("day")
    table.append(pa.table({"text": ["b", "c"], "day": ["p q%r", None], "at": pa.array([NOON] * 2)}))
    with table.update_spec() as update:
        update.remove_field("day")
        update.add_field("at", DayTransform(), "at_day")
    table.append(pa.table({"text": ["d"], "day": ["z"], "at": pa.array([NOON])}))
    check(table)


def test_files_of_other_writers_are_read_by_the_mapping_of_names(tmp_path):
    table = make_iceberg(tmp_path / "lake", text=["a"], n=[1])
    pq.write_table(pa.table({"n": [2], "text": ["b"]}), tmp_path / "other.parquet")
    table.add_files([f"file://{tmp_path}/other.parquet"])
    with table.update_schema() as update:
        update.rename_column("text", "body")
    check(table)
    stamps = files.find_files(table.metadata_location, PARQUET).stamps
    assert f"file://{tmp_path}/other.parquet" in [stamp.path for stamp in stamps]


def test_a_changed_nested_field_is_not_guessed(tmp_path):
    table = make_iceberg(tmp_path, text=["a"], inner=[{"x": 1, "y": 2}])
    check(table)
    with table.update_schema() as update:
        update.rename_column(("inner", "x"), "z")
    with pytest.raises(OSError, match="its column 'inner' was written before a nested field of 'inner' changed"):
        read_rows(table.metadata_location)


def test_a_table_is_found_by_folder_metadata_file_and_catalog(tmp_path, monkeypatch):
    table = make_iceberg(tmp_path, text=["a"], n=[1])
    table.append(pa.table({"text": ["b"], "n": [2]}))
    configure(monkeypatch, lake=f"sqlite:///{tmp_path}/catalog.db")
    places = (iceberg_folder(table), table.metadata_location, "iceberg://lake/ns.t")
    read = [files.find_files(str(place), PARQUET) for place in places]
    assert [data.table.version for data in read] == [table.current_snapshot().snapshot_id] * 3
    assert [data.root for data in read] == [str(iceberg_folder(table))] * 3
    assert [data.stamps for data in read[1:]] == [read[0].stamps] * 2


def test_the_hint_says_which_metadata_are_the_newest(tmp_path):
    table = make_iceberg(tmp_path, text=["a"])
    table.append(pa.table({"text": ["b"]}))
    metadata = iceberg_folder(table) / "metadata"
    (metadata / "version-hint.text").write_text("1\n")
    assert len(read_rows(iceberg_folder(table))) == 1
    (metadata / "version-hint.text").write_text(Path(table.metadata_location).name)
    assert len(read_rows(iceberg_folder(table))) == 2
    (metadata / "version-hint.text").write_text("77")
    with pytest.raises(UserError, match=r"version-hint\.text says 77, and no metadata file has that number"):
        read_rows(iceberg_folder(table))


def test_two_newest_metadata_files_are_refused(tmp_path):
    table = make_iceberg(tmp_path, text=["a"])
    path = Path(table.metadata_location.removeprefix("file://"))
    number = path.name.split("-")[0]
    shutil.copy(path, path.with_name(f"{number}-0189c3d2-1d5a-7a7e-8d5c-0123456789ab.metadata.json"))
    with pytest.raises(UserError, match=r"has two newest metadata files, .* and only its catalog knows which"):
        read_rows(iceberg_folder(table))
    assert len(read_rows(path)) == 1


def test_a_moved_table_is_refused(tmp_path):
    table = make_iceberg(tmp_path, text=["a"])
    there = move(iceberg_folder(table), tmp_path / "there")
    for place in (there, there / "metadata" / Path(table.metadata_location).name):
        with pytest.raises(UserError, match=rf"{there} is an Iceberg table that was moved: .* lies in {tmp_path}/ns/t"):
            read_rows(place)


@pytest.mark.parametrize("content", [DataFileContent.POSITION_DELETES, DataFileContent.EQUALITY_DELETES])
def test_delete_files_are_refused_with_what_writes_the_rows_anew(tmp_path, content):
    table = make_iceberg(tmp_path, text=["a", "b"])
    path = add_delete_file(table, content)
    with pytest.raises(UserError, match=r"with delete files: .* CALL CATALOG.system.rewrite_data_files"):
        read_rows(path)


def test_snapshots_that_are_not_there_are_named(tmp_path):
    table = make_iceberg(tmp_path, text=["a"])
    current = table.current_snapshot().snapshot_id
    with pytest.raises(
        UserError, match=rf"has no snapshot 5, it may have expired; its current one is {current}; score that"
    ):
        read_rows(table.metadata_location, 5)
    empty = make_catalog(tmp_path).create_table("ns.empty", pa.schema([("text", pa.string())]))
    with pytest.raises(UserError, match="is an Iceberg table that nothing was written to"):
        read_rows(empty.metadata_location)


def test_a_version_is_older_if_it_led_to_the_other_one(tmp_path):
    table = make_iceberg(tmp_path, text=["a"])
    first = table.current_snapshot().snapshot_id
    table.append(pa.table({"text": ["b"]}))
    second = table.current_snapshot().snapshot_id
    read = {version: files.find_files(table.metadata_location, PARQUET, version).table for version in (first, second)}
    assert read[first].is_older_than(second)
    assert not read[second].is_older_than(first)
    assert not read[second].is_older_than(second)
    assert not read[second].is_older_than(12345)  # a snapshot that expired since


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("iceberg://lake", "names no table; expected iceberg://CATALOG/NAMESPACE.TABLE"),
        ("iceberg://nowhere/ns.t", "cannot be opened as an Iceberg table: .*check the settings of the catalog nowhere"),
        ("iceberg://lake/ns.other", "cannot be opened as an Iceberg table: .*ns.other"),
        ("iceberg://far/ns.t", "cannot be opened as an Iceberg table: .*check the settings of the catalog far"),
    ],
)
def test_catalogs_that_do_not_answer_are_named(tmp_path, monkeypatch, place, message):
    make_iceberg(tmp_path, text=["a"])
    configure(monkeypatch, lake=f"sqlite:///{tmp_path}/catalog.db", far="http://127.0.0.1:9")
    with pytest.raises(UserError, match=message):
        files.find_files(place, PARQUET)


def test_damaged_metadata_are_named(tmp_path):
    table = make_iceberg(tmp_path, text=["a"])
    path = Path(table.metadata_location.removeprefix("file://"))
    content = json.loads(path.read_text())
    for item in content["snapshots"]:
        item["manifest-list"] += ".gone"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"the snapshot .* cannot be read: "):
        read_rows(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"cannot be opened as an Iceberg table: .*; check the file"):
        read_rows(path)


def test_the_missing_library_is_named_by_its_extra(tmp_path, monkeypatch):
    table = make_iceberg(tmp_path, text=["a"])
    monkeypatch.setitem(sys.modules, "pyiceberg.table", None)
    with pytest.raises(UserError, match=r" is a table of Iceberg; .* pip install '.\[tables\]' in the checkout$"):
        read_rows(table.metadata_location)
