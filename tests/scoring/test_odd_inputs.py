"""People's corpora: odd names, links, types and columns come out right; what is left out is named."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from sentiment_core.errors import EXIT_FAULT, EXIT_OK, UserError
from sentiment_core.scoring import outputs
from sentiment_core.scoring.records import Origin, Run, UnitOrigin
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.scoring.runs import plan_folder, read_scored, score_folder, stages_in_process, write_shard

FAR = datetime.datetime(9999, 12, 31)
INT96 = {"use_deprecated_int96_timestamps": True, "store_schema": False}


def as_json(texts):
    return pa.ExtensionArray.from_storage(pa.json_(pa.string()), pa.array(texts))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Shards that hold the same columns in many ways, with links and other files beside them."""
    root = tmp_path_factory.mktemp("odd") / "in"
    text = ["good film", "bad film", None]
    when = pa.array([FAR, None, FAR], pa.timestamp("us"))
    rows = {"text": text, "label": [1, 0, 1], "lang": ["en", "de", None], "when": when, "row": ["x", "y", "z"]}
    late = datetime.datetime(2026, 11, 30, 1, 2, 3, 456789)
    write_shard(root, "day=1/int96.parquet", rows, **INT96)
    write_shard(root, "day=1/bytes.parquet", rows | {"text": [b"good film", b"caf\xe9", None]})
    write_shard(root, "day=1/json.parquet", rows | {"text": as_json(text)})
    write_shard(root, "day=2/view.parquet", rows | {"text": pa.array(text, pa.string_view())})
    write_shard(root, "day=2/nulls.parquet", rows | {"lang": pa.nulls(3)})
    write_shard(root, "day=2/pandas.parquet", rows | {"lang": pa.array([None] * 3, pa.float64())})
    write_shard(root, "day=3/nanoseconds.parquet", rows | {"when": pa.array([late] * 3, pa.timestamp("ns"))})
    os.symlink("day=3", root / "latest")
    shutil.copyfile(root / "day=1" / "int96.parquet", root / "day=1" / "copy.parquet.gzip")
    return root


@pytest.fixture(scope="module")
def scored(ray_here, tiny_bundle, corpus) -> Path:
    """The corpus, scored beside its own label and row."""
    with stages_in_process():
        result = score_folder(tiny_bundle, corpus, corpus.parent / "out", prefix="pred_")
    assert result.exit_code == EXIT_OK
    assert result.summary["rows"] == 21
    assert result.summary["column_drift"] == []
    unread = ["1 files passed over, since their names do not end as data files do: day=1/copy.parquet.gzip",
              "1 links to data that is read under its own name: latest"]  # fmt: skip
    assert result.summary["not_read"] == unread
    assert f"not read: {unread[0]}" in result.report()
    return Path(result.place)


def test_every_row_comes_out_once_with_what_it_had(corpus, scored):
    findings = verify(VerifySettings(input=str(corpus), out=str(scored)))
    assert (findings.exit_code, findings.rows_in, findings.rows_out) == (EXIT_OK, 21, 21)
    assert "not read: 1 links to data" in findings.report()
    by_name = {path.stem: pq.read_table(path).to_pydict() for path in scored.rglob("*.parquet")}
    for name, rows in by_name.items():
        assert (rows["label"], rows["row"], rows["pred_row"]) == ([1, 0, 1], ["x", "y", "z"], [0, 1, 2]), name
        assert rows["pred_status"] == ["ok", "ok", "null"], name
        expected = [None] * 3 if name in ("nulls", "pandas") else ["en", "de", None]
        assert rows["lang"] == expected, name
        assert rows["when"] == (
            [datetime.datetime(2026, 11, 30, 1, 2, 3, 456789)] * 3 if name == "nanoseconds" else [FAR, None, FAR]
        )
    confidences = {round(rows["pred_confidence"][0], 3) for rows in by_name.values()}
    assert len(confidences) == 1


def test_every_reader_opens_the_folder_as_one_table(scored):
    assert len(pd.read_parquet(scored)) == 21
    table = read_scored_of(scored)
    assert table.schema.field("lang").type == pa.string()
    assert table.schema.field("when").type == pa.timestamp("us")
    files = f"read_parquet('{scored}/**/*.parquet', hive_partitioning=true)"
    assert duckdb.sql(f"select count(*), max(day), count(lang) from {files}").fetchall() == [(21, 3, 10)]
    frame = pl.scan_parquet(scored / "**/*.parquet", hive_partitioning=True).collect()
    assert (len(frame), frame["lang"].null_count(), frame["when"].dtype) == (21, 11, pl.Datetime("us"))


def read_scored_of(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(folder.rglob("*.parquet"))])


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("pyspark") and shutil.which("java")), reason="needs pyspark and Java 17 or newer")
def test_spark_opens_the_folder(scored):
    code = f"""
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
frame = spark.read.parquet({str(scored)!r})
print(frame.count(), frame.where("lang is null").count(), frame.agg({{"when": "max"}}).collect()[0][0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split()[:3] == ["21", "11", "9999-12-31"]


def test_a_whole_output_is_marked_and_a_changed_one_is_not(in_process, scored, corpus, tiny_bundle):
    settings = {"prefix": "pred_"}
    assert (scored / "_SUCCESS").exists()
    path = corpus / "day=1" / "bytes.parquet"
    before, times = path.read_bytes(), path.stat()
    write_shard(
        corpus,
        "day=1/bytes.parquet",
        pq.ParquetFile(path).read().set_column(0, "text", [[b"bad  film", b"caf\xe9", None]]),
    )
    changed = path.read_bytes()
    assert changed != before
    assert len(changed) == len(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert verify(VerifySettings(input=str(corpus), out=str(scored))).exit_code == EXIT_FAULT
    plan = plan_folder(tiny_bundle, corpus, scored, **settings)
    assert [unit.source for unit in plan.units_to_score] == ["day=1/bytes.parquet"]
    assert score_folder(tiny_bundle, corpus, scored, **settings).summary["run"]["rows"] == 3
    assert (scored / "_SUCCESS").exists()
    assert verify(VerifySettings(input=str(corpus), out=str(scored))).exit_code == EXIT_OK


def test_an_output_whose_column_got_a_type_later_is_rewritten_without_computing(in_process, tiny_bundle, tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    write_shard(root, "_year=2025/a.parquet", {"text": ["good", "bad"], "lang": pa.nulls(2)})
    first = score_folder(tiny_bundle, root, out)
    assert first.summary["hidden_partitions"] == 1
    assert "1 outputs lie in folders such as _year=2024, which pandas and pyarrow pass over" in first.report()
    output = out / "_year=2025" / "a.parquet"
    before, scored_ns = pq.read_table(output), output.stat().st_mtime_ns
    assert before.schema.field("lang").type == pa.null()
    write_shard(root, "_year=2026/b.parquet", {"text": ["good"], "lang": ["en"]})
    assert score_folder(tiny_bundle, root, out).summary["run"]["rows"] == 1
    after = pq.read_table(output)
    assert after.schema.field("lang").type == pa.string()
    assert after.drop_columns("lang").equals(before.drop_columns("lang"))
    assert int(pq.read_metadata(output).metadata[b"sentiment_core.scored_ns"]) == scored_ns
    assert plan_folder(tiny_bundle, root, out).to_rewrite == []
    assert verify(VerifySettings(input=str(root), out=str(out), full=True)).exit_code == EXIT_OK


def test_a_repeated_long_value_and_long_rows_are_kept_in_little_memory(in_process, tiny_bundle, tmp_path):
    """32,768 times the same 200 KB would be 6.5 GB."""
    blob = pa.DictionaryArray.from_arrays(pa.array(np.zeros(32_768, np.int32)), pa.array(["x" * 200_000]))
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good"] * 32_768, "blob": blob}, store_schema=False)
    result = score_folder(tiny_bundle, tmp_path / "in", tmp_path / "out")
    assert (result.exit_code, result.summary["rows"]) == (EXIT_OK, 32_768)
    file = pq.ParquetFile(tmp_path / "out" / "a.parquet")
    assert file.schema_arrow.field("blob").type == pa.string()
    assert next(file.iter_batches(1))["blob"][0].as_py() == "x" * 200_000


def test_probabilities_that_are_no_numbers_are_never_written(in_process, tiny_bundle, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_bundle, model)
    weights = load_file(model / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][2204] = float("nan")  # of "good"
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    write_shard(tmp_path / "in", "a.parquet", {"text": ["a good film", "bad"]})
    write_shard(tmp_path / "in", "b.parquet", {"text": ["bad"]})
    result = score_folder(model, tmp_path / "in", tmp_path / "out")
    (failed,) = result.summary["failed_shards"]
    assert failed["source"] == "a.parquet"
    assert "the model gives no finite probabilities for 1 of 2 distinct texts" in failed["reason"]
    assert read_scored(tmp_path / "out")["source"].to_pylist() == ["b.parquet"]
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_folder_that_is_not_whole_is_not_marked(in_process, tiny_bundle, tmp_path):
    root, out = tmp_path / "in", tmp_path / "out"
    for name in "ab":
        write_shard(root, f"{name}.parquet", {"text": ["good"]})
    assert score_folder(tiny_bundle, root, out).summary["complete"]
    assert (out / "_SUCCESS").exists()
    (root / "c.parquet").write_bytes(b"no Parquet")
    assert not score_folder(tiny_bundle, root, out).summary["complete"]
    assert not (out / "_SUCCESS").exists()
    (root / "c.parquet").unlink()
    (root / "b.parquet").unlink()
    assert not score_folder(tiny_bundle, root, out).summary["complete"]  # rows of b are there, and no longer asked for
    assert score_folder(tiny_bundle, root, out, prune=True).summary["complete"]
    assert (out / "_SUCCESS").exists()


def test_a_prefix_that_clashes_in_other_letters_is_refused(tiny_bundle, tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good"], "pred_LABEL": ["mine"]})
    with pytest.raises(
        UserError, match=r"column 'pred_LABEL' of a\.parquet has the name of a scored column; begin those"
    ):
        plan_folder(tiny_bundle, tmp_path / "in", tmp_path / "out", prefix="Pred_")


def test_an_old_output_with_nanoseconds_is_rewritten_too(tmp_path):
    kept = pa.table(
        {
            "when": pa.array([1_999], pa.timestamp("ns")),
            "lang": pa.nulls(1),
            "label": pa.array(["a"]).dictionary_encode(),
        }
    )
    origin = Origin(Run("in", "digest"), UnitOrigin("a.parquet", 0, 1, 1, 1, 1)).to_json()
    footer = {outputs.ORIGIN_KEY: json.dumps(origin).encode()}
    write_shard(tmp_path, "a.parquet", kept.replace_schema_metadata(footer))
    outputs.change_types(str(tmp_path), "a.parquet", {"lang": pa.string()})
    table = pq.ParquetFile(tmp_path / "a.parquet").read()
    assert table.schema.types == [pa.timestamp("us"), pa.string(), pa.dictionary(pa.int32(), pa.string())]
