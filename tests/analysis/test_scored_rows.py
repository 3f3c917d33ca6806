"""Scored rows are read as columns, each row once, by what footers say."""

import dataclasses
import datetime
import decimal
import os
import time

import numpy as np
import pyarrow as pa
import pytest

from sentiment_core.analysis.scored_rows import check_keys, choose_outputs, map_outputs, open_output, read_batch
from sentiment_core.data.shards import Unit
from sentiment_core.errors import UserError
from sentiment_core.model.objective import MultiLabel
from sentiment_core.scoring import outputs
from sentiment_core.text.status import ABSTAINED, EMPTY, NULL, OK
from tests.analysis.outputs import write_output
from tests.scoring.runs import write_shard


def by_length(texts):
    """Give `yes` the more probability the longer a text is."""
    yes = [min(0.95, 0.1 * len(text or "")) for text in texts]
    return np.array([[1 - p, p] for p in yes])


@pytest.fixture
def root(tmp_path):
    """A corpus of two partitions."""
    write_shard(
        tmp_path / "in", "day=1/a.parquet", {"text": ["a", None, " ", "123456"], "lang": ["en", "de", None, "en"]}
    )
    write_shard(tmp_path / "in", "day=2/b.parquet", {"text": ["12345678"] * 3, "lang": ["fr"] * 3})
    return tmp_path / "in"


def batches(opened, **options):
    return list(map_outputs(lambda output: read_batch(opened, output, **options), opened.outputs))


def test_rows_come_as_columns(root, tmp_path):
    write_output(root, tmp_path / "out", by_length, probabilities=True, min_confidence=0.7)
    opened = open_output(str(tmp_path / "out"))
    assert opened.labels == ["no", "yes"]
    assert opened.partition_keys == ("day",)
    assert (opened.rows, opened.missing_rows, opened.ignored) == (7, 0, 0)
    first, second = batches(opened, keys=("day", "lang"), with_probabilities=True)
    assert first.source == "day=1/a.parquet"
    assert first.rows.tolist() == [0, 1, 2, 3]
    assert first.status.tolist() == [OK, NULL, EMPTY, ABSTAINED]
    assert first.labels.tolist() == [0, -1, -1, -1]
    assert first.has_text.tolist() == [True, False, False, True]
    np.testing.assert_allclose(first.confidence, [0.9, np.nan, np.nan, 0.6], rtol=1e-6)
    np.testing.assert_allclose(first.probabilities[[0, 3]], [[0.9, 0.1], [0.4, 0.6]], rtol=1e-6)
    assert [first.groups[i] for i in first.group_of] == [("1", "en"), ("1", "de"), ("1", None), ("1", "en")]
    assert second.groups == [("2", "fr")]
    assert second.labels.tolist() == [1, 1, 1]


def test_several_labels_come_as_truth_values(root, tmp_path):
    write_output(root, tmp_path / "out", lambda texts: np.tile([0.9, 0.2, 0.7], (len(texts), 1)), "abc", MultiLabel())
    opened = open_output(str(tmp_path / "out"))
    first, _ = batches(opened)
    assert first.labels.tolist() == [[True, False, True], [False] * 3, [False] * 3, [True, False, True]]


def test_one_of_several_models_is_named(root, tmp_path):
    write_output(root, tmp_path / "out", by_length, names=("mood", "topic"), prefix="x_")
    assert batches(open_output(str(tmp_path / "out"), "topic"))[1].labels.tolist() == [1, 1, 1]
    with pytest.raises(UserError, match=r"--name is not given; expected a model of .*: mood, topic"):
        open_output(str(tmp_path / "out"))
    with pytest.raises(UserError, match="--name is 'other'; expected a model"):
        open_output(str(tmp_path / "out"), "other")


def test_a_single_model_has_no_name(root, tmp_path):
    write_output(root, tmp_path / "out", by_length)
    with pytest.raises(UserError, match="scored by one model without a name; leave it out"):
        open_output(str(tmp_path / "out"), "mood")


def test_what_is_no_output_folder_is_refused(root, tmp_path):
    with pytest.raises(UserError, match=r"has no readable _run.json"):
        open_output(str(root))
    write_output(root, tmp_path / "out", by_length, only=lambda unit: False)
    with pytest.raises(UserError, match="holds no scored rows"):
        open_output(str(tmp_path / "out"))


def test_unknown_and_nested_keys_are_refused(root, tmp_path):
    write_shard(root, "day=2/c.parquet", {"text": ["a"], "lang": ["en"], "tags": [["x"]]})
    write_output(root, tmp_path / "out", by_length)
    opened = open_output(str(tmp_path / "out"))
    check_keys(opened, ["day", "lang"])
    with pytest.raises(
        UserError, match=r"--by is 'label'; expected a partition key or a kept column.*: day, lang, tags"
    ):
        check_keys(opened, ["label"])
    with pytest.raises(UserError, match="--by tags holds list"):
        check_keys(opened, ["tags"])


def test_keys_hold_plain_values(tmp_path):
    now, cents = datetime.datetime(2026, 1, 2, 3), decimal.Decimal("1.50")
    plain = {
        "lang": pa.array(["en"]).dictionary_encode(), "n": [1], "half": [0.5], "yes": [True], "at": [now],
        "day": [now.date()], "price": [cents], "nothing": pa.nulls(1), "large": pa.array(["x"], pa.large_string()),
    }  # fmt: skip
    odd = {"raw": pa.array([b"\xff"]), "took": pa.array([7], pa.duration("ms")), "pair": [{"a": 1}]}
    write_shard(tmp_path / "in", "a.parquet", {"text": ["a"], **plain, **odd})
    write_output(tmp_path / "in", tmp_path / "out", by_length)
    opened = open_output(str(tmp_path / "out"))
    check_keys(opened, list(plain))
    (batch,) = batches(opened, keys=tuple(plain))
    assert batch.groups[0][:4] == ("en", "1", "0.5", "true")
    assert batch.groups[0][6:] == ("1.50", None, "x")
    for name, kind in (("raw", "binary"), ("took", "duration"), ("pair", "struct")):
        with pytest.raises(UserError, match=rf"--by {name} holds {kind}.*; expected a column of texts, numbers"):
            check_keys(opened, [name])


def test_a_column_that_an_output_lacks_is_null(root, tmp_path):
    write_shard(root, "day=2/c.parquet", {"text": ["a"], "shop": [7]})
    write_output(root, tmp_path / "out", by_length)
    opened = open_output(str(tmp_path / "out"))
    check_keys(opened, ["shop"])
    assert [batch.groups for batch in batches(opened, keys=("shop",))] == [[(None,)], [(None,)], [("7",)]]


def test_no_row_comes_twice_while_outputs_are_replaced(root, tmp_path):
    out = tmp_path / "out"
    write_output(root, out, by_length)
    path = out / "day=1/a.parquet"
    old = path.read_bytes()
    old_unit = outputs.read_origin(str(out), "day=1/a.parquet").unit
    write_shard(root, "day=1/a.parquet", {"text": ["a", "b"], "lang": ["en", "de"]})
    write_output(root, out, by_length, only=lambda unit: "a.parquet" in unit.source)
    (out / outputs.aside_path("day=1/a.parquet", old_unit)).write_bytes(old)  # written later than the new one
    opened = open_output(str(out))
    assert [output.path for output in opened.outputs] == ["day=1/a.parquet", "day=2/b.parquet"]
    assert (opened.rows, opened.ignored) == (5, 1)


def test_of_overlapping_outputs_of_a_shard_the_newer_counts(root, tmp_path):
    out = tmp_path / "out"
    write_output(root, out, by_length)
    table = outputs.read_output(str(out), "day=2/b.parquet")
    origin, counts = (
        read(out)
        for read in (
            lambda o: outputs.read_origin(str(o), "day=2/b.parquet"),
            lambda o: next(iter(outputs.read_outputs(str(o)))).counts,
        )
    )
    unit = origin.unit
    part = Unit(unit.source, 0, 2, unit.shard_rows, unit.size, unit.mtime_ns, 0)
    outputs.commit(str(out), origin.run, part, table.slice(0, 2), counts)
    os.utime(out / "day=2/b.parquet", ns=(1, 1))
    opened = open_output(str(out))
    assert part.output in [output.path for output in opened.outputs]
    assert (opened.rows, opened.missing_rows, opened.ignored) == (6, 1, 1)


def test_many_units_of_a_shard_are_compared_quickly(root, tmp_path):
    write_output(root, tmp_path / "out", by_length, only=lambda unit: "b.parquet" in unit.source)
    run_file = outputs.read_run_file(str(tmp_path / "out"))
    (output,) = outputs.read_outputs(str(tmp_path / "out"))

    def cover(start, stop, age):
        unit = dataclasses.replace(output.origin.unit, start=start, stop=stop)
        origin = dataclasses.replace(output.origin, unit=unit)
        return dataclasses.replace(output, path=f"{start:09}-{stop}.parquet", mtime_ns=-age, origin=origin)

    units = [cover(10 * i, 10 * i + 10, i % 7) for i in range(30_000)]
    older = [cover(10 * i + 5, 10 * i + 15, 100) for i in range(30_000)] + [cover(0, 300_000, 100)]
    started = time.monotonic()
    chosen = choose_outputs([*older, *units, cover(300_010, 300_020, 200)], run_file)
    assert time.monotonic() - started < 10
    assert [o.path for o in chosen] == [o.path for o in [*units, cover(300_010, 300_020, 0)]]


def test_outputs_of_other_settings_and_files_of_others_do_not_count(root, tmp_path):
    out = tmp_path / "out"
    write_output(root, out, by_length, min_confidence=0.5, only=lambda unit: "a.parquet" in unit.source)
    write_output(root, out, by_length, only=lambda unit: "b.parquet" in unit.source)
    write_shard(out, "foreign.parquet", {"x": pa.array([1])})
    opened = open_output(str(out))
    assert (opened.rows, opened.ignored) == (3, 2)


def test_a_gone_output_is_named(root, tmp_path):
    write_output(root, tmp_path / "out", by_length)
    opened = open_output(str(tmp_path / "out"))
    (tmp_path / "out/day=2/b.parquet").unlink()
    with pytest.raises(UserError, match=r"day=2/b.parquet of .* cannot be read"):
        batches(opened)
