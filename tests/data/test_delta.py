"""Delta Lake tables: a version's rows are those that the table's own library reads, or the table is refused."""

import datetime
import json
import shutil
import sys
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from sentiment_core.data import delta, files
from sentiment_core.errors import UserError
from tests.lake import delta_rows, edit_delta_log, read_rows, set_features, to_rows, write_delta

NOON = datetime.datetime(2024, 1, 2, 12, 30, 1, tzinfo=datetime.UTC)


def check(folder, version=None) -> None:
    assert to_rows(read_rows(folder, version)) == to_rows(delta_rows(folder, version))


def test_each_version_has_the_rows_that_the_library_reads(tmp_path):
    folder = tmp_path / "t"
    write_delta(folder, text=["a", "b"], n=[1, 2])
    write_delta(folder, text=["c"], n=[3])
    check(folder)
    DeltaTable(str(folder)).delete("n = 1")
    check(folder)
    DeltaTable(str(folder)).optimize.compact()
    assert len(files.find_files(str(folder), (".parquet",)).stamps) == 1
    check(folder)
    write_deltalake(str(folder), pa.table({"text": ["new"], "n": [9]}), mode="overwrite")
    check(folder)
    assert read_rows(folder)["text"].to_pylist() == ["new"]
    for version in range(5):
        check(folder, version)
    DeltaTable(str(folder)).vacuum(0, enforce_retention_duration=False, dry_run=False)
    check(folder)


def test_columns_that_came_later_are_null_before(tmp_path):
    folder = tmp_path / "t"
    write_delta(folder, text=["a"])
    write_delta(folder, text=["b"], day=["monday"], stars=[5])
    check(folder)
    assert read_rows(folder).column_names == ["text", "day", "stars"]


def test_partition_values_stand_in_the_log_and_have_the_types_of_the_table(tmp_path):
    rows = pa.table(
        {
            "text": ["a", "b", "c"],
            "day": [datetime.date(2024, 1, 1), datetime.date(2024, 1, 2), None],
            "name": ["a b%/c=d", "ä", None],
            "yes": [True, False, None],
            "at": pa.array([NOON, NOON, None], pa.timestamp("us", "UTC")),
            "share": [0.5, 1e-9, None],
            "number": pa.array([1, -2, None], pa.int16()),
            "price": pa.array([Decimal("1.20"), Decimal("-3.00"), None], pa.decimal128(6, 2)),
        }
    )
    write_deltalake(str(tmp_path / "t"), rows, partition_by=rows.column_names[1:])
    check(tmp_path / "t")
    assert read_rows(tmp_path / "t").schema.types == rows.schema.types
    read = files.find_files(str(tmp_path / "t"), (".parquet",))
    assert all((tmp_path / "t" / stamp.path).is_file() for stamp in read.stamps)  # decoded, as they lie on the disk


def test_files_elsewhere_have_their_uri_as_path(tmp_path):
    folder, elsewhere = tmp_path / "t", tmp_path / "odd %20 place" / "part.parquet"
    write_delta(folder, text=["a", "b"])
    (data,) = files.find_files(str(folder), (".parquet",)).stamps
    elsewhere.parent.mkdir()
    shutil.move(folder / data.path, elsewhere)
    encoded = str(elsewhere).replace("%", "%25").replace(" ", "%20")

    def point_elsewhere(kind, content):
        if kind == "add":
            content["path"] = f"file://{encoded}"

    edit_delta_log(folder, point_elsewhere)
    assert [stamp.path for stamp in files.find_files(str(folder), (".parquet",)).stamps] == [f"file://{elsewhere}"]
    assert read_rows(folder)["text"].to_pylist() == ["a", "b"]


@pytest.mark.parametrize(
    ("logged", "path"),
    [
        ("s3a://bucket/t/day=1/a%2520b.parquet", "day=1/a%20b.parquet"),
        ("s3n://bucket/t/a.parquet", "a.parquet"),
        ("s3://other/t/a.parquet", "s3://other/t/a.parquet"),
        ("day=x%2520y/a.parquet", "day=x%20y/a.parquet"),
    ],
)
def test_spellings_of_paths_in_the_log(logged, path):
    assert delta._locate("s3://bucket/t", logged) == path


def map_names(content, mode: str, *names: str) -> dict:
    """Give the columns of a log's metadata these names, and keep those that the files have; return the schema."""
    schema = json.loads(content["schemaString"])
    for i, (field, name) in enumerate(zip(schema["fields"], names, strict=True), 1):
        field["metadata"] = {"delta.columnMapping.id": i, "delta.columnMapping.physicalName": field["name"]}
        field["name"] = name
    content["configuration"] = {"delta.columnMapping.mode": mode, "delta.columnMapping.maxColumnId": "3"}
    return schema


def make_mapped(folder, mode: str, nested: bool = False) -> None:
    """Make a table whose columns have other names in the files: `text` is there `col-1`, `stars` `col-2`."""
    kind = pa.struct([("inside", pa.int64())]) if nested else pa.int64()
    values = [{"inside": 5}, {"inside": 1}] if nested else [5, 1]
    columns = [("col-1", pa.array(["a", "b"])), ("col-2", pa.array(values, kind))]
    write_deltalake(str(folder), pa.table(dict(columns)))

    def rename(kind, content):
        if kind == "protocol":
            content |= {"minReaderVersion": 2, "minWriterVersion": 5}
        if kind == "metaData":
            schema = map_names(content, mode, "text", "stars")
            if nested:
                inside = schema["fields"][1]["type"]["fields"][0]
                inside["metadata"] = {"delta.columnMapping.id": 3, "delta.columnMapping.physicalName": "inside"}
                inside["name"] = "within"
            schema["fields"].reverse()
            content["schemaString"] = json.dumps(schema)

    edit_delta_log(folder, rename)


@pytest.mark.parametrize("mode", ["name", "id"])
def test_columns_with_other_names_in_the_files_are_followed(tmp_path, mode):
    make_mapped(tmp_path / "t", mode)
    if mode == "id":  # then the files must have the ids; the library writes none
        (data,) = files.find_files(str(tmp_path / "t"), (".parquet",)).stamps
        path = tmp_path / "t" / data.path
        rows = pq.read_table(path)
        fields = [
            field.with_name(f"any{i}").with_metadata({"PARQUET:field_id": str(i)})
            for i, field in enumerate(rows.schema, 1)
        ]
        pq.write_table(pa.table(rows.columns, schema=pa.schema(fields)), path)
    rows = read_rows(tmp_path / "t")
    assert rows.to_pydict() == {"stars": [5, 1], "text": ["a", "b"]}


def test_nested_columns_with_other_names_in_the_files_are_not_guessed(tmp_path):
    make_mapped(tmp_path / "t", "name", nested=True)
    with pytest.raises(OSError, match=r"its column 'col-2' was written before a nested field of 'stars' changed"):
        read_rows(tmp_path / "t")


def test_files_without_the_ids_by_which_a_table_finds_columns_are_refused(tmp_path):
    make_mapped(tmp_path / "t", "id")
    with pytest.raises(OSError, match="it has no field ids, by which the table finds column 'stars'"):
        read_rows(tmp_path / "t")


def test_a_column_that_was_widened_is_read_as_the_table_has_it(tmp_path):
    folder = tmp_path / "t"
    write_deltalake(str(folder), pa.table({"text": ["a"], "n": pa.array([7], pa.int32())}))

    def widen(kind, content):
        set_features("typeWidening")(kind, content)
        if kind == "metaData":
            content["schemaString"] = content["schemaString"].replace('"integer"', '"long"')

    edit_delta_log(folder, widen)
    rows = read_rows(folder)
    assert (rows["n"].to_pylist(), rows.schema.field("n").type) == ([7], pa.int64())


def test_deletion_vectors_are_refused_with_what_purges_them(tmp_path):
    folder = tmp_path / "t"
    write_delta(folder, text=["a", "b"])
    set_features("deletionVectors")

    def add_vector(kind, content):
        set_features("deletionVectors")(kind, content)
        if kind == "add":
            vector = "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L"  # the example of Delta's protocol
            content["deletionVector"] = {
                "storageType": "i",
                "pathOrInlineDv": vector,
                "sizeInBytes": 44,
                "cardinality": 6,
            }

    edit_delta_log(folder, add_vector)
    with pytest.raises(UserError, match=rf"with deletion vectors: .*REORG TABLE delta\.`{folder}` APPLY \(PURGE\)"):
        files.find_files(str(folder), (".parquet",))


def test_a_table_that_may_have_deletion_vectors_and_has_none_is_read(tmp_path):
    write_delta(tmp_path / "t", text=["a", "b"])
    edit_delta_log(tmp_path / "t", set_features("deletionVectors"))
    assert len(read_rows(tmp_path / "t")) == 2


def test_features_that_are_not_known_are_refused(tmp_path):
    write_delta(tmp_path / "t", text=["a"])
    edit_delta_log(tmp_path / "t", set_features("variantType"))
    with pytest.raises(UserError, match="variantType"):
        files.find_files(str(tmp_path / "t"), (".parquet",))


def test_versions_that_are_not_there_are_named(tmp_path):
    folder = tmp_path / "t"
    for text in "abc":
        write_delta(folder, text=[text])
    with pytest.raises(UserError, match=r"/t has no version 7; its latest is 2; score one up to that"):
        files.find_files(str(folder), (".parquet",), 7)
    DeltaTable(str(folder)).create_checkpoint()
    for version in range(2):
        (folder / "_delta_log" / f"{version:020}.json").unlink()
    with pytest.raises(UserError, match="in version 1, whose log may have been cleaned up"):
        files.find_files(str(folder), (".parquet",), 1)
    assert len(read_rows(folder)) == 3


def test_a_log_without_content_is_named(tmp_path):
    (tmp_path / "t" / "_delta_log").mkdir(parents=True)
    with pytest.raises(UserError, match=r"/t cannot be read as a table of Delta Lake: .*; check the table"):
        files.find_files(str(tmp_path / "t"), (".parquet",))


def test_a_partitioned_table_with_other_names_in_the_files(tmp_path):
    folder = tmp_path / "t"
    write_deltalake(str(folder), pa.table({"col-1": ["a", "b"], "col-2": ["x", "y"]}), partition_by=["col-2"])

    def rename(kind, content):
        if kind == "protocol":
            content |= {"minReaderVersion": 2, "minWriterVersion": 5}
        if kind == "metaData":
            content["schemaString"] = json.dumps(map_names(content, "name", "text", "day"))
            content["partitionColumns"] = ["day"]

    edit_delta_log(folder, rename)
    assert to_rows(read_rows(folder)) == [{"text": "a", "day": "x"}, {"text": "b", "day": "y"}]


def test_the_missing_library_is_named_by_its_extra(tmp_path, monkeypatch):
    write_delta(tmp_path / "t", text=["a"])
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(UserError, match=r"/t is a table of Delta Lake; .* pip install '.\[tables\]' in the checkout$"):
        read_rows(tmp_path / "t")
