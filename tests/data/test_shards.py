"""Shards are found, cut into work units, and read back."""

import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentiment_core.data import shards, unit_reader
from sentiment_core.data.shards import FailedShard, Shard, Unit
from sentiment_core.errors import UserError
from sentiment_core.runtime.storage import FileStamp

RESERVED = ("label", "row")


def shard_of(group_rows, group_bytes):
    return Shard(
        FileStamp("a.parquet", 1, 1), pa.schema([]), group_rows, group_bytes, [4 * size for size in group_bytes]
    )


groups = st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 100 << 20)), max_size=12)


@given(groups=groups)
def test_units_cover_a_shard_once_and_stay_small(groups):
    rows, sizes = [g[0] for g in groups], [g[1] for g in groups]
    units = list(shards.cut_into_units(shard_of(rows, sizes)))
    assert units[0].start == 0
    assert units[-1].stop == sum(rows)
    assert all(a.stop == b.start for a, b in itertools.pairwise(units))
    assert all(unit.rows <= shards.UNIT_ROWS for unit in units)
    assert all(unit.text_bytes <= shards.UNIT_TEXT_BYTES or unit.rows == 1 for unit in units if sum(rows))
    assert len({unit.output for unit in units}) == len(units)


def test_a_shard_of_one_unit_keeps_its_path_and_others_name_their_rows():
    assert Unit("k=1/a.parquet", 0, 5, 5, 1, 1, 1).output == "k=1/a.parquet"
    assert Unit("k=1/a.parquet", 2, 5, 9, 1, 1, 1).output == "k=1/a.rows-000000000002-000000000005.parquet"
    assert Unit("part-0", 0, 5, 5, 1, 1, 1).output == "part-0.parquet"


@settings(max_examples=30)
@given(rows=st.integers(0, 300), group=st.integers(1, 120), cuts=st.lists(st.integers(0, 300), max_size=4))
def test_reading_units_gives_the_shard_back(tmp_path_factory, rows, group, cuts):
    folder = tmp_path_factory.mktemp("read")
    pq.write_table(
        pa.table({"n": np.arange(rows), "text": [str(i) for i in range(rows)]}),
        folder / "a.parquet",
        row_group_size=group,
    )
    file = (folder / "a.parquet").stat()
    edges = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    pairs = list(itertools.pairwise(edges)) or [(0, 0)]
    parts = [
        unit_reader.read_rows(
            str(folder), Unit("a.parquet", start, stop, rows, file.st_size, file.st_mtime_ns, 0), lambda _: ["n"]
        )
        for start, stop in pairs
    ]
    assert pa.concat_tables(parts)["n"].to_pylist() == list(range(rows))


def make_corpus(root: Path, files: dict[str, dict]) -> None:
    for name, columns in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), root / name)


@pytest.mark.parametrize(("keep", "kept"), [(None, ["id", "tags"]), (("id",), ["id"]), ((), [])])
def test_units_know_the_size_of_their_kept_columns(tmp_path, monkeypatch, keep, kept):
    monkeypatch.setattr(shards, "UNIT_ROWS", 10)
    make_corpus(tmp_path, {"a.parquet": {"text": ["a"] * 20, "id": range(20), "tags": [[str(i)] for i in range(20)]}})
    group = shards.read_metadata(str(tmp_path), "a.parquet").row_group(0)
    chunks = [group.column(i) for i in range(group.num_columns)]
    expected = sum(chunk.total_compressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in kept)
    units = shards.plan(str(tmp_path), ["text"], keep, RESERVED).units
    assert [unit.kept_bytes for unit in units] == [expected // 2] * 2


def test_nested_shards_are_planned_and_hidden_ones_passed_over(tmp_path):
    columns = {"text": ["a", "b"]}
    make_corpus(
        tmp_path, dict.fromkeys(["x.parquet", "k=1/y.parquet", "_tmp/z.parquet", ".h/z.parquet", "_z.parquet"], columns)
    )
    (tmp_path / "notes.txt").write_text("no Parquet")
    corpus = shards.plan(str(tmp_path), ["text"], None, RESERVED)
    assert [unit.source for unit in corpus.units] == ["k=1/y.parquet", "x.parquet"]
    assert (corpus.rows, corpus.failed) == (4, [])


@pytest.mark.parametrize(
    ("pattern", "sources"),
    [
        ("k=*/*.parquet", ["k=1/y.parquet", "k=2/y.parquet"]),
        ("**/y.parquet", ["k=1/y.parquet", "k=2/y.parquet"]),
        ("x.parquet", ["x.parquet"]),
    ],
)
def test_globs_and_single_files_are_planned(tmp_path, pattern, sources):
    make_corpus(tmp_path, {key: {"text": ["a"]} for key in ["x.parquet", "k=1/y.parquet", "k=2/y.parquet"]})
    assert [unit.source for unit in shards.plan(str(tmp_path / pattern), ["text"], None, RESERVED).units] == sources


def test_a_glob_that_would_leave_out_folders_is_refused(tmp_path):
    make_corpus(tmp_path, {key: {"text": ["a"]} for key in ["x.parquet", "k=1/y.parquet", "_old/z.parquet"]})
    with pytest.raises(UserError, match=r"matches files and folders \(k=1\).*/\*\*/\*.parquet"):
        shards.plan(str(tmp_path / "*"), ["text"], None, RESERVED)
    assert len(shards.plan(str(tmp_path / "**/*.parquet"), ["text"], None, RESERVED).units) == 2
    assert len(shards.plan(str(tmp_path / "*.parquet"), ["text"], None, RESERVED).units) == 1


def test_damaged_and_unusable_shards_are_listed_and_the_others_planned(tmp_path):
    make_corpus(tmp_path, {"a.parquet": {"text": ["a"]}, "b.parquet": {"other": [1]}, "c.parquet": {"text": [1]}})
    (tmp_path / "d.parquet").write_bytes(b"not Parquet at all")
    (tmp_path / "e.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-20])
    corpus = shards.plan(str(tmp_path), ["text"], None, RESERVED)
    assert [unit.source for unit in corpus.units] == ["a.parquet"]
    assert [shard.source for shard in corpus.failed] == ["b.parquet", "c.parquet", "d.parquet", "e.parquet"]
    assert all(isinstance(shard, FailedShard) and shard.reason for shard in corpus.failed)


@pytest.mark.parametrize(
    ("files", "keep", "words"),
    [
        ({}, None, ["holds no .parquet"]),
        ({"a.parquet": {"body": ["a"]}}, None, ["a.parquet", "'text'", "body", "--text-column"]),
        ({"a.parquet": {"text": [1.5]}}, None, ["'text'", "double", "--text-column"]),
        ({"a.parquet": {"text": [["a"]]}}, None, ["'text'", "list"]),
        ({"a.parquet": {"text": ["a"]}}, ("id",), ["'id'", "--keep"]),
        ({"a.parquet": {"text": ["a"], "id": [1], "label": [1]}}, None, ["'label'", "--keep id"]),
        ({"a.parquet": {"text": ["a"], "id": [1], "Label": [1]}}, None, ["'Label'", "--keep id"]),
        ({"label=1/a.parquet": {"text": ["a"]}}, None, ["label=...", "--input"]),
        ({"a.parq": {"text": ["a"]}, "a.parq.parquet": {"text": ["a"]}, "x": {"text": ["a"]}}, None, None),
    ],
)
def test_a_corpus_that_cannot_be_scored_is_refused(tmp_path, files, keep, words):
    make_corpus(tmp_path, files)
    if words is None:
        assert len(shards.plan(str(tmp_path), ["text"], keep, RESERVED).units) == 2
        return
    with pytest.raises(UserError) as error:
        shards.plan(str(tmp_path), ["text"], keep, RESERVED)
    assert all(word in str(error.value) for word in words), error.value


def test_two_shards_with_the_same_output_are_refused(tmp_path):
    make_corpus(tmp_path, {key: {"text": ["a"]} for key in ["a", "a.parquet"]})
    with pytest.raises(UserError, match=r"both be scored into a.parquet"):
        shards.plan(str(tmp_path / "*"), ["text"], None, RESERVED)


def test_a_shard_that_changed_since_the_plan_is_not_read(tmp_path):
    make_corpus(tmp_path, {"a.parquet": {"text": ["a"]}})
    unit = shards.plan(str(tmp_path), ["text"], None, RESERVED).units[0]
    make_corpus(tmp_path, {"a.parquet": {"text": ["a", "b"]}})
    with pytest.raises(OSError, match="changed"):
        unit_reader.read_rows(str(tmp_path), unit, lambda _: ["text"])


def test_a_limit_takes_the_first_rows(tmp_path):
    make_corpus(tmp_path, {"a.parquet": {"text": ["x"] * 5}, "b.parquet": {"text": ["x"] * 5}})
    corpus = shards.limit_rows(shards.plan(str(tmp_path), ["text"], None, RESERVED), 7)
    assert [(unit.source, unit.start, unit.stop) for unit in corpus.units] == [("a.parquet", 0, 5), ("b.parquet", 0, 2)]


def test_a_footer_that_gives_too_many_units_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "UNIT_ROWS", 10)
    monkeypatch.setattr(shards, "MAX_SHARD_UNITS", 3)
    make_corpus(tmp_path, {"a.parquet": {"text": ["x"] * 30}, "b.parquet": {"text": ["x"] * 31}})
    corpus = shards.plan(str(tmp_path), ["text"], None, RESERVED)
    assert len(corpus.units) == 3
    assert "31 rows" in corpus.failed[0].reason


def test_wide_rows_make_small_units():
    units = list(
        shards.cut_into_units(Shard(FileStamp("a", 1, 1), pa.schema([]), [1_000], [1_000], [10 * shards.UNIT_BYTES]))
    )
    assert [unit.rows for unit in units] == [100] * 10


def test_a_name_that_is_not_utf8_is_listed_and_the_others_planned(tmp_path):
    make_corpus(tmp_path, {"a.parquet": {"text": ["a"]}})
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.parquet")).write_bytes(b"")
    except OSError:
        pytest.skip("needs a file system that takes any bytes for a name")
    corpus = shards.plan(str(tmp_path), ["text"], None, RESERVED)
    assert [unit.source for unit in corpus.units] == ["a.parquet"]
    assert [shard.source for shard in corpus.failed] == ["caf\ufffd.parquet"]


def test_a_column_name_that_is_not_utf8_fails_its_shard_only(tmp_path):
    make_corpus(tmp_path, {"a.parquet": {"text": ["a"]}, "b.parquet": {"text": ["b"], "umlaut": [1]}})
    content = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content.replace(b"umlaut", b"uml\xe4ut"))
    corpus = shards.plan(str(tmp_path), ["text"], None, RESERVED)
    assert [unit.source for unit in corpus.units] == ["a.parquet"]
    assert "UnicodeDecodeError" in corpus.failed[0].reason


def test_an_empty_file_is_called_empty(tmp_path):
    make_corpus(tmp_path, {"a.parquet": {"text": ["a"]}})
    (tmp_path / "b.parquet").touch()
    (failed,) = shards.plan(str(tmp_path), ["text"], None, RESERVED).failed
    assert (failed.source, failed.reason) == ("b.parquet", "it is an empty file; write it again")
