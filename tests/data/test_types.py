"""Types are brought into one form that every reader opens."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.data.types import set_types, to_canonical

DAY = datetime.datetime(2026, 11, 30)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array(["a", "b"]).dictionary_encode(), pa.string()),
        (pa.array(["a"], pa.string_view()), pa.string()),
        (pa.array([b"a"], pa.large_binary()), pa.binary()),
        (pa.array([[1]], pa.large_list(pa.int8())), pa.list_(pa.int8())),
        (pa.array([[DAY]], pa.list_(pa.timestamp("ns"), 1)), pa.list_(pa.timestamp("us"), 1)),
        (pa.array([DAY], pa.timestamp("ns", "UTC")), pa.timestamp("us", "UTC")),
        (pa.array([{"t": DAY}], pa.struct([("t", pa.timestamp("ns"))])), pa.struct([("t", pa.timestamp("us"))])),
        (pa.array([[("k", DAY)]], pa.map_(pa.string(), pa.timestamp("ns"))), pa.map_(pa.string(), pa.timestamp("us"))),
        (pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(['{"a": 1}'])), pa.string()),
        (pa.array([DAY.date()]), pa.date32()),
    ],
)
def test_a_type_becomes_the_usual_one_and_values_stay(column, kind):
    table = to_canonical(pa.table({"x": column}))
    assert table.schema.field("x").type == kind
    expected = [
        value.replace(tzinfo=None) if isinstance(value, datetime.datetime) else value for value in column.to_pylist()
    ]
    values = table["x"].to_pylist()
    assert [v.replace(tzinfo=None) if isinstance(v, datetime.datetime) else v for v in values] == expected


def test_nanoseconds_are_cut_off():
    table = to_canonical(pa.table({"x": pa.array([1_999], pa.timestamp("ns"))}))
    assert table["x"].cast(pa.int64()).to_pylist() == [1]


def test_a_column_of_nulls_takes_any_type():
    table = pa.table({"a": pa.nulls(2), "b": pa.array([None, None], pa.float64()), "c": [1, 2]})
    types = {"a": pa.list_(pa.string()), "b": pa.string(), "d": pa.int8()}
    assert set_types(table, types).schema.types == [pa.list_(pa.string()), pa.string(), pa.int64()]


def test_lists_of_nulls_stay_whole(tmp_path):
    """Found by the fuzzer: of a dictionary-encoded file in several row groups, a cast to the same type breaks them."""
    values = [[], [], [None], [], [None], [None], [None], [None], [], [], [None], []]
    columns = {"id": pa.array(["a"] * 12).dictionary_encode(), "x": pa.array(values, pa.list_(pa.null()))}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=1)
    table = pa.Table.from_batches(list(pq.ParquetFile(tmp_path / "a.parquet").iter_batches(256)))
    for kind in (pa.list_(pa.null()), pa.list_(pa.string())):
        result = set_types(to_canonical(table), {"x": kind})
        result.validate(full=True)
        assert result["x"].to_pylist() == values
