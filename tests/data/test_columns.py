"""Columns are read in one type, and differences between shards are described."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.data import columns, shards, unit_reader
from sentiment_core.data.columns import SchemaDifferences
from sentiment_core.errors import UserError
from sentiment_core.text.arrow import deduplicate_texts

WORDS = ["a", None, "b", "a"]
INNER = pa.struct({"z": pa.large_string()})
TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array(WORDS, pa.large_string()), pa.string()),
        (pa.array(WORDS, pa.string_view()), pa.string()),
        (pa.array(WORDS).dictionary_encode(), pa.string()),
        (pa.array([b"a", None], pa.large_binary()), pa.binary()),
        (pa.array([["a"], None], pa.large_list(pa.large_string())), pa.list_(pa.field("element", pa.string()))),
        (
            pa.array([{"x": "a", "y": [{"z": "b"}]}, None], pa.struct({"x": pa.large_string(), "y": pa.list_(INNER)})),
            pa.struct({"x": pa.string(), "y": pa.list_(pa.field("element", pa.struct({"z": pa.string()})))}),
        ),
        (pa.array([[("k", "v")], None], pa.map_(pa.string(), pa.large_string())), pa.map_(pa.string(), pa.string())),
        (pa.array([["a", "b"], None], pa.list_(pa.large_string(), 2)), pa.list_(pa.field("element", pa.string()), 2)),
        (pa.array([1, None]), pa.int64()),
        (pa.array([datetime(2026, 1, 1, tzinfo=UTC), None]), pa.timestamp("us", "UTC")),
    ],
)  # fmt: skip
def test_kept_columns_are_read_in_their_canonical_type(tmp_path, values, kind):
    pq.write_table(pa.table({"text": ["x"] * len(values), "kept": values}), tmp_path / "a.parquet")
    (unit,) = shards.plan(str(tmp_path), ["text"], None, ()).units
    column = unit_reader.read_rows(str(tmp_path), unit, lambda _: ["kept"])["kept"]
    assert column.type == kind
    assert column.to_pylist() == values.to_pylist()


@pytest.mark.parametrize("kind", TEXTS)
def test_distinct_texts_of_any_type_are_returned_once(kind):
    texts, inverse = deduplicate_texts(pa.array(WORDS).cast(kind))
    assert sorted(texts, key=str) == [None, "a", "b"]
    assert [texts[i] for i in inverse] == WORDS


def test_differences_between_shards_are_described():
    differences = SchemaDifferences()
    schemas = [
        ("a", {"n": pa.int64(), "s": pa.string()}),
        ("b", {"n": pa.int64(), "s": pa.large_string()}),  # the same in Parquet
        ("c", {"n": pa.string(), "s": pa.string(), "new": pa.int8()}),
    ]
    for path, fields in schemas:
        differences.note(pa.schema(fields), path, list(fields))
    assert differences.describe() == [
        "'n' is int64 in 2 (a), string in 1 (c)",
        "'new' is missing in 2 (a), int8 in 1 (c)",
    ]


def test_a_corpus_with_differing_shards_is_planned_as_a_whole(tmp_path):
    pq.write_table(pa.table({"text": ["x"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": pa.array(["x"], pa.large_string())}), tmp_path / "b.parquet")
    planned = shards.plan(str(tmp_path), ["text"], None, ())
    assert (len(planned.units), planned.schema_differences) == (
        2,
        ["'n' is int64 in 1 (a.parquet), missing in 1 (b.parquet)"],
    )
    narrow = shards.plan(str(tmp_path), ["text"], ("n",), ())
    assert ([unit.source for unit in narrow.units], narrow.schema_differences) == (["a.parquet"], [])
    assert "b.parquet has no column 'n'" in narrow.failed[0].reason


def test_a_column_that_appears_twice_is_refused():
    schema = pa.schema([("text", pa.string()), ("n", pa.int8()), ("n", pa.int8())])
    with pytest.raises(UserError, match="2 columns 'n'"):
        columns.check_columns(schema, "a.parquet", ["text"], None, ())
    columns.check_columns(schema, "a.parquet", ["text"], (), ())


def test_a_text_repeated_in_many_rows_is_held_once(tmp_path):
    """A few bytes of Parquet that stand for 60 GB."""
    long = pa.array(["x" * 2_000_000])
    repeated = pa.DictionaryArray.from_arrays(pa.array(np.zeros(30_000, np.int32)), long)
    pq.write_table(pa.table({"text": repeated}), tmp_path / "a.parquet", compression="zstd", store_schema=False)
    (unit,) = shards.plan(str(tmp_path), ["text"], None, ()).units
    rows = 0
    for chunk in unit_reader.read_texts(str(tmp_path), unit, ["text"]):
        texts, inverse = deduplicate_texts(chunk)
        assert texts == long.to_pylist()
        rows += len(inverse)
    assert rows == 30_000


@pytest.mark.parametrize(("keep", "kept"), [(None, ["b", "c"]), ((), []), (("c", "text"), ["text", "c"])])
def test_kept_columns_are_in_the_order_of_the_shard(keep, kept):
    schema = pa.schema({"text": pa.string(), "b": pa.int8(), "c": pa.int8()})
    assert columns.kept_columns(schema, ["text"], keep) == kept
