"""Outputs that new ones replace go at the end of a run: a reader may see a row twice, and never misses one."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.data import shards
from sentiment_core.runtime import storage
from sentiment_core.scoring import candidates, job, outputs, tidy
from sentiment_core.scoring.job import ScoreResult, score
from sentiment_core.scoring.tally import Tally
from sentiment_core.scoring.verify import VerifySettings, verify
from sentiment_core.text import distinct_sketch
from tests.scoring.runs import StreamInProcess, plan_folder, score_folder, write_shard


@pytest.fixture(autouse=True)
def small_units(monkeypatch) -> None:
    monkeypatch.setattr(shards, "UNIT_ROWS", 10)


def write(root: Path, name: str, *texts: str) -> None:
    write_shard(root, name, {"text": [*texts]})


def names(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.parquet"))


def hashes(out: Path) -> set[bytes]:
    """Return the hashes of all texts that a reader finds."""
    return {text for path in out.rglob("*.parquet") for text in pq.ParquetFile(path).read()["text_hash"].to_pylist()}


def check(root: Path, out: Path) -> Any:
    return verify(VerifySettings(input=str(root), out=str(out)))


class Killed(BaseException):
    """The process would have ended."""


@contextlib.contextmanager
def killed_before_deleting() -> Iterator[None]:
    """Kill the run in the block once everything is scored."""

    def kill(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "delete_replaced", kill)
        with pytest.raises(Killed):
            yield


def grow_and_compact(root: Path) -> None:
    """Change a shard of one unit into one of two, and put the rows of two others into one."""
    write(root, "changed.parquet", *(f"changed {i}" for i in range(15)))
    for name in ("a", "b"):
        (root / f"{name}.parquet").unlink()
    write(root, "both.parquet", "a 0", "a 1", "b 0", "b 1")


@pytest.fixture
def changed(in_process, tiny_bundle, root, out) -> Path:
    """A scored folder whose input has changed since: one shard is cut into two units now, two became one."""
    write(root, "changed.parquet", *(f"changed {i}" for i in range(9)))
    write(root, "same.parquet", "same")
    for name in ("a", "b"):
        write(root, f"{name}.parquet", *(f"{name} {i}" for i in range(2)))
    assert score_folder(tiny_bundle, root, out).summary["complete"]
    grow_and_compact(root)
    return out


def test_nothing_is_deleted_before_what_replaces_it_is_there(tiny_bundle, root, changed, monkeypatch):
    before, seen = hashes(changed), []
    success = changed / outputs.SUCCESS_FILE
    assert success.exists()
    commit, delete = outputs.commit, storage.delete_file

    def note_commit(*arguments: Any) -> None:
        assert before <= hashes(changed)
        assert not success.exists()
        commit(*arguments)
        seen.append("commit")

    def note_deletion(path: str) -> None:
        if path.endswith(".parquet"):
            seen.append("delete")
        delete(path)
        assert before <= hashes(changed)

    monkeypatch.setattr(outputs, "commit", note_commit)
    monkeypatch.setattr(tidy.storage, "delete_file", note_deletion)
    result = score_folder(tiny_bundle, root, changed)
    assert seen == ["commit"] * 3 + ["delete"] * 3
    assert names(changed) == [
        "both.parquet",
        "changed.rows-000000000000-000000000007.parquet",
        "changed.rows-000000000007-000000000015.parquet",
        "same.parquet",
    ]
    summary = result.summary
    assert (summary["complete"], summary["orphans"], summary["rows"], summary["units"]) == (True, 0, 20, 4)
    assert (summary["run"]["rows"], summary["run"]["reused_rows"], summary["run"]["deleted_outputs"]) == (6, 13, 3)
    assert success.exists()
    assert check(root, changed).exit_code == 0


def test_a_run_that_is_killed_before_it_deletes_is_finished_by_the_next(tiny_bundle, root, changed):
    before = hashes(changed)
    with killed_before_deleting():
        score_folder(tiny_bundle, root, changed)
    assert before <= hashes(changed)
    assert not (changed / outputs.SUCCESS_FILE).exists()
    findings = check(root, changed)
    assert (findings.exit_code, findings.missing, findings.doubled) == (1, [], [])
    assert findings.stale == [
        "changed.parquet: its input changed.parquet has changed since it was scored; the next sentiment-core score "
        "deletes it"
    ]
    assert [text.split(":")[0] for text in findings.orphaned] == ["a.parquet", "b.parquet"]
    assert all(
        "the next sentiment-core score deletes it if all of its rows stand" in text for text in findings.orphaned
    )
    result = score_folder(tiny_bundle, root, changed)
    assert (result.summary["run"]["rows"], result.summary["run"]["deleted_outputs"]) == (0, 3)
    assert (result.summary["complete"], result.summary["rows"]) == (True, 20)
    assert check(root, changed).exit_code == 0


def test_a_kill_between_two_deletions_loses_nothing(tiny_bundle, root, changed, monkeypatch):
    delete = storage.delete_file

    def delete_one(path: str) -> None:
        if path.endswith("/b.parquet"):
            raise Killed
        delete(path)

    before = hashes(changed)
    with monkeypatch.context() as patch:
        patch.setattr(tidy.storage, "delete_file", delete_one)
        with pytest.raises(Killed):
            score_folder(tiny_bundle, root, changed)
    assert before <= hashes(changed)
    assert score_folder(tiny_bundle, root, changed).summary["complete"]
    assert check(root, changed).exit_code == 0


def test_a_run_that_ends_early_deletes_nothing(tiny_bundle, root, changed, monkeypatch):
    class Late(StreamInProcess):
        def run(self, kind: str, units: list, tally: Tally) -> None:
            super().run(kind, units, tally)
            tally.out_of_time = True

    before = names(changed)
    monkeypatch.setattr(job, "Stream", Late)
    result = score_folder(tiny_bundle, root, changed)
    assert set(before) < set(names(changed))
    assert (result.summary["complete"], result.summary["orphans"]) == (False, 2)
    monkeypatch.setattr(job, "Stream", StreamInProcess)
    assert score_folder(tiny_bundle, root, changed).summary["complete"]


def test_a_shard_that_fails_keeps_its_outputs_and_all_of_gone_shards(tiny_bundle, root, changed, monkeypatch):
    write(root, "same.parquet", *(f"same {i}" for i in range(12)))
    plan = plan_folder(tiny_bundle, root, changed)
    write(root, "same.parquet", "changed while it was planned")
    result = score(plan)
    assert result.exit_code == 3
    left = names(changed)
    assert {"same.parquet", "a.parquet", "b.parquet", "both.parquet"} <= set(left)
    assert "changed.parquet" not in left  # another shard's failure does not double its rows for ever
    assert (result.summary["complete"], result.summary["orphans"]) == (False, 2)
    result = score_folder(tiny_bundle, root, changed)
    assert (result.summary["complete"], result.summary["orphans"]) == (True, 0)
    assert check(root, changed).exit_code == 0


def test_outputs_of_gone_shards_with_other_rows_stay_without_prune(tiny_bundle, root, changed):
    (root / "both.parquet").unlink()
    result = score_folder(tiny_bundle, root, changed)
    assert (result.summary["orphans"], result.summary["complete"]) == (2, False)
    assert "2 outputs whose input file is gone were kept; --prune deletes them" in result.report()
    assert (
        "a.parquet: its input a.parquet is gone; sentiment-core score --prune deletes it"
        in check(root, changed).orphaned
    )
    result = score_folder(tiny_bundle, root, changed, prune=True)
    assert (result.summary["orphans"], result.summary["complete"], result.summary["run"]["rows"]) == (0, True, 0)


def test_an_input_that_says_what_is_gone_needs_no_prune(tiny_bundle, root, changed):
    """As a table does."""
    (root / "both.parquet").unlink()
    plan = replace(plan_folder(tiny_bundle, root, changed), replaces_gone=True)
    assert "outputs of shards that are gone, to be deleted: 2" in plan.describe()
    partial = replace(plan, units_to_score=plan.units_to_score[:1])
    assert score(partial).summary["orphans"] == 2  # the rows may stand in what is left
    plan = replace(plan_folder(tiny_bundle, root, changed), replaces_gone=True)
    result = score(plan)
    assert (result.summary["orphans"], result.summary["complete"]) == (0, True)


def test_a_file_that_cannot_be_deleted_stops_the_run_with_a_sentence(tiny_bundle, root, changed, monkeypatch):
    delete = storage.delete_file

    def refuse(path: str) -> None:
        if path.endswith("/a.parquet"):
            raise PermissionError("not yours")
        delete(path)

    monkeypatch.setattr(tidy.storage, "delete_file", refuse)
    result = score_folder(tiny_bundle, root, changed)
    assert result.exit_code == 1
    assert f"old files in --out {changed} cannot be deleted: not yours; check who may write there" in result.report()
    assert not (changed / outputs.SUCCESS_FILE).exists()
    assert result.summary["complete"] is False
    assert json.loads((changed / outputs.SUMMARY_FILE).read_text())["stopped"].startswith("old files in --out")


def test_an_output_that_another_run_has_made_since_is_left_alone(tiny_bundle, root, changed, monkeypatch):
    plan = plan_folder(tiny_bundle, root, changed)
    write(root, "changed.parquet", "one unit again")
    other: ScoreResult = score_folder(tiny_bundle, root, changed)
    assert other.summary["complete"]
    result = score(replace(plan, units_to_score=[]))
    assert "changed.parquet" in names(changed)
    assert result.exit_code == 0
    assert check(root, changed).exit_code == 0


def test_new_outputs_beside_stale_ones_are_not_called_doubled(tiny_bundle, root, changed):
    with killed_before_deleting():
        score_folder(tiny_bundle, root, changed)
    (changed / "changed.rows-000000000007-000000000015.parquet").unlink()
    findings = check(root, changed)
    assert findings.doubled == []
    assert findings.missing == ["changed.parquet: rows 7 to 14"]
    assert "the next sentiment-core score scores the input again and replaces it" in findings.stale[0]


def test_rows_that_move_between_files_of_the_same_names_are_never_missing(
    in_process, tiny_bundle, root, out, monkeypatch
):
    write(root, "a.parquet", "one", "two")
    write(root, "b.parquet", "three", "four")
    score_folder(tiny_bundle, root, out)
    before = hashes(out)
    write(root, "a.parquet", "three", "two", "five")
    write(root, "b.parquet", "one", "four")
    seen = []
    commit = outputs.commit

    def commit_and_read(*arguments: Any) -> None:
        commit(*arguments)
        seen.append(before <= hashes(out))

    monkeypatch.setattr(outputs, "commit", commit_and_read)
    with killed_before_deleting():
        score_folder(tiny_bundle, root, out)
    assert seen == [True, True]
    assert len(names(out)) == 4
    assert check(root, out).exit_code == 1
    again = score_folder(tiny_bundle, root, out)
    assert (again.summary["run"]["rows"], again.summary["complete"]) == (0, True)
    assert names(out) == ["a.parquet", "b.parquet"]
    assert check(root, out).exit_code == 0


def test_what_is_set_aside_goes_with_the_run_that_set_it_aside(in_process, tiny_bundle, root, out):
    write(root, "a.parquet", "one", "two")
    write(root, "b.parquet", "three")
    score_folder(tiny_bundle, root, out)
    write(root, "a.parquet", "three")
    write(root, "b.parquet", "one", "two")
    result = score_folder(tiny_bundle, root, out)
    assert (result.summary["run"]["rows"], result.summary["complete"]) == (0, True)
    assert names(out) == ["a.parquet", "b.parquet"]


def test_rows_that_no_sketch_shows_are_found_again(in_process, tiny_bundle, root, out, monkeypatch):
    """A few of many rows that went to another file than the rest."""
    monkeypatch.setattr(distinct_sketch, "SIZE", 2)
    monkeypatch.setattr(candidates, "UNSURE_CANDIDATES", 0)
    texts = sorted((f"text {i}" for i in range(10)), key=distinct_sketch.hash_text)
    write(root, "before.parquet", texts[9], "before")  # which is older: no row has moved there
    score_folder(tiny_bundle, root, out)
    write(root, "old.parquet", *texts)
    score_folder(tiny_bundle, root, out)
    (root / "old.parquet").unlink()
    write(root, "most.parquet", *texts[:8], "new 1")
    write(root, "few.parquet", texts[8], "new 2")
    score_folder(tiny_bundle, root, out)
    assert "old.parquet" in names(out)  # one row is nowhere else
    write(root, "last.parquet", texts[9], "new 3")
    result = score_folder(tiny_bundle, root, out)
    assert names(out) == ["before.parquet", "few.parquet", "last.parquet", "most.parquet"]
    assert result.summary["complete"]
    assert check(root, out).exit_code == 0


def test_a_text_with_another_id_is_another_row(in_process, tiny_bundle, root, out):
    """The same short text came on another day, and the file of before is gone."""
    write_shard(root, "monday.parquet", {"id": [1, 2], "text": ["ok", "fine"], "tags": [["a"], None]})
    score_folder(tiny_bundle, root, out)
    (root / "monday.parquet").unlink()
    write_shard(root, "tuesday.parquet", {"id": [7, 2], "text": ["ok", "fine"], "tags": [["a"], None]})
    result = score_folder(tiny_bundle, root, out)
    assert (result.summary["run"]["reused_rows"], result.summary["run"]["deleted_outputs"]) == (2, 0)
    assert names(out) == ["monday.parquet", "tuesday.parquet"]
    # the row itself comes back, with a column more
    write_shard(root, "late.parquet", {"id": [1], "text": ["ok"], "tags": [["a"]], "new": [0.5]})
    score_folder(tiny_bundle, root, out)
    assert names(out) == ["late.parquet", "tuesday.parquet"]


@pytest.mark.parametrize(
    ("before", "after", "is_same"),
    [
        (pa.array([1, 2]), pa.array([1.0, 2.0, None]), True),
        (pa.array([1, 2]), pa.array([1.0, 3.0, float("nan")]), False),
        (pa.nulls(2), pa.array([None, None, 0.5]), True),
        (pa.nulls(2), pa.array([0.5, None, None]), False),
        (pa.array(["x", "y"]).dictionary_encode(), pa.array(["x", "y", "z"]), True),
        (pa.array([1, 2]), pa.array(["1", "2", "3"]), False),
        (pa.array([[1], None]), pa.array([[1], None, [2]]), True),
    ],
)
def test_rows_are_the_same_by_their_values_whatever_the_types(
    in_process, tiny_bundle, root, out, before, after, is_same
):
    """An output that holds none of the rows, and has other types, is looked at first."""
    write_shard(root, "old.parquet", {"text": ["one", "two"], "value": before})
    score_folder(tiny_bundle, root, out)
    (root / "old.parquet").unlink()
    write_shard(root, "a.parquet", {"text": ["one"], "value": [{"no": "number"}]})
    write_shard(root, "b.parquet", {"text": ["one", "two", "three"], "value": after})
    score_folder(tiny_bundle, root, out)
    assert ("old.parquet" in names(out)) == (not is_same)


def test_equal_rows_are_found_again_as_often_as_they_were_there(in_process, tiny_bundle, root, out):
    def rows(number: int) -> dict[str, list]:
        return {"id": [1] * number, "text": ["ok"] * number, "stars": [None] * number}

    write_shard(root, "a.parquet", rows(3))
    score_folder(tiny_bundle, root, out)
    (root / "a.parquet").unlink()
    write_shard(root, "b.parquet", rows(2))
    score_folder(tiny_bundle, root, out)
    assert names(out) == ["a.parquet", "b.parquet"]
    write_shard(root, "c.parquet", rows(1))
    score_folder(tiny_bundle, root, out)
    assert names(out) == ["b.parquet", "c.parquet"]


def test_a_run_after_one_that_died_between_copy_and_output_is_complete(in_process, tiny_bundle, root, out, monkeypatch):
    write(root, "a.parquet", "one", "two")
    write(root, "b.parquet", "three")
    score_folder(tiny_bundle, root, out)
    write(root, "a.parquet", "three")
    write(root, "b.parquet", "one", "two")

    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "commit", kill)
        with pytest.raises(Killed):
            score_folder(tiny_bundle, root, out)
    assert any(".replaced-" in name for name in names(out))
    result = score_folder(tiny_bundle, root, out)
    assert result.summary["complete"]
    assert (out / outputs.SUCCESS_FILE).exists()
    assert names(out) == ["a.parquet", "b.parquet"]


def test_a_row_that_moved_to_a_shard_that_cannot_be_read_is_not_lost(in_process, tiny_bundle, root, out):
    write(root, "a.parquet", "one", "two")
    write(root, "b.parquet", "three")
    score_folder(tiny_bundle, root, out)
    before = hashes(out)
    write(root, "a.parquet", "two")
    (root / "b.parquet").write_bytes(b"PAR1 half of it is there")
    assert not score_folder(tiny_bundle, root, out).summary["complete"]
    assert hashes(out) == before
    write(root, "b.parquet", "three", "one")
    assert score_folder(tiny_bundle, root, out).summary["complete"]
    assert (hashes(out), names(out)) == (before, ["a.parquet", "b.parquet"])
