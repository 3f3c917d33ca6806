"""Reruns: only what is missing is scored; what changed is scored again; other settings are refused."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from sentiment_core.data import shards
from sentiment_core.data.shards import Corpus
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.scoring import outputs
from sentiment_core.scoring.plan import check_output_folder
from sentiment_core.scoring.records import FORMAT_VERSION, Run, RunFile
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.scoring.runs import plan_folder, score_folder, write_shard


def test_a_rerun_scores_only_what_is_missing(in_process, tiny_bundle, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    for times, name in enumerate("abc"):
        write_shard(source, f"{name}.parquet", {"text": [f"{name} {'good ' * (times * i)}" for i in range(20)]})
    first = score_folder(tiny_bundle, source, out)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.parquet")}
    (out / "b.parquet").unlink()
    write_shard(source, "d.parquet", {"text": ["new"]})
    again = score_folder(tiny_bundle, source, out)
    after = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.glob("*.parquet")}
    assert {name for name in after if after[name] != before.get(name)} == {"b.parquet", "d.parquet"}
    assert after["b.parquet"][1] == before["b.parquet"][1]  # the same bytes, though computed beside other rows
    assert (first.summary["rows"], again.summary["rows"], again.summary["run"]["rows"]) == (60, 61, 21)
    assert sum(again.summary["labels"].values()) == 61


def test_a_rerun_deletes_temporary_files_that_are_old(in_process, tiny_bundle, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_shard(source, "a.parquet", {"text": ["good"]})
    score_folder(tiny_bundle, source, out)
    abandoned, in_use = out / "k=1" / f"{storage.TEMPORARY_PREFIX}old", out / f"{storage.TEMPORARY_PREFIX}new"
    abandoned.parent.mkdir()
    for path in (abandoned, in_use):
        path.write_text("half a file")
    os.utime(abandoned, (0, 0))
    again = score_folder(tiny_bundle, source, out)
    assert (again.exit_code, again.summary["run"]["rows"], again.summary["rows"]) == (0, 0, 1)
    assert (abandoned.exists(), in_use.exists()) == (False, True)


def test_shards_that_change_break_or_vanish(in_process, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "UNIT_ROWS", 10)
    root, out = tmp_path / "in", tmp_path / "out"

    def scored_files() -> set[str]:
        return {path.name[:5] for path in out.rglob("*.parquet")}

    write_shard(root, "changed.parquet", {"text": [f"old {i}" for i in range(25)]})
    for name in ("good", "k=1/gone", "breaks"):
        write_shard(root, f"{name}.parquet", {"text": [f"text of {name}"] * 5})
    (root / "no.parquet").write_bytes(b"no Parquet")
    content = (root / "good.parquet").read_bytes()
    (root / "short.parquet").write_bytes(content[: len(content) // 2])
    damaged = bytearray(content)
    damaged[20:60] = os.urandom(40)  # the footer is intact, a page is not
    (root / "damaged.parquet").write_bytes(damaged)
    result = score_folder(tiny_bundle, root, out)
    assert result.exit_code == 3
    failed = result.summary["failed_shards"]
    assert {shard["source"] for shard in failed} == {"no.parquet", "short.parquet", "damaged.parquet"}
    assert all(shard["reason"] for shard in failed)
    assert json.loads((out / outputs.SUMMARY_FILE).read_text())["rows"] == 40
    assert scored_files() == {"chang", "good.", "gone.", "break"}
    settings = VerifySettings(input=str(root), out=str(out))
    findings = verify(settings)
    assert (findings.exit_code, findings.missing) == (3, [])
    assert sorted(line.partition(":")[0] for line in findings.unreadable) == [
        "damaged.parquet", "no.parquet", "short.parquet",
    ]  # fmt: skip
    good = next(out.glob("good.*"))  # what can be read is missing, whatever the summary says
    kept = good.read_bytes()
    good.unlink()
    summary = out / outputs.SUMMARY_FILE
    summary.write_text(summary.read_text().replace('"source": "no.parquet"', '"source": "good.parquet"'))
    findings = verify(settings)
    assert findings.exit_code == 1
    assert [line.partition(":")[0] for line in findings.missing] == ["good.parquet"]
    good.write_bytes(kept)

    write_shard(root, "changed.parquet", {"text": [f"new {i}" for i in range(12)]})
    (root / "k=1" / "gone.parquet").unlink()
    (root / "breaks.parquet").write_bytes(b"broken, not gone")
    (root / "damaged.parquet").unlink()
    findings = verify(settings)
    assert findings.exit_code == 1
    assert any("changed.parquet has changed" in text for text in findings.stale)
    remedy = "k=1/gone.parquet is gone; sentiment-core score --prune deletes it"
    assert any(remedy in text for text in findings.orphaned)
    result = score_folder(tiny_bundle, root, out)
    assert "1 outputs whose input file is gone were kept; --prune deletes them" in result.report()
    assert scored_files() == {"chang", "good.", "gone.", "break"}
    result = score_folder(tiny_bundle, root, out, prune=True)
    assert "1 outputs whose input file is gone were kept; the next run without failures deletes them" in result.report()
    assert scored_files() == {"chang", "good.", "gone.", "break"}  # a shard that failed may hold these rows now
    findings = verify(settings)
    # the old rows of the changed shard may stand in a failed one now, so that their outputs stay
    assert (findings.exit_code, len(findings.stale), len(findings.orphaned)) == (1, 3, 1)
    assert len(findings.unreadable) == 3

    for name in ("no", "short"):
        (root / f"{name}.parquet").unlink()
    write_shard(root, "breaks.parquet", {"text": ["whole again"]})
    assert score_folder(tiny_bundle, root, out, prune=True).summary["orphans"] == 0
    assert scored_files() == {"chang", "good.", "break"}
    findings = verify(settings)
    assert (findings.exit_code, findings.stale, findings.rows_out) == (0, [], 18)


def test_another_bundle_or_setting_is_refused_with_the_difference(tiny_bundle, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write_shard(source, "a.parquet", {"text": ["good"], "body": ["bad"]})
    outputs.write_run_file(str(out), RunFile(plan_folder(tiny_bundle, source, out).run))
    with pytest.raises(UserError, match=r"other settings \(text_column: 'text' there, 'body' now\)"):
        plan_folder(tiny_bundle, source, out, text_column=("body",))
    with pytest.raises(UserError, match=r"other settings \(probabilities: False there, True now\)"):
        plan_folder(tiny_bundle, source, out, probabilities=True)


def run_at(root: object, **settings) -> Run:
    return Run(**{"input": str(root), "bundle": "digest"} | settings)


def corpus_at(path: Path) -> Corpus:
    """Return a corpus without shards."""
    return Corpus(str(path), [], [], [])


def test_a_higher_format_version_alone_refuses_nothing(tmp_path):
    run = run_at(tmp_path / "in")
    outputs.write_run_file(str(tmp_path / "out"), RunFile(replace(run, format_version=FORMAT_VERSION + 1)))
    assert check_output_folder(str(tmp_path / "out"), corpus_at(tmp_path / "in"), run) == []


def test_a_setting_that_an_old_run_file_does_not_have_has_its_default(tmp_path):
    run = run_at(tmp_path / "in")
    old = {name: value for name, value in RunFile(run).to_json().items() if name not in ("min_confidence", "int8")}
    storage.write_file(str(tmp_path / "out" / outputs.RUN_FILE), json.dumps(old).encode())
    assert check_output_folder(str(tmp_path / "out"), corpus_at(tmp_path / "in"), run) == []
    with pytest.raises(UserError, match=r"min_confidence: 0\.0 there, 0\.5 now"):
        check_output_folder(str(tmp_path / "out"), corpus_at(tmp_path / "in"), replace(run, min_confidence=0.5))


def test_outputs_of_replaced_bundles_stay(tmp_path):
    run = run_at(tmp_path / "in", bundle="new")
    run_file = RunFile(replace(run, bundle="old"), earlier_bundles=["oldest"])
    outputs.write_run_file(str(tmp_path / "out"), run_file)
    with pytest.raises(UserError, match="bundle: 'old' there, 'new' now"):
        check_output_folder(str(tmp_path / "out"), corpus_at(tmp_path / "in"), run)
    assert check_output_folder(
        str(tmp_path / "out"), corpus_at(tmp_path / "in"), run, lambda there: there.bundle == "old"
    ) == ["oldest", "old"]
