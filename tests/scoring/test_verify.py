"""Verification finds each way in which an output can be wrong."""

import json
import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentiment_core.data import shards
from sentiment_core.errors import UserError
from sentiment_core.scoring import outputs
from sentiment_core.scoring.outputs import Run
from sentiment_core.scoring.rescore import PART_ROWS, sample
from sentiment_core.scoring.verify import VerifySettings, verify

LABELS = ["no", "yes"]


@pytest.fixture
def folders(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A corpus of a small and a larger shard and its output, written without a model."""
    monkeypatch.setattr(shards, "UNIT_ROWS", 10)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, rows in (("a", 5), ("b", 25)):
        pq.write_table(pa.table({"text": ["x"] * rows}), source / f"{name}.parquet")
    for unit in shards.plan(str(source), "text", None, ()).units:
        write_output(out, unit)
    return source, out


def write_output(out, unit, rows=None):
    rows = unit.rows if rows is None else rows
    status = np.zeros(rows, np.int8)
    probabilities = np.full((rows, 2), 0.5, np.float32)
    kept = pa.table({})
    shown = replace(unit, stop=unit.start + rows)
    table = outputs.make_table(shown, kept, status, probabilities, LABELS, False)
    outputs.commit(str(out), RUN, unit, table, outputs.count(status, probabilities, LABELS, np.ones(rows, int), 0, []))


def look(folders):
    return verify(VerifySettings(input=str(folders[0]), out=str(folders[1])))


def test_a_whole_output_is_whole(folders):
    found = look(folders)
    assert (found.exit_code, found.rows_in, found.rows_out) == (0, 30, 30)
    assert "every input row is scored exactly once" in found.report()


def test_missing_units_and_shards_are_found(folders):
    parts = sorted(folders[1].glob("b.rows-*"))
    parts[1].unlink()
    (folders[1] / "a.parquet").unlink()
    found = look(folders)
    assert found.exit_code == 1
    assert len(found.missing) == 2
    assert "a.parquet: all 5 rows" in found.missing[0]
    assert "b.parquet: rows 8 to 15" in found.missing[1]
    assert "NOT every input row" in found.report()


def test_a_doubled_unit_is_found(folders):
    part = sorted(folders[1].glob("b.rows-*"))[0]
    shutil.copy(part, part.with_name("copy.parquet"))
    found = look(folders)
    assert (found.exit_code, found.missing) == (1, [])
    assert "rows 0 to 7, again in" in found.doubled[0]


def test_changed_and_vanished_inputs_are_found(folders):
    pq.write_table(pa.table({"text": ["y"] * 5}), folders[0] / "a.parquet")
    (folders[0] / "b.parquet").unlink()
    found = look(folders)
    assert found.exit_code == 1
    assert "a.parquet has changed" in found.stale[0]
    assert len(found.stale) == 1
    assert sum("b.parquet is gone" in text for text in found.orphaned) == 3


def test_an_input_that_changes_meanwhile_is_judged_as_it_was_planned(folders):
    planned = shards.plan(str(folders[0]), "text", None, ())
    pq.write_table(pa.table({"text": ["x"] * 3}), folders[0] / "c.parquet")
    pq.write_table(pa.table({"text": ["y"] * 5}), folders[0] / "a.parquet")
    (folders[0] / "b.parquet").unlink()
    settings = VerifySettings(input=str(folders[0]), out=str(folders[1]))
    found = verify(settings, planned=planned)
    assert (found.exit_code, found.rows_in, found.rows_out) == (0, 30, 30)
    sorted(folders[1].glob("b.rows-*"))[2].unlink()
    assert verify(settings, planned=planned).missing == ["b.parquet: rows 16 to 24"]
    limited = shards.limit_rows(planned, 9)  # the first unit of b is cut
    assert "it holds rows from 4 on" in verify(settings, planned=limited).stale[0]


def test_damaged_outputs_are_found(folders):
    unit = shards.plan(str(folders[0]), "text", None, ()).units[0]
    write_output(folders[1], unit, rows=4)
    assert "its rows are not 0 to 4 in order" in look(folders).damaged[0]


def test_foreign_and_truncated_files_are_found(folders):
    pq.write_table(pa.table({"x": [1]}), folders[1] / "theirs.parquet")
    content = (folders[1] / "a.parquet").read_bytes()
    (folders[1] / "a.parquet").write_bytes(content[: len(content) // 2])
    found = look(folders)
    assert found.exit_code == 1
    assert [text.split(":")[0] for text in found.foreign] == ["a.parquet", "theirs.parquet"]
    assert "a.parquet: all 5 rows" in found.missing[0]


def test_outputs_of_another_run_are_found(folders):
    (folders[1] / outputs.RUN_FILE).write_text(json.dumps(asdict(replace(RUN, bundle="other"))))
    found = look(folders)
    assert found.exit_code == 1
    assert len(found.stale) == 4
    assert "made by another bundle or settings" in found.stale[0]


def test_unreadable_inputs_alone_are_no_fault_of_the_output(folders):
    (folders[0] / "broken.parquet").write_bytes(b"broken")
    found = look(folders)
    assert found.exit_code == 3
    assert "broken.parquet" in found.unreadable[0]


def test_an_output_that_is_not_there_is_refused(folders):
    with pytest.raises(UserError, match=r"--out .* does not exist"):
        verify(VerifySettings(input=str(folders[0]), out=str(folders[1] / "nowhere")))


RUN = Run("in", "digest", "text", None, False, None, False, 0.0)
SCORES = np.array([[0.9, 0.1], [0.51, 0.49], [np.nan, np.nan]], np.float32)


def scored_rows(probabilities: np.ndarray, numbers=(1.0, float("nan"), None), min_confidence=0.0) -> pa.Table:
    unit = shards.Unit("a.parquet", 0, 3, 3, 1, 1, 1)
    kept = pa.table({"n": pa.array(numbers, pa.float64()), "nested": [[1.0], [float("nan")], None]})
    status = outputs.decided(np.array([0, 0, 3], np.int8), probabilities, min_confidence)
    return outputs.make_table(unit, kept, status, probabilities, LABELS, True)


@pytest.mark.parametrize(
    ("now", "numbers", "words"),
    [
        (SCORES, (1.0, float("nan"), None), ""),
        (SCORES + np.float32(0.015), (1.0, float("nan"), None), ""),
        (SCORES[:, ::-1] * [[0], [1], [1]] + SCORES * [[1], [0], [0]], (1.0, float("nan"), None), ""),  # nearly a tie
        (SCORES[:, ::-1], (1.0, float("nan"), None), "1 of 3 rows are scored otherwise; row 0: no with 0.8"),
        (SCORES + np.array([[0], [0.03], [0]]), (1.0, float("nan"), None), "row 1: no with 0.5"),
        (SCORES[[0, 2, 2]], (1.0, float("nan"), None), "row 1: no with 0.5"),
        (SCORES[[0, 1, 1]], (1.0, float("nan"), None), "row 2: None with None, expected None with 0.5"),
        (SCORES, (1.0, 2.0, None), "n differs in 1 of 3 rows; row 1: nan, expected 2.0"),
    ],
)
def test_rows_are_the_same_but_for_what_hardware_changes(now, numbers, words):
    now = now.astype(np.float32)

    def look():
        outputs.check_same(scored_rows(SCORES), scored_rows(now, numbers), now, LABELS, RUN)

    if not words:
        look()
    else:
        with pytest.raises(outputs.Different, match=words):
            look()


def test_whether_a_row_abstains_may_change_only_near_the_limit():
    def look(before: np.ndarray, now: np.ndarray, limit: float) -> None:
        before, now = before.astype(np.float32), now.astype(np.float32)
        found, expected = scored_rows(before, min_confidence=limit), scored_rows(now, min_confidence=limit)
        outputs.check_same(found, expected, now, LABELS, replace(RUN, min_confidence=limit))

    assert scored_rows(SCORES, min_confidence=0.6)["status"].to_pylist() == ["ok", "abstained", "null"]
    look(SCORES, SCORES, 0.6)
    look(SCORES, SCORES + np.float32(0.01), 0.515)
    with pytest.raises(outputs.Different, match=r"1 of 3 rows are scored otherwise; row 1: None with 0\.5"):
        look(SCORES, SCORES + np.array([[0], [0.2], [0]]), 0.6)
    with pytest.raises(outputs.Different, match=r"row 1: no with 0\.5"):
        outputs.check_same(
            scored_rows(SCORES),
            scored_rows(SCORES, min_confidence=0.6),
            SCORES,
            LABELS,
            replace(RUN, min_confidence=0.6),
        )


def test_outputs_beyond_what_was_asked_for_are_found(folders):
    found = verify(VerifySettings(input=str(folders[0] / "b.parquet"), out=str(folders[1])))
    assert "a.parquet is gone" in found.orphaned[0]
    shutil.copytree(folders[1], f"{folders[1]}-limit-12")
    found = verify(VerifySettings(input=str(folders[0]), out=str(folders[1]), limit=12))
    assert found.exit_code == 1
    assert any("rows-000000000016-000000000025.parquet: it holds rows from 7 on" in text for text in found.stale)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("status", pa.array([1, 2, 3, 4, 5]), "cannot be checked"),
        ("status", pa.array(["ok", "ok", "ok", "ok", "well"]), "status is not as its footer counts it"),
        ("label", pa.array(["no"] * 4 + ["maybe"]).dictionary_encode(), "label is not as its footer counts it"),
        ("confidence", pa.array([0.5] * 4 + [float("nan")], pa.float32()), "a confidence is not between 0 and 1"),
    ],
)
def test_values_that_no_score_has_are_found(folders, column, values, words):
    path = folders[1] / "a.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.set_column(table.column_names.index(column), column, values), path)
    assert words in look(folders).damaged[0]


@pytest.mark.parametrize(
    "origin",
    [
        *(b"[1]", b"{}", b'{"run": 1, "unit": {"start": 0}}', b"no JSON"),
        b'{"run": {}, "unit": {"start": 0, "stop": 5, "size": 1, "mtime_ns": 1}}',
        b'{"run": {}, "unit": {"start": 0, "stop": 5, "size": 1, "mtime_ns": 1, "source": [1]}}',
    ],
)
def test_footers_of_another_shape_are_foreign(folders, origin):
    path = folders[1] / "a.parquet"
    table = pq.ParquetFile(path).read()
    metadata = table.schema.metadata | {outputs.ORIGIN_KEY: origin}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    (folders[1] / outputs.RUN_FILE).write_text("[]")
    found = look(folders)
    assert (found.exit_code, len(found.foreign)) == (1, 1)
    assert "a.parquet: all 5 rows" in found.missing[0]


@given(rows=st.lists(st.integers(0, 200), max_size=20), wanted=st.integers(1, 500))
def test_a_sample_is_of_parts_that_do_not_overlap(rows, wanted):
    units = [shards.Unit(f"{i}.parquet", 7, 7 + n, n, 1, 1, 10 * n) for i, n in enumerate(rows)]
    parts = sample(units, wanted, random.Random(0))
    taken = [(unit.source, row) for part, unit in parts.items() for row in range(part.start, part.stop)]
    assert len(set(taken)) == len(taken)
    assert all(unit.start <= part.start < part.stop <= unit.stop for part, unit in parts.items())
    assert min(wanted, sum(rows)) <= len(taken) <= wanted + PART_ROWS
