"""Scores of known texts are taken from earlier outputs; the output is that of a run that computes all rows."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.data import shards
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.scoring import reuse
from sentiment_core.scoring.job import ScoreResult, score
from sentiment_core.scoring.outputs import COUNTS_KEY, REPLACED_KEY
from sentiment_core.scoring.plan import plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.scoring.verify import VerifySettings, verify
from sentiment_core.text.text_hash import hash_texts
from tests.conftest import make_bundle, sentences
from tests.scoring.runs import plan_folder, read_scored, score_folder, write_shard

EXACT = {"precision": "float32"}  # so that rows near a tie get the same label beside other rows


def texts_of(name: str, rows: int) -> list[str]:
    """Return distinct texts; another name gives others."""
    return [f"{name} {i} {text}" for i, text in enumerate(sentences(rows, seed=len(name))["text"].to_pylist())]


def write(root: Path, name: str, texts: list[str | None]) -> None:
    write_shard(root, name, {"text": pa.array(texts, pa.string())})


def numbers(result: ScoreResult) -> tuple[int, int, int]:
    """Return the rows that a run computed and reused, and all rows."""
    run = result.summary["run"]
    return run["rows"], run["reused_rows"], result.summary["rows"]


def check_like_a_full_run(result: ScoreResult, model: object, root: Path, out: Path, **settings: Any) -> None:
    """Check files, columns, summary and verification against a run that computes all rows."""
    full = score_folder(model, root, out, **settings)
    assert numbers(full)[1] == 0
    prefix = settings.get("prefix", "")
    table, expected = read_scored(result.place, prefix), read_scored(full.place, prefix)
    assert table.schema == expected.schema
    for name in expected.column_names:
        if name.endswith(("confidence", "probabilities")):
            values, others = (np.array(t[name].drop_null().to_pylist(), float) for t in (table, expected))
            np.testing.assert_allclose(values, others, atol=1e-3)
            assert table[name].is_null().equals(expected[name].is_null())
        else:
            assert table[name].equals(expected[name]), name
    assert len(set(zip(*(table[prefix + name].to_pylist() for name in ("source", "row")), strict=True))) == len(table)
    models, others = (summary.get("models", {"": summary}) for summary in (result.summary, full.summary))
    for name, summary in models.items():
        for key in ("status", "labels"):
            assert summary[key] == others[name][key]
        assert sum(summary["confidence_histogram"]) == sum(others[name]["confidence_histogram"])
    assert result.summary["complete"] == full.summary["complete"] == (Path(result.place) / "_SUCCESS").exists()
    for again in ({}, {"full": True}):
        findings = verify(VerifySettings(input=str(root), out=result.place, **again))
        assert findings.exit_code == 0, findings.report()
    assert findings.compared == len(table)


def test_an_appended_shard_computes_only_its_new_rows(in_process, tiny_bundle, root, out, tmp_path):
    old, new = texts_of("old", 50), texts_of("new", 7)
    write(root, "a.parquet", old)
    write(root, "b.parquet", texts_of("other", 20))
    score_folder(tiny_bundle, root, out, **EXACT)
    before = (out / "b.parquet").read_bytes()
    write(root, "a.parquet", [*old, *new])
    result = score_folder(tiny_bundle, root, out, **EXACT)
    assert numbers(result) == (7, 50, 77)
    assert "; 50 rows reused" in result.report()
    assert (out / "b.parquet").read_bytes() == before
    check_like_a_full_run(result, tiny_bundle, root, tmp_path / "full", **EXACT)
    counts = PassCounts.from_json(json.loads(pq.read_metadata(out / "a.parquet").metadata[COUNTS_KEY]))
    assert (counts.rows, counts.reused_rows, counts.units) == (7, 50, 1)
    assert counts.all_rows.models[""].rows == 57
    assert (counts.models[""].tokens.value > 0, counts.reused[""].tokens.value) == (True, 0)


def test_a_rewritten_shard_of_several_units_reuses_whatever_order_its_rows_have(
    in_process, tiny_bundle, root, out, tmp_path, monkeypatch
):
    monkeypatch.setattr(shards, "UNIT_ROWS", 40)
    old = texts_of("old", 200)
    write(root, "a.parquet", old)
    score_folder(tiny_bundle, root, out, **EXACT)
    rng = np.random.default_rng(0)
    kept = [old[i] for i in rng.permutation(200)[:150]]
    write(root, "a.parquet", [*kept[:70], *texts_of("new", 10), *kept[70:]])
    result = score_folder(tiny_bundle, root, out, **EXACT)
    computed, reused, rows = numbers(result)
    assert (computed + reused, rows) == (160, 160)
    assert 10 <= computed <= 60  # outputs whose path a new one has may be replaced before others have read them
    check_like_a_full_run(result, tiny_bundle, root, tmp_path / "full", **EXACT)


def test_a_renamed_shard_is_not_computed_and_its_old_output_goes(in_process, tiny_bundle, root, out, tmp_path):
    write(root, "k=1/a.parquet", texts_of("a", 30))
    write(root, "k=1/b.parquet", texts_of("bb", 30))
    score_folder(tiny_bundle, root, out, **EXACT)
    (root / "k=2").mkdir()
    (root / "k=1" / "a.parquet").rename(root / "k=2" / "c.parquet")
    result = score_folder(tiny_bundle, root, out, **EXACT)
    assert numbers(result) == (0, 30, 60)
    assert (result.summary["orphans"], result.summary["run"]["deleted_outputs"]) == (0, 1)
    assert not (out / "k=1" / "a.parquet").exists()
    assert json.loads(pq.read_metadata(out / "k=2" / "c.parquet").metadata[REPLACED_KEY]) == ["k=1/a.parquet"]
    check_like_a_full_run(result, tiny_bundle, root, tmp_path / "full", **EXACT)


def test_ten_shards_compacted_into_one_with_another_name(in_process, tiny_bundle, root, out, tmp_path):
    parts = [texts_of("x" * (i + 1), 20) for i in range(10)]
    parts[3] = parts[4]  # the same rows twice
    for i, part in enumerate(parts):
        write(root, f"part-{i}-4f1a.parquet", [*part, "", None])
    score_folder(tiny_bundle, root, out, **EXACT)
    shutil.rmtree(root)
    everything = [text for part in parts for text in [*part, "", None]]
    write(root, "compacted-77b2.parquet", everything)
    result = score_folder(tiny_bundle, root, out, **EXACT)
    assert numbers(result) == (0, 220, 220)
    assert [path.name for path in out.rglob("*.parquet")] == ["compacted-77b2.parquet"]
    check_like_a_full_run(result, tiny_bundle, root, tmp_path / "full", **EXACT)
    assert sum(result.summary["run"]["busy_seconds"].values()) > 0


def test_a_gone_shard_whose_rows_are_not_all_there_keeps_its_output(in_process, tiny_bundle, root, out):
    texts = [*texts_of("a", 20), "twice", "twice"]
    write(root, "a.parquet", texts)
    score_folder(tiny_bundle, root, out)
    (root / "a.parquet").unlink()
    write(root, "b.parquet", texts[:-1])  # one of two is gone
    result = score_folder(tiny_bundle, root, out)
    assert numbers(result) == (0, 21, 21)
    assert (result.summary["orphans"], result.summary["complete"]) == (1, False)
    assert "1 outputs whose input file is gone were kept; --prune deletes them" in result.report()
    findings = verify(VerifySettings(input=str(root), out=str(out)))
    assert "deletes it if all of its rows stand in other outputs, or with --prune" in findings.orphaned[0]
    write(root, "c.parquet", ["twice", "new"])
    result = score_folder(tiny_bundle, root, out)
    assert numbers(result) == (1, 1, 23)
    assert (result.summary["orphans"], result.summary["complete"]) == (0, True)
    assert sorted(path.name for path in out.glob("*.parquet")) == ["b.parquet", "c.parquet"]


def test_a_split_shard_is_found_in_all_of_its_parts(in_process, tiny_bundle, root, out, tmp_path):
    texts = texts_of("a", 400)
    write(root, "a.parquet", texts)
    score_folder(tiny_bundle, root, out, **EXACT)
    (root / "a.parquet").unlink()
    for i in range(20):
        write(root, f"k={i}/new.parquet", texts[20 * i : 20 * i + 20])
    result = score_folder(tiny_bundle, root, out, **EXACT)
    assert numbers(result) == (0, 400, 400)
    assert result.summary["orphans"] == 0
    check_like_a_full_run(result, tiny_bundle, root, tmp_path / "full", **EXACT)


@pytest.mark.parametrize("change", ["bundle", "reuse", "old outputs"])
def test_nothing_is_reused_where_nothing_may_be(in_process, tiny_bundle, tiny_encoder, root, out, tmp_path, change):
    texts = texts_of("a", 20)
    write(root, "a.parquet", texts)
    score_folder(tiny_bundle, root, out, reuse=change != "old outputs")
    write(root, "a.parquet", [*texts, "new"])
    if change == "bundle":  # the one before was replaced, as by a promotion
        promoted = make_bundle(tiny_encoder, tmp_path / "promoted", max_length=16)
        settings = ScoreSettings(model=promoted, input=str(root), out=str(out))
        replaced = {"": [bundle.digest_of(bundle.read_files(tiny_bundle)[1])]}
        result = score(plan_scoring(settings, replaced))
    else:
        result = score_folder(tiny_bundle, root, out, reuse=change != "reuse")
    assert numbers(result) == (21, 0, 21)
    assert read_scored(out).column_names[-1] == ("row" if change == "reuse" else "text_hash")
    assert verify(VerifySettings(input=str(root), out=str(out))).exit_code == 0


def test_outputs_with_and_without_hashes_stand_beside_each_other(in_process, tiny_bundle, root, out):
    write(root, "a.parquet", texts_of("a", 20))
    score_folder(tiny_bundle, root, out, reuse=False)
    write(root, "b.parquet", texts_of("bb", 20))
    assert numbers(score_folder(tiny_bundle, root, out)) == (20, 0, 40)
    names = {name: pq.ParquetFile(out / f"{name}.parquet").schema_arrow.names[-1] for name in "ab"}
    assert names == {"a": "row", "b": "text_hash"}
    findings = verify(VerifySettings(input=str(root), out=str(out), full=True))
    assert (findings.exit_code, findings.compared) == (0, 40), findings.report()


def test_several_models_with_prefix_probabilities_abstention_and_odd_texts(
    in_process, tiny_bundle, multi_label_bundle, root, out, tmp_path
):
    models = {"mood": tiny_bundle, "topic": multi_label_bundle}
    settings = {"prefix": "p_", "probabilities": True, "min_confidence": 0.6, **EXACT}
    texts = [*texts_of("a", 40), None, "", " ", "word " * 60, None, "", "again", "again"]
    write(root, "a.parquet", texts)
    score_folder(models, root, out, **settings)
    changed = [*reversed(texts), *texts_of("new", 5), "again", None]
    write(root, "a.parquet", changed)
    result = score_folder(models, root, out, **settings)
    assert numbers(result) == (5, len(texts) + 2, len(changed))
    table = read_scored(out, "p_")
    assert table.column_names[-3:] == ["p_source", "p_row", "p_text_hash"]
    assert table["p_text_hash"].combine_chunks().equals(hash_texts(changed))
    statuses = Counter(table["p_mood_status"].to_pylist())
    assert (statuses["null"], statuses["empty"], statuses["truncated"] + statuses["abstained"] > 0) == (3, 3, True)
    check_like_a_full_run(result, models, root, tmp_path / "full", **settings)


def test_several_labels_a_text(in_process, multi_label_bundle, root, out, tmp_path):
    texts = [*texts_of("a", 30), None]
    write(root, "a.parquet", texts)
    score_folder(multi_label_bundle, root, out, **EXACT)
    write(root, "a.parquet", ["first", *texts])
    result = score_folder(multi_label_bundle, root, out, **EXACT)
    assert numbers(result) == (1, 31, 32)
    check_like_a_full_run(result, multi_label_bundle, root, tmp_path / "full", **EXACT)


def test_texts_of_several_columns_are_known_by_all_of_them(in_process, tiny_bundle, root, out):
    settings = {"text_column": ("title", "text")}
    rows = {"title": ["a", "b", None, None], "text": ["x", None, "x", None]}
    write_shard(root, "a.parquet", rows)
    score_folder(tiny_bundle, root, out, **settings)
    hashes = read_scored(out)["text_hash"].combine_chunks()
    assert hashes.equals(hash_texts(["a\nx", "b", "x", None]))
    write_shard(root, "a.parquet", {"title": [*rows["title"], "a"], "text": [*rows["text"], "y"]})
    assert numbers(score_folder(tiny_bundle, root, out, **settings)) == (1, 4, 5)
    assert verify(VerifySettings(input=str(root), out=str(out), full=True)).exit_code == 0


@pytest.mark.parametrize("damage", ["cut", "label", "gone", "hash"])
def test_a_candidate_that_is_damaged_is_passed_over(in_process, tiny_bundle, root, out, damage):
    texts = {name: texts_of(name, 20) for name in ("a", "bb")}
    for name, part in texts.items():
        write(root, f"{name}.parquet", part)
    score_folder(tiny_bundle, root, out)
    shutil.rmtree(root)
    write(root, "c.parquet", [*texts["a"], *texts["bb"]])
    plan = plan_folder(tiny_bundle, root, out)
    path = out / "a.parquet"
    table = pq.ParquetFile(path).read()
    if damage == "cut":
        content = bytearray(path.read_bytes())
        content[10:200] = bytes(190)
        path.write_bytes(content)
    elif damage == "label":
        (label,) = {"negative", "positive"} - {table["label"][0].as_py()}
        labels = pa.array([label, *table["label"].to_pylist()[1:]]).dictionary_encode()
        pq.write_table(table.set_column(table.column_names.index("label"), "label", labels), path)
    elif damage == "hash":
        pq.write_table(table.set_column(len(table.column_names) - 1, "text_hash", pa.nulls(20, pa.binary(16))), path)
    else:
        path.unlink()
    result = score(plan)
    assert numbers(result) == (20, 20, 40)
    assert verify(VerifySettings(input=str(root), out=str(out), full=True)).compared == 40


def test_a_hash_of_another_text_is_found_by_verify_full(in_process, tiny_bundle, root, out):
    write(root, "a.parquet", ["one", "two"])
    score_folder(tiny_bundle, root, out)
    table = pq.ParquetFile(out / "a.parquet").read()
    pq.write_table(
        table.set_column(table.num_columns - 1, "text_hash", hash_texts(["one", "three"])), out / "a.parquet"
    )
    settings = {"input": str(root), "out": str(out)}
    assert verify(VerifySettings(**settings)).exit_code == 0
    assert "text_hash differs in 1 of 2 rows; row 1" in verify(VerifySettings(**settings, full=True)).different[0]
    pq.write_table(table.set_column(table.num_columns - 1, "text_hash", hash_texts(["one", None])), out / "a.parquet")
    assert "text_hash is null where status says there is a text" in verify(VerifySettings(**settings)).damaged[0]


def test_a_column_of_the_input_with_that_name_is_refused_naming_the_flags(in_process, tiny_bundle, root, out):
    write_shard(root, "a.parquet", {"text": ["good"], "Text_Hash": ["own"]})
    with pytest.raises(UserError, match=r"'Text_Hash' of a.parquet .* --prefix.* --keep ''; --no-reuse leaves .* out"):
        plan_folder(tiny_bundle, root, out)
    assert plan_folder(tiny_bundle, root, out, prefix="p_").hash_texts
    first = score_folder(tiny_bundle, root, out, reuse=False)
    assert read_scored(first.place)["Text_Hash"].to_pylist() == ["own"]
    write_shard(root, "b.parquet", {"text": ["bad"], "Text_Hash": ["own too"]})
    again = score_folder(tiny_bundle, root, out)  # as an output of an older version is continued
    assert (numbers(again), read_scored(again.place)["Text_Hash"].to_pylist()) == ((1, 0, 2), ["own", "own too"])
    assert verify(VerifySettings(input=str(root), out=str(out), full=True)).exit_code == 0


def test_a_kept_column_of_that_name_is_compared_as_any_other(in_process, tiny_bundle, root, out):
    write_shard(root, "a.parquet", {"text": ["good", "bad"], "text_hash": ["x", "y"]})
    score_folder(tiny_bundle, root, out, reuse=False)
    findings = verify(VerifySettings(input=str(root), out=str(out), full=True))
    assert (findings.exit_code, findings.compared) == (0, 2), findings.report()


def test_a_dry_run_estimates_what_is_reused_and_writes_nothing(in_process, tiny_bundle, root, out):
    texts = texts_of("a", 60)
    write(root, "a.parquet", texts)
    assert "reused" not in plan_folder(tiny_bundle, root, out).describe()
    score_folder(tiny_bundle, root, out)
    write(root, "a.parquet", [*texts, *texts_of("new", 20)])
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    plan = plan_folder(tiny_bundle, root, out)
    assert (plan.rows_to_score, plan.estimated_reused_rows) == (80, 60)
    assert "about 60 of the rows to score have a known text, whose score is reused (estimated" in plan.describe()
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_unit_reads_a_bounded_number_of_candidates(in_process, tiny_bundle, root, out, monkeypatch):
    for i in range(90):
        write(root, f"{i}.parquet", [f"text {i} {j}" for j in range(3)])
    score_folder(tiny_bundle, root, out)
    shutil.rmtree(root)
    write(root, "all.parquet", [f"text {i} {j}" for i in range(90) for j in range(3)])
    read = []
    read_earlier = reuse._read_earlier
    monkeypatch.setattr(reuse, "_read_earlier", lambda context, path: read.append(path) or read_earlier(context, path))
    result = score_folder(tiny_bundle, root, out)
    assert len(read) == len(set(read)) == 64
    assert numbers(result) == (26 * 3, 64 * 3, 270)
    assert (result.summary["orphans"], result.summary["complete"]) == (0, True)  # also those that were not read
    assert len(reuse._earlier) <= reuse.CACHED_OUTPUTS


def test_scores_that_a_run_has_written_meanwhile_serve_as_well(in_process, tiny_bundle, root, out):
    """One file's rows move to another, whose unit reads an output that the same run has replaced."""
    texts = texts_of("a", 30)
    write(root, "a.parquet", texts)
    score_folder(tiny_bundle, root, out)
    write(root, "a.parquet", [*texts, "more"])
    write(root, "b.parquet", texts)
    plan = plan_folder(tiny_bundle, root, out)
    score_folder(tiny_bundle, root, out)
    (out / "b.parquet").unlink()
    own, other = plan.units_to_score
    assert (own.source, other.source) == ("a.parquet", "b.parquet")
    answers = reuse.find_answers(plan.context, other, list(reuse.read_chunks(plan.context, other))).answers
    assert len(answers) == 30
    # a second attempt at the unit itself: its rows were computed, and are counted so
    answers = reuse.find_answers(plan.context, own, list(reuse.read_chunks(plan.context, own))).answers
    assert len(answers) == 0


def test_ray_data_reuses_as_the_stages_do(ray_here, tiny_bundle, root, out):
    texts = texts_of("a", 60)
    write(root, "a.parquet", texts[:40])
    write(root, "b.parquet", texts[40:])
    score_folder(tiny_bundle, root, out)
    (root / "a.parquet").unlink()
    write(root, "b.parquet", [*texts, *texts_of("new", 5)])
    result = score_folder(tiny_bundle, root, out)
    assert numbers(result) == (5, 60, 65)
    assert (result.summary["orphans"], result.summary["complete"]) == (0, True)
    assert verify(VerifySettings(input=str(root), out=str(out))).exit_code == 0
