"""Verification finds each way in which an output can be wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.data import shards
from sentiment_core.data.shards import Unit
from sentiment_core.errors import UserError
from sentiment_core.model.objective import SingleLabel
from sentiment_core.scoring import outputs
from sentiment_core.scoring.records import Run, RunFile
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.scoring.verify import Findings, VerifySettings, verify

LABELS = ["no", "yes"]
RUN = Run("in", "digest")


@pytest.fixture
def folders(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A corpus of a small and a larger shard and its output, written without a model."""
    monkeypatch.setattr(shards, "UNIT_ROWS", 10)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, rows in (("a", 5), ("b", 25)):
        pq.write_table(pa.table({"text": ["x"] * rows}), source / f"{name}.parquet")
    for unit in shards.plan(str(source), ["text"], None, ()).units:
        write_output(out, unit)
    return source, out


def write_output(out: Path, unit: Unit, number_of_rows: int | None = None) -> None:
    """Write a unit's output with so many rows, as its footer says."""
    n = unit.rows if number_of_rows is None else number_of_rows
    rows = ScoredRows(SingleLabel(), LABELS, np.zeros(n, np.int8), np.full((n, 2), 0.5, np.float32), np.ones(n, int))
    table = outputs.scored_table(replace(unit, stop=unit.start + n), pa.table({}), {"": rows}, RUN)
    outputs.commit(str(out), RUN, unit, table, PassCounts.zero({"": LABELS}).add_unit({"": rows}))


def verify_folders(folders: tuple[Path, Path]) -> Findings:
    return verify(VerifySettings(input=str(folders[0]), out=str(folders[1])))


def test_a_complete_output_has_no_findings(folders):
    findings = verify_folders(folders)
    assert (findings.exit_code, findings.rows_in, findings.rows_out) == (0, 30, 30)
    assert "every input row is scored exactly once" in findings.report()


def test_missing_units_and_shards_are_found(folders):
    sorted(folders[1].glob("b.rows-*"))[1].unlink()
    (folders[1] / "a.parquet").unlink()
    findings = verify_folders(folders)
    assert findings.exit_code == 1
    assert len(findings.missing) == 2
    assert "a.parquet: all 5 rows" in findings.missing[0]
    assert "b.parquet: rows 8 to 15" in findings.missing[1]
    assert "NOT every input row" in findings.report()


def test_a_doubled_unit_is_found(folders):
    part = sorted(folders[1].glob("b.rows-*"))[0]
    shutil.copy(part, part.with_name("copy.parquet"))
    findings = verify_folders(folders)
    assert (findings.exit_code, findings.missing) == (1, [])
    assert "rows 0 to 7, again in" in findings.doubled[0]


def test_changed_and_vanished_inputs_are_found(folders):
    pq.write_table(pa.table({"text": ["y"] * 5}), folders[0] / "a.parquet")
    (folders[0] / "b.parquet").unlink()
    findings = verify_folders(folders)
    assert findings.exit_code == 1
    assert "a.parquet has changed" in findings.stale[0]
    assert len(findings.stale) == 1
    assert sum("b.parquet is gone" in text for text in findings.orphaned) == 3


def test_an_input_that_changes_meanwhile_is_judged_as_it_was_planned(folders):
    planned = shards.plan(str(folders[0]), ["text"], None, ())
    pq.write_table(pa.table({"text": ["x"] * 3}), folders[0] / "c.parquet")
    pq.write_table(pa.table({"text": ["y"] * 5}), folders[0] / "a.parquet")
    (folders[0] / "b.parquet").unlink()
    settings = VerifySettings(input=str(folders[0]), out=str(folders[1]))
    findings = verify(settings, planned=planned)
    assert (findings.exit_code, findings.rows_in, findings.rows_out) == (0, 30, 30)
    sorted(folders[1].glob("b.rows-*"))[2].unlink()
    assert verify(settings, planned=planned).missing == ["b.parquet: rows 16 to 24"]
    limited = shards.limit_rows(planned, 9)  # the first unit of b is cut
    assert "holds rows from 4 on" in verify(settings, planned=limited).stale[0]


def test_outputs_with_other_rows_than_their_footer_says_are_found(folders):
    unit = shards.plan(str(folders[0]), ["text"], None, ()).units[0]
    write_output(folders[1], unit, number_of_rows=4)
    assert "its rows are not 0 to 4 in order" in verify_folders(folders).damaged[0]


def test_foreign_and_truncated_files_are_found(folders):
    pq.write_table(pa.table({"x": [1]}), folders[1] / "theirs.parquet")
    content = (folders[1] / "a.parquet").read_bytes()
    (folders[1] / "a.parquet").write_bytes(content[: len(content) // 2])
    findings = verify_folders(folders)
    assert findings.exit_code == 1
    assert [text.split(":")[0] for text in findings.foreign] == ["a.parquet", "theirs.parquet"]
    assert "a.parquet: all 5 rows" in findings.missing[0]


def test_an_output_deleted_after_its_listing_is_missing_and_a_link_to_nothing_foreign(folders, monkeypatch):
    (folders[1] / "link.parquet").symlink_to("../nowhere.parquet")
    read_metadata = shards.read_metadata

    def read(root, path, size=None):
        if root == str(folders[1]):
            (folders[1] / "a.parquet").unlink(missing_ok=True)  # by another run
        return read_metadata(root, path, size)

    monkeypatch.setattr(shards, "read_metadata", read)
    findings = verify_folders(folders)
    assert "a.parquet: all 5 rows" in findings.missing[0]
    assert [text.split(":")[0] for text in findings.foreign] == ["link.parquet"]


def test_outputs_of_another_run_are_found(folders):
    outputs.write_run_file(str(folders[1]), RunFile(replace(RUN, bundle="other")))
    findings = verify_folders(folders)
    assert findings.exit_code == 1
    assert len(findings.stale) == 4
    assert "made with another bundle or settings" in findings.stale[0]


def test_unreadable_inputs_alone_are_no_fault_of_the_output(folders):
    (folders[0] / "broken.parquet").write_bytes(b"broken")
    findings = verify_folders(folders)
    assert findings.exit_code == 3
    assert "broken.parquet" in findings.unreadable[0]


def test_an_output_that_does_not_exist_is_refused(folders):
    with pytest.raises(UserError, match=r"--out .* does not exist"):
        verify(VerifySettings(input=str(folders[0]), out=str(folders[1] / "nowhere")))


def test_outputs_beyond_the_requested_input_are_found(folders):
    findings = verify(VerifySettings(input=str(folders[0] / "b.parquet"), out=str(folders[1])))
    assert "a.parquet is gone" in findings.orphaned[0]
    shutil.copytree(folders[1], f"{folders[1]}-limit-12")
    findings = verify(VerifySettings(input=str(folders[0]), out=str(folders[1]), limit=12))
    assert findings.exit_code == 1
    assert any("rows-000000000016-000000000025.parquet: holds rows from 7 on" in text for text in findings.stale)


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
    assert words in verify_folders(folders).damaged[0]


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
    findings = verify_folders(folders)
    assert (findings.exit_code, len(findings.foreign)) == (1, 1)
    assert "a.parquet: all 5 rows" in findings.missing[0]


def test_findings_are_written_for_programs(folders, tmp_path):
    (folders[1] / "a.parquet").unlink()
    settings = {"input": str(folders[0]), "out": str(folders[1])}
    findings = verify(VerifySettings(**settings, report=str(tmp_path / "r" / "findings.json")))
    content = json.loads((tmp_path / "r" / "findings.json").read_text())
    assert content == findings.to_json()
    assert (content["exit_code"], content["rows_in"], content["rows_out"]) == (1, 30, 25)
    assert {kind: count for kind, count in content["counts"].items() if count} == {"missing": 1}
    assert content["findings"]["missing"] == ["a.parquet: all 5 rows"]
    with pytest.raises(UserError, match=r"--report .* is a folder; give a file in it"):
        verify(VerifySettings(**settings, report=str(tmp_path)))
