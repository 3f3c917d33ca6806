"""Whole scoring runs: every row once and in order, whatever is in it, with the scores of the engine."""

import re
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from sentiment_core.data import shards
from sentiment_core.inference.engine import Engine
from sentiment_core.model import bundle
from sentiment_core.scoring import job, outputs
from sentiment_core.scoring.job import claim_output_folder
from sentiment_core.scoring.outputs import read_run_file, write_run_file
from sentiment_core.scoring.plan import plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import make_bundle
from tests.scoring.conftest import ODD_CORPUS_ROWS, ODD_TEXTS
from tests.scoring.runs import read_scored, score_folder, write_shard

ODD_STATUS = [
    "ok", "null", "empty", "empty", "truncated", "ok", "empty", "ok", "empty", "ok", "ok", "ok", "ok",
]  # fmt: skip


def test_every_odd_row_comes_out_once_in_its_place(odd_scored, odd_corpus):
    out = Path(odd_scored.place)
    assert odd_scored.exit_code == 0
    findings = verify(VerifySettings(input=str(odd_corpus), out=str(out)))
    assert (findings.exit_code, findings.rows_in, findings.rows_out) == (0, ODD_CORPUS_ROWS, ODD_CORPUS_ROWS)
    rows = read_scored(out)
    for source in ("kind=a/plain.parquet", "kind=a/large.parquet", "kind=b/deep/dictionary.parquet"):
        part = rows.filter(pads.field("source") == source)
        assert part["id"].to_pylist() == part["row"].to_pylist() == list(range(len(ODD_TEXTS)))
        assert part["status"].to_pylist() == ODD_STATUS
        columns = (part[name].to_pylist() for name in ("status", "label", "confidence", "probabilities"))
        for status, label, confidence, probabilities in zip(*columns, strict=True):
            if status in ("ok", "truncated"):
                assert label == ["negative", "positive"][int(np.argmax(probabilities))]
                assert confidence == max(probabilities)
                assert sum(probabilities) == pytest.approx(1, abs=1e-5)
            else:
                assert label is confidence is probabilities is None
    assert sorted(set(rows["kind"].to_pylist())) == ["a", "b", "c"]
    assert (out / "kind=c" / "empty.parquet").exists()
    assert odd_scored.summary["rows"] == findings.rows_in
    assert odd_scored.summary["status"]["null"] == 5


def test_scores_are_those_of_the_engine_and_columns_those_promised(in_process, tiny_bundle, tmp_path, monkeypatch):
    """Also of a shard that is cut into units."""
    monkeypatch.setattr(shards, "UNIT_ROWS", 40)
    texts = [f"word{i} good bad {i}" * (1 + i % 7) for i in range(500)]
    nested = [{"x": [i]} for i in range(500)]
    write_shard(tmp_path / "in", "a.parquet", {"id": range(500), "text": texts, "nested": nested}, row_group_size=60)
    engine = Engine.load(tiny_bundle)
    expected, _ = engine.probabilities(bundle.load_tokenizer(tiny_bundle).encode(texts)[0])
    threshold = float(np.median(expected.max(axis=1)))
    result = score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out", probabilities=True, min_confidence=threshold)
    assert len(list((tmp_path / "out").glob("a.rows-*.parquet"))) >= 500 / 40
    table = read_scored(tmp_path / "out")
    assert table.column_names == [
        *["id", "nested", "label", "confidence", "probabilities", "status", "source", "row", "text_hash"]
    ]
    assert table.schema.field("text_hash").type == pa.binary(16)
    assert table.schema.field("label").type == pa.dictionary(pa.int32(), pa.string())
    assert table.schema.field("confidence").type == pa.float32()
    assert table.schema.field("probabilities").type == pa.list_(pa.float32(), 2)
    assert table.schema.field("row").type == pa.int64()
    assert table["id"].to_pylist() == table["row"].to_pylist() == list(range(500))
    assert table["nested"].to_pylist()[7] == {"x": [7]}
    np.testing.assert_allclose(table["probabilities"].to_pylist(), expected, atol=1e-2)
    sure = np.array(table["confidence"].to_pylist()) >= np.float32(threshold)
    assert 200 < sure.sum() < 300
    assert [label is not None for label in table["label"].to_pylist()] == sure.tolist()
    assert [status == "abstained" for status in table["status"].to_pylist()] == (~sure).tolist()
    assert result.summary["status"]["abstained"] == sum(~sure) == 500 - sum(result.summary["labels"].values())
    assert verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out"))).exit_code == 0


def test_plain_readers_open_the_folder_as_it_is(odd_scored):
    out = Path(odd_scored.place)
    assert len(pd.read_parquet(out)) == ODD_CORPUS_ROWS
    files = f"read_parquet('{out}/**/*.parquet', hive_partitioning=true)"
    counts = duckdb.sql(f"select count(*), count(distinct (source, row)) from {files}").fetchall()
    assert counts == [(ODD_CORPUS_ROWS, ODD_CORPUS_ROWS)]
    assert all(path.name.startswith("_") for path in out.rglob("*") if path.is_file() and path.suffix != ".parquet")


def test_keep_chooses_the_columns_and_limit_the_first_rows(in_process, tiny_bundle, tmp_path):
    columns = {"text": ["good"] * 20, "b": [1] * 20, "label": [0] * 20}
    for name in "ab":
        write_shard(tmp_path / "in", f"kind=x/{name}.parquet", columns)
    result = score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out", keep=("kind", "b"), limit=25)
    assert result.place == f"{tmp_path}/out-limit-25"
    assert not (tmp_path / "out").exists()
    assert len(read_scored(result.place)) == 25
    names = pq.ParquetFile(Path(result.place, "kind=x", "a.parquet")).schema_arrow.names
    assert names == ["b", "label", "confidence", "status", "source", "row", "text_hash"]
    assert verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out"), limit=25)).exit_code == 0


@pytest.mark.journey
def test_two_workers_write_what_one_writes(odd_scored, odd_corpus, tiny_bundle, tmp_path):
    """To the byte, though in another order, with other numbers of threads, and cut into other tasks.

    The folder says by what the first one computed: of a model so small no backend is always the fastest.
    """
    first = read_run_file(odd_scored.place)
    assert first is not None
    write_run_file(str(tmp_path / "out"), first)
    result = score_folder(tiny_bundle, odd_corpus, tmp_path / "out", probabilities=True, workers=2)
    assert result.summary["run"]["workers"] == 2
    assert read_run_file(str(tmp_path / "out")).computed_by == first.computed_by
    assert len(first.computed_by) == 1
    written, before = (
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}
        for folder in (tmp_path / "out", Path(odd_scored.place))
    )
    assert written == before


def test_later_runs_into_a_folder_compute_as_the_first_one_did(in_process, tiny_bundle, tmp_path):
    """So that its numbers do not wander with what is measured; verify computes so too."""
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good", "bad"] * 20})
    score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out")
    (chip,) = read_run_file(str(tmp_path / "out")).computed_by
    for choice in ("torch float32", "openvino float32"):
        note_choice(tmp_path / "out", {chip: choice})
        write_shard(tmp_path / "in", f"{choice}.parquet", {"text": ["good", "bad"] * 20})
        result = score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out")
        assert result.summary["run"]["computed_by"] == [choice]
        assert read_run_file(str(tmp_path / "out")).computed_by == {chip: choice}
    rescored = verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out"), full=True))
    assert rescored.exit_code == 0


def test_another_bundle_chooses_anew(in_process, tiny_encoder, tiny_bundle, tmp_path):
    """A family that OpenVINO cannot run would else slow down the one that is promoted after it."""
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good", "bad"] * 20})
    score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out")
    before = read_run_file(str(tmp_path / "out"))
    note_choice(tmp_path / "out", dict.fromkeys(before.computed_by, "none"))
    other = make_bundle(tiny_encoder, tmp_path / "b", max_length=16)
    plan = plan_scoring(
        ScoreSettings(model=other, input=str(tmp_path / "in"), out=str(tmp_path / "out")), {"": [before.run.bundle]}
    )
    write_shard(tmp_path / "in", "b.parquet", {"text": ["good"]})
    assert claim_output_folder(plan).computed_by == {}


@pytest.mark.parametrize(
    ("other", "words"),
    [({"min_confidence": 0.9}, "min_confidence: 0.9 there, 0.0 now"), ({"bundle": "b"}, "bundle: 'b' there")],
)
def test_a_run_whose_folder_another_one_took_over_does_not_call_it_complete(
    in_process, tiny_bundle, tmp_path, monkeypatch, other, words
):
    """Both began in an empty folder, and each looked before the other had written."""
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good"]})
    out = tmp_path / "out"
    commit = outputs.commit

    def take_over(*arguments):
        run_file = read_run_file(str(out))
        outputs.write_run_file(str(out), replace(run_file, run=replace(run_file.run, **other)))
        commit(*arguments)

    monkeypatch.setattr(outputs, "commit", take_over)
    result = score_folder(tiny_bundle, tmp_path / "in", out)
    assert (result.exit_code, result.summary["complete"]) == (1, False)
    assert f"was made with other settings ({words}" in result.summary["stopped"]
    assert not (out / outputs.SUCCESS_FILE).exists()


def test_a_choice_is_not_noted_where_another_run_took_the_folder_over(in_process, tiny_bundle, tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good"]})
    score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out")
    run_file = read_run_file(str(tmp_path / "out"))
    job.note_choices(str(tmp_path / "out"), run_file.run, {"": {"another chip": "torch float32"}})
    noted = read_run_file(str(tmp_path / "out")).computed_by
    assert noted == run_file.computed_by | {"another chip": "torch float32"}
    job.note_choices(str(tmp_path / "out"), replace(run_file.run, bundle="earlier"), {"": {"a third": "torch float32"}})
    assert read_run_file(str(tmp_path / "out")).computed_by == noted
    job.note_choices(str(tmp_path / "gone"), run_file.run, {"": {"chip": "torch float32"}})
    assert not (tmp_path / "gone").exists()


def note_choice(out: Path, choices: dict[str, str]) -> None:
    """Write another choice into `_run.json`, as a first run would have made it."""
    write_run_file(str(out), replace(read_run_file(str(out)), computed_by=choices))


def test_int8_is_used_where_the_bundle_was_checked(in_process, tiny_encoder, tmp_path, capfd):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good", "bad", None, "good"]})
    checked = make_bundle(tiny_encoder, tmp_path / "b", int8={"agreement": 0.996, "rows": 500, "layers": 12})
    result = score_folder(checked, tmp_path / "in", tmp_path / "out", int8=True)
    backend, margin = result.summary["run"]["computed_by"]
    assert backend.startswith("int8 ")
    assert re.match(r"int8 \w+ measured \d+\.\d\d times as fast as (openvino|torch) ", margin)
    assert margin in capfd.readouterr().err  # not only at the end
    assert read_scored(tmp_path / "out")["label"].null_count == 1
