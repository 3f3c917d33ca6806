"""Scoring Parquet: every row once, in order, whatever is in it; reruns; refusals."""

import json
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import ray
from ray.data._internal.logical.optimizers import get_execution_plan

from sentiment_core.data import columns, shards
from sentiment_core.errors import UserError
from sentiment_core.inference.engine import Engine
from sentiment_core.model import bundle
from sentiment_core.runtime import preflight, storage
from sentiment_core.runtime.task_guard import TaskGuard
from sentiment_core.scoring import outputs, stages, stream
from sentiment_core.scoring.job import ScoreSettings, prepare, score, take_output
from sentiment_core.scoring.outputs import Counts
from sentiment_core.scoring.stream import Stream, Tally
from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import make_bundle

ODD = [
    "good", None, "", "   \n\t", "word " * 100, "naïve café 😀", "\x00\x01", "a\u200b", "\ufeff", "<br />", "🎉" * 50,
    "NULL",
    "x" * 5000,
]  # fmt: skip


def run(model, root, out, **more):
    return score(prepare(ScoreSettings(model=str(model), input=str(root), out=str(out), **more)))


def read(out) -> pa.Table:
    return (
        pads.dataset(str(out), partitioning="hive").to_table().sort_by([("source", "ascending"), ("row", "ascending")])
    )


def write(root: Path, name: str, columns: dict | pa.Table, **options) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), root / name, **options)


def invalid_utf8() -> pa.Array:
    return pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 9], np.int32)), pa.py_buffer(b"caf\xe9 \xff ok")]
    )


@pytest.fixture(scope="module")
def odd_corpus(tmp_path_factory) -> Path:
    """Every odd row in several kinds of text column, shards and folders."""
    root = tmp_path_factory.mktemp("odd") / "corpus"
    ids = list(range(len(ODD)))
    write(root, "kind=a/plain.parquet", {"id": ids, "text": ODD}, row_group_size=3)
    write(root, "kind=a/large.parquet", {"id": ids, "text": pa.array(ODD, pa.large_string())})
    write(root, "kind=b/deep/dictionary.parquet", {"id": ids, "text": pa.array(ODD).dictionary_encode()})
    write(root, "kind=b/huge.parquet", {"id": [1, 2], "text": ["good " * 2_000_000, "fine"]})
    write(root, "kind=b/invalid.parquet", {"id": [1], "text": invalid_utf8()})
    write(root, "kind=c/empty.parquet", pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}))
    write(root, "kind=c/nulls.parquet", {"id": [1, 2], "text": pa.nulls(2)})
    return root


@pytest.fixture(scope="module")
def odd_scored(ray_here, tiny_bundle, odd_corpus, tmp_path_factory):
    return run(tiny_bundle, odd_corpus, tmp_path_factory.mktemp("odd") / "scored", probabilities=True)


def test_every_odd_row_comes_out_once_in_its_place(odd_scored, odd_corpus):
    done, out = odd_scored, Path(odd_scored.place)
    assert done.exit_code == 0
    found = verify(VerifySettings(input=str(odd_corpus), out=str(out)))
    assert (found.exit_code, found.rows_in, found.rows_out) == (0, 3 * len(ODD) + 5, 3 * len(ODD) + 5)
    expected = [
        "ok",
        "null",
        "empty",
        "empty",
        "truncated",
        "ok",
        "empty",
        "ok",
        "empty",
        "ok",
        "ok",
        "ok",
        "ok",
    ]
    rows = read(out)
    for source in ("kind=a/plain.parquet", "kind=a/large.parquet", "kind=b/deep/dictionary.parquet"):
        part = rows.filter(pads.field("source") == source)
        assert part["id"].to_pylist() == part["row"].to_pylist() == list(range(len(ODD)))
        assert part["status"].to_pylist() == expected
        for status, label, confidence, probabilities in zip(
            *(part[name].to_pylist() for name in ("status", "label", "confidence", "probabilities")), strict=True
        ):
            if status in ("ok", "truncated"):
                assert label == ["negative", "positive"][int(np.argmax(probabilities))]
                assert confidence == max(probabilities)
                assert sum(probabilities) == pytest.approx(1, abs=1e-5)
            else:
                assert label is confidence is probabilities is None
    assert sorted(set(rows["kind"].to_pylist())) == ["a", "b", "c"]
    assert (out / "kind=c" / "empty.parquet").exists()
    assert done.summary["rows"] == found.rows_in
    assert done.summary["status"]["null"] == 5


def test_scores_are_those_of_the_engine_and_columns_those_promised(ray_here, tiny_bundle, tmp_path, monkeypatch):
    """Also of a shard that is cut into units."""
    monkeypatch.setattr(shards, "UNIT_ROWS", 40)
    texts = [f"word{i} good bad {i}" * (1 + i % 7) for i in range(500)]
    write(
        tmp_path / "in",
        "a.parquet",
        {"id": range(500), "text": texts, "nested": [{"x": [i]} for i in range(500)]},
        row_group_size=60,
    )
    engine = Engine.load(tiny_bundle)
    wanted, _ = engine.probabilities(bundle.load_tokenizer(tiny_bundle).encode(texts)[0])
    limit = float(np.median(wanted.max(axis=1)))
    done = run(tiny_bundle, tmp_path / "in", tmp_path / "out", probabilities=True, min_confidence=limit)
    assert len(list((tmp_path / "out").glob("a.rows-*.parquet"))) >= 500 / 40
    table = read(tmp_path / "out")
    assert table.column_names == ["id", "nested", "label", "confidence", "probabilities", "status", "source", "row"]
    assert table.schema.field("label").type == pa.dictionary(pa.int32(), pa.string())
    assert table.schema.field("confidence").type == pa.float32()
    assert table.schema.field("probabilities").type == pa.list_(pa.float32(), 2)
    assert table.schema.field("row").type == pa.int64()
    assert table["id"].to_pylist() == table["row"].to_pylist() == list(range(500))
    np.testing.assert_allclose(table["probabilities"].to_pylist(), wanted, atol=1e-2)
    sure = np.array(table["confidence"].to_pylist()) >= np.float32(limit)
    assert 200 < sure.sum() < 300
    assert [label is not None for label in table["label"].to_pylist()] == sure.tolist()
    assert [status == "abstained" for status in table["status"].to_pylist()] == (~sure).tolist()
    assert done.summary["status"]["abstained"] == sum(~sure) == 500 - sum(done.summary["labels"].values())
    assert verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out"))).exit_code == 0
    assert table["nested"].to_pylist()[7] == {"x": [7]}
    assert verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out"))).exit_code == 0


def test_plain_readers_open_the_folder_as_it_is(odd_scored):
    out = Path(odd_scored.place)
    rows = 3 * len(ODD) + 5
    assert len(pd.read_parquet(out)) == rows
    files = f"read_parquet('{out}/**/*.parquet', hive_partitioning=true)"
    assert duckdb.sql(f"select count(*), count(distinct (source, row)) from {files}").fetchall() == [(rows, rows)]
    assert all(path.name.startswith("_") for path in out.rglob("*") if path.is_file() and path.suffix != ".parquet")


def test_keep_chooses_the_columns_and_limit_the_first_rows(ray_here, tiny_bundle, tmp_path):
    for name in "ab":
        write(tmp_path / "in", f"kind=x/{name}.parquet", {"text": ["good"] * 20, "b": [1] * 20, "label": [0] * 20})
    done = run(tiny_bundle, tmp_path / "in", tmp_path / "out", keep=("kind", "b"), limit=25)
    assert done.place == f"{tmp_path}/out-limit-25"
    assert not (tmp_path / "out").exists()
    assert len(read(done.place)) == 25
    names = pq.ParquetFile(Path(done.place, "kind=x", "a.parquet")).schema_arrow.names
    assert names == ["b", "label", "confidence", "status", "source", "row"]
    assert verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out"), limit=25)).exit_code == 0


@pytest.mark.parametrize(("keep", "kept"), [(None, ["b", "c"]), ((), []), (("c", "text"), ["text", "c"])])
def test_kept_columns_stand_in_the_order_of_the_shard(keep, kept):
    schema = pa.schema({"text": pa.string(), "b": pa.int8(), "c": pa.int8()})
    assert columns.kept_columns(schema, "text", keep) == kept


def test_a_rerun_does_only_what_is_missing(ray_here, tiny_bundle, tmp_path):
    for times, name in enumerate("abc"):
        write(tmp_path / "in", f"{name}.parquet", {"text": [f"{name} {'good ' * (times * i)}" for i in range(20)]})
    first = run(tiny_bundle, tmp_path / "in", tmp_path / "out")
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").glob("*.parquet")}
    (tmp_path / "out" / "b.parquet").unlink()
    write(tmp_path / "in", "d.parquet", {"text": ["new"]})
    again = run(tiny_bundle, tmp_path / "in", tmp_path / "out")
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (tmp_path / "out").glob("*.parquet")}
    assert {n for n in after if after[n] != before.get(n)} == {"b.parquet", "d.parquet"}
    assert after["b.parquet"][1] == before["b.parquet"][1]  # the same bytes, though computed in other company
    assert (first.summary["rows"], again.summary["rows"], again.summary["run"]["rows"]) == (60, 61, 21)
    assert sum(again.summary["labels"].values()) == 61
    dead, living = (
        tmp_path / "out" / "k=1" / f"{storage.TEMPORARY_PREFIX}old",
        tmp_path / "out" / f"{storage.TEMPORARY_PREFIX}new",
    )
    dead.parent.mkdir()
    for path in (dead, living):
        path.write_text("half a file")
    os.utime(dead, (0, 0))
    nothing = run(tiny_bundle, tmp_path / "in", tmp_path / "out")
    assert (nothing.exit_code, nothing.summary["run"]["rows"], nothing.summary["rows"]) == (0, 0, 61)
    assert (dead.exists(), living.exists()) == (False, True)


def test_input_that_changes_breaks_or_goes(ray_here, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "UNIT_ROWS", 10)
    root, out = tmp_path / "in", tmp_path / "out"
    write(root, "changed.parquet", {"text": [f"old {i}" for i in range(25)]})
    for name in ("good", "k=1/gone", "breaks"):
        write(root, f"{name}.parquet", {"text": [f"text of {name}"] * 5})
    (root / "no.parquet").write_bytes(b"no Parquet")
    content = (root / "good.parquet").read_bytes()
    (root / "short.parquet").write_bytes(content[: len(content) // 2])
    damaged = bytearray(content)
    damaged[20:60] = os.urandom(40)  # the footer is whole, a page is not
    (root / "damaged.parquet").write_bytes(damaged)
    done = run(tiny_bundle, root, out)
    assert done.exit_code == 3
    assert {s["source"] for s in done.summary["failed_shards"]} == {"no.parquet", "short.parquet", "damaged.parquet"}
    assert all(shard["reason"] for shard in done.summary["failed_shards"])
    assert json.loads((out / outputs.SUMMARY_FILE).read_text())["rows"] == 40
    assert {path.name[:5] for path in out.rglob("*.parquet")} == {"chang", "good.", "gone.", "break"}

    write(root, "changed.parquet", {"text": [f"new {i}" for i in range(12)]})
    (root / "k=1" / "gone.parquet").unlink()
    (root / "breaks.parquet").write_bytes(b"broken, not gone")
    (root / "damaged.parquet").unlink()
    settings = VerifySettings(input=str(root), out=str(out))
    found = verify(settings)
    assert found.exit_code == 1
    assert any("changed.parquet has changed" in text for text in found.stale)
    assert any("k=1/gone.parquet is gone; jobs/score.py --prune deletes it" in text for text in found.orphaned)
    kept = run(tiny_bundle, root, out)
    assert "1 outputs of input files that are gone were kept; --prune deletes them" in kept.report()
    assert {path.name[:5] for path in out.rglob("*.parquet")} == {"chang", "good.", "gone.", "break"}
    assert run(tiny_bundle, root, out, prune=True).summary["orphans"] == 0
    assert {path.name[:5] for path in out.rglob("*.parquet")} == {"chang", "good.", "break"}
    found = verify(settings)
    assert (found.exit_code, found.stale, found.rows_out) == (3, [], 17)
    assert len(found.unreadable) == 3


def test_rows_scored_once_more_show_what_was_changed(odd_scored, odd_corpus, tiny_bundle, tmp_path):
    """A sample of more rows than there are: all, in parts."""
    shutil.copytree(odd_scored.place, tmp_path / "out")
    changes = {  # what verification without scoring once more does not see
        "kind=a/plain.parquet": ("id", lambda ids: pc.add(ids, 1)),
        "kind=a/large.parquet": ("status", lambda found: found.take([4, 1, 2, 3, 0, *range(5, len(ODD))])),
        "kind=b/invalid.parquet": ("confidence", lambda found: pc.subtract(found, 0.03)),
    }
    for name, (column, change) in changes.items():
        file = pq.ParquetFile(tmp_path / "out" / name)
        table = file.read()
        i = table.column_names.index(column)
        changed = change(table[column])
        pq.write_table(
            table.set_column(i, table.schema.field(column), changed.cast(table.schema.field(column).type)),
            tmp_path / "out" / name,
        )
    settings = VerifySettings(input=str(odd_corpus), out=str(tmp_path / "out"))
    assert verify(settings).exit_code == 0
    found = verify(replace(settings, sample=10_000))
    assert (found.exit_code, len(found.different)) == (1, 3), found.report()
    said = found.report()
    assert f"id differs in {len(ODD)} of {len(ODD)} rows; row 0: 1, expected 0" in said
    assert f"kind=a/large.parquet: status differs in 2 of {len(ODD)} rows; row 0: truncated, expected ok" in said
    assert "kind=b/invalid.parquet: 1 of 1 rows are scored otherwise" in said
    with pytest.raises(UserError, match="is not the bundle that scored"):
        verify(replace(settings, full=True, model=make_bundle_again(tiny_bundle, tmp_path / "other")))


def make_bundle_again(bundle: str, place: Path) -> str:
    """The bundle, but with a shorter limit on texts."""
    shutil.copytree(bundle, place)
    card = json.loads((place / "sentiment.json").read_text())
    (place / "sentiment.json").write_text(json.dumps(card | {"max_length": 7}))
    return str(place)


def test_a_fault_of_all_shards_stops_the_run(ray_here, tiny_bundle, tmp_path, monkeypatch):
    """Nothing can be written, as on a full disk: folders are in the way."""
    monkeypatch.setattr(stream, "TASK_ROWS", {"CPU": 1})
    for i in range(120):
        write(tmp_path / "in", f"{i:03}.parquet", {"text": ["good"]})
    work = prepare(ScoreSettings(model=tiny_bundle, input=str(tmp_path / "in"), out=str(tmp_path / "out")))
    for unit in work.todo:
        (tmp_path / "out" / unit.output / "folder").mkdir(parents=True)
    (tmp_path / "out" / outputs.RUN_FILE).write_text(json.dumps(asdict(work.run)))
    (tmp_path / "out" / outputs.SUMMARY_FILE / "folder").mkdir(parents=True)
    done = score(work)
    assert done.exit_code == 1
    assert 50 <= len(done.summary["failed_shards"]) < 120
    assert "stopped: the last 5" in done.report()
    assert "Is a directory" in done.report()


def test_a_dry_run_counts_and_writes_nothing(tiny_bundle, tmp_path):
    write(tmp_path / "in", "a.parquet", {"text": ["good"] * 20})
    work = prepare(
        ScoreSettings(model=tiny_bundle, input=str(tmp_path / "in"), out=str(tmp_path / "out"), dry_run=True)
    )
    assert "20 rows in 1 units; to score: 20 rows in 1 units" in work.describe()
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_does_not_run_inside_the_actors(ray_here, tiny_bundle, tmp_path):
    """Ray Data fuses stages that ask for the same resources; the model would then wait for the tokenizer."""
    write(tmp_path / "in", "a.parquet", {"text": ["good"]})
    work = prepare(ScoreSettings(model=tiny_bundle, input=str(tmp_path / "in"), out=str(tmp_path / "out")))
    guard = TaskGuard.start(60.0)
    for workers in (1, 2):
        lazy = Stream(work.job, work.bundle_files, stages.write, {}, workers, 60.0).of([work.todo], guard)
        operators = get_execution_plan(lazy._logical_plan)[0].dag.post_order_iter()
        kinds = ["InputDataBuffer", "TaskPoolMapOperator", "ActorPoolMapOperator", "TaskPoolMapOperator"]
        assert [type(operator).__name__ for operator in operators] == kinds


def test_two_workers_write_what_one_writes(odd_scored, odd_corpus, tiny_bundle, tmp_path):
    """To the byte, though in another order, with other numbers of threads, and cut into other tasks."""
    done = run(tiny_bundle, odd_corpus, tmp_path / "out", probabilities=True, workers=2)
    assert done.summary["run"]["workers"] == 2
    assert all(name.startswith("openvino") for name in done.summary["run"]["computed_by"]), (
        "others differ by up to 1e-3"
    )
    written, before = (
        {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*.parquet")}
        for place in (tmp_path / "out", Path(odd_scored.place))
    )
    assert written == before


def test_eight_bits_are_used_where_the_bundle_was_checked(ray_here, tiny_encoder, tmp_path):
    write(tmp_path / "in", "a.parquet", {"text": ["good", "bad", None, "good"]})
    checked = make_bundle(tiny_encoder, tmp_path / "b", int8={"agreement": 0.996, "rows": 500})
    done = run(checked, tmp_path / "in", tmp_path / "out", int8=True)
    assert done.summary["run"]["computed_by"] == ["openvino int8"]
    assert read(tmp_path / "out")["label"].null_count == 1
    refuse(["other settings", "int8 True, now False"], model=checked, input=tmp_path / "in", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("int8", "words"),
    [
        ({"agreement": 0.99, "rows": 500}, ["of 500 rows", "99.00 %", "99.5 %", "without --int8"]),
        ({"reason": "not installed"}, ["was not checked in 8 bits (not installed)", "train it again"]),
        ({}, ["made by an older version"]),
    ],
)
def test_eight_bits_that_change_labels_are_refused(tiny_encoder, tmp_path, int8, words):
    write(tmp_path / "in", "a.parquet", {"text": ["good"]})
    model = make_bundle(tiny_encoder, tmp_path / "b", int8=int8)
    refuse(words, model=model, input=tmp_path / "in", out=tmp_path / "out", int8=True)


def refuse(words, **settings):
    with pytest.raises(UserError) as error:
        score(prepare(ScoreSettings(**{name: str(v) if isinstance(v, Path) else v for name, v in settings.items()})))
    assert all(word in str(error.value) for word in words), error.value


def test_wrong_requests_are_refused_and_leave_nothing(ray_here, tiny_bundle, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    write(source, "a.parquet", {"text": ["good"], "n": [1]})
    good = {"model": tiny_bundle, "input": source, "out": out}
    refuse(["--model", "is not a bundle"], **good | {"model": source})
    refuse(["nowhere", "does not exist"], **good | {"input": tmp_path / "nowhere"})
    refuse(["'body'", "text, n", "--text-column"], **good | {"text_column": "body"})
    refuse(["'n'", "int64"], **good | {"text_column": "n"})
    refuse(["--workers 99 needs 99 CPUs", "Lower it"], **good | {"workers": 99})
    refuse(["overlap"], **good | {"out": source / "scored"})
    refuse(["overlap"], **good | {"out": tmp_path})
    refuse(["--workers", "0", "1 or more"], **good | {"workers": 0})
    assert not out.exists()
    out.mkdir()
    (out / "thesis.docx").write_text("mine")
    refuse(["holds something else"], **good)
    assert [path.name for path in out.iterdir()] == ["thesis.docx"]


def test_another_bundle_or_setting_is_refused_with_the_difference(ray_here, tiny_bundle, tmp_path):
    write(tmp_path / "in", "a.parquet", {"text": ["good"], "body": ["bad"]})
    good = {"model": tiny_bundle, "input": tmp_path / "in", "out": tmp_path / "out"}
    pinned = prepare(ScoreSettings(**{name: str(value) for name, value in good.items()})).run
    storage.write_file(str(tmp_path / "out" / outputs.RUN_FILE), json.dumps(asdict(pinned)).encode())
    refuse(["other settings", "text_column 'text', now 'body'"], **good | {"text_column": "body"})
    refuse(["other settings", "probabilities False, now True"], **good | {"probabilities": True})


def test_gpus_the_cluster_has_not_are_refused_at_once(ray_here):
    assert ray.cluster_resources().get("GPU", 0) == 0, "this test is for machines without a GPU"

    with pytest.raises(UserError, match=r"--workers 1000 needs 1000 CPUs; the cluster has at most \d+\."):
        preflight.check_workers(1000)


def write_late(task: pa.Table, seconds: float, **common) -> pa.Table:
    time.sleep(seconds)
    return stages.write(task, **common)


@pytest.fixture
def work(ray_here, tiny_bundle, tmp_path):
    write(tmp_path / "corpus", "a.parquet", {"text": ["good", "bad", "fine"]})
    out = str(tmp_path / "out")
    work = prepare(ScoreSettings(model=str(tiny_bundle), input=str(tmp_path / "corpus"), out=out))
    preflight.check_writable(out)
    take_output(work)
    return work


def test_a_task_may_take_longer_than_ray_has_patience(work, monkeypatch):
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 0.5)
    tally = Tally(Counts.none(work.info.labels))
    Stream(work.job, work.bundle_files, write_late, {"seconds": 3}, 1, 60).run("score", work.todo, tally)
    assert (tally.totals.rows, tally.failed, tally.out_of_time) == (3, [], False)


def test_time_that_is_over_is_noticed_while_nothing_comes(work, monkeypatch):
    monkeypatch.setattr(stream, "OVERTIME_S", 2)
    tally = Tally(Counts.none(work.info.labels))
    late = Stream(work.job, work.bundle_files, write_late, {"seconds": 300}, 1, 60, until=time.monotonic())
    late.run("score", work.todo, tally)
    assert (tally.totals.rows, tally.failed, tally.out_of_time) == (0, [], True)
