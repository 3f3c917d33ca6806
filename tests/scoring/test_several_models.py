"""Several models in one pass: each column is that of a run with its model alone, and every promise holds."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import transformers

from sentiment_core import score, verify
from sentiment_core.data import shards
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.runtime import preflight
from sentiment_core.runtime.task_guard import TaskGuard
from sentiment_core.scoring import outputs, stages
from sentiment_core.scoring.job import ScoreResult
from sentiment_core.scoring.models import describe_models, open_models
from sentiment_core.scoring.outputs import COUNTS_KEY, ORIGIN_KEY
from sentiment_core.scoring.records import RunFile
from sentiment_core.scoring.task_table import TaskTable
from tests.conftest import make_bundle, sentences
from tests.ready_models import make_classifier
from tests.scoring.runs import plan_folder, read_scored, score_folder, stages_in_process, write_shard

TEXTS = [*sentences(30, seed=3)["text"].to_pylist(), None, "", " ", "A Film By Nobody", "word " * 60, "word " * 60]


@pytest.fixture(scope="module")
def models(tiny_encoder, tiny_bundle, multi_label_bundle, packaged_encoder, tmp_path_factory) -> dict[str, str]:
    """Four models: two that share a tokenizer, one that reads less of a text, a ready one with another tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    short = make_bundle(tiny_encoder, folder / "short", labels=("a", "b", "c"), max_length=8)
    ready = make_classifier("roberta", folder / "ready", packaged_encoder)
    return {"sentiment": tiny_bundle, "emotion": multi_label_bundle, "short": short, "ready": ready}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "in"
    write_shard(root, "k=1/a.parquet", {"id": range(len(TEXTS)), "text": TEXTS})
    write_shard(root, "k=2/b.parquet", {"id": range(9), "text": [*TEXTS[:8], "none of these"]})
    return root


@pytest.fixture(scope="module")
def scored(ray_here, models, corpus, tmp_path_factory) -> dict[str, ScoreResult]:
    """The corpus scored by each model alone (by its name), by two ("two"), by three and by four in one pass.

    All compute by what the runs alone have chosen: of models so small no backend is always the fastest.
    """
    folder = tmp_path_factory.mktemp("scored")
    with stages_in_process():
        results = {
            name: score_folder(model, corpus, folder / name, probabilities=True) for name, model in models.items()
        }
        choices = {name: read_run_file(result).computed_by for name, result in results.items()}
        for out, names in (("two", 2), ("three", 3), ("four", 4)):
            chosen = dict(list(models.items())[:names])
            plan = plan_folder(chosen, corpus, folder / out, probabilities=True)
            noted = {name: choices[name] for name in plan.run.models}
            outputs.write_run_file(plan.output_folder, RunFile(plan.run, plan.paths, computed_by=noted))
            results[out] = score_folder(chosen, corpus, folder / out, probabilities=True)
    return results


@pytest.fixture
def two(scored, tmp_path) -> Path:
    """Return a copy of the output of two models, which a test may change."""
    return Path(shutil.copytree(scored["two"].place, tmp_path / "out"))


def pair(models: dict[str, str]) -> dict[str, str]:
    return {name: models[name] for name in ("sentiment", "emotion")}


def read_run_file(result: ScoreResult) -> RunFile:
    run_file = outputs.read_run_file(result.place)
    assert run_file is not None
    return run_file


def footers(result: ScoreResult, key: bytes) -> dict[str, Any]:
    """Return a record in the footers of an output folder, by file."""
    files = sorted(Path(result.place).rglob("*.parquet"))
    return {path.name: json.loads(pq.read_metadata(path).metadata[key]) for path in files}


def change(path: Path, name: str, change_column: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> None:
    """Change a column of an output, and leave its footer."""
    table = pq.ParquetFile(path).read()
    i = table.column_names.index(name)
    pq.write_table(table.set_column(i, table.schema.field(i), change_column(table[name])), path)


def replace_first_label(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(["other", *labels.to_pylist()[1:]]).dictionary_encode()])


@pytest.mark.parametrize("out", ["two", "three", "four"])
def test_columns_and_statistics_are_those_of_separate_runs(scored, models, out):
    together, counts = read_scored(scored[out].place), footers(scored[out], COUNTS_KEY)
    names = sorted(read_run_file(scored[out]).run.models)
    assert scored[out].exit_code == 0
    assert len(names) == {"two": 2, "three": 3, "four": 4}[out]
    columns = ["id"]
    for name in names:
        alone = read_scored(scored[name].place)
        own = [column for column in alone.column_names if column not in ("id", "k", "source", "row", "text_hash")]
        columns += [f"{name}_{column}" for column in own]
        assert together.select([f"{name}_{column}" for column in own]).rename_columns(own).equals(alone.select(own))
        for file, content in footers(scored[name], COUNTS_KEY).items():
            assert counts[file]["models"][name] == content
        summary, alone_summary = scored[out].summary["models"][name], scored[name].summary
        same = ("status", "labels", "confidence_histogram", "tokens", "padding_share", "bundle")
        assert {key: summary[key] for key in same} == {key: alone_summary[key] for key in same}
        assert summary["computed_by"][0] == alone_summary["run"]["computed_by"][0]
    assert together.column_names == [*columns, "source", "row", "text_hash", "k"]
    shared = ["id", "source", "row", "text_hash"]
    assert together.select(shared).equals(read_scored(scored["short"].place).select(shared))


def test_records_hold_names_digests_and_places(scored, models):
    content = json.loads(Path(scored["two"].place, outputs.RUN_FILE).read_text())
    digests = {name: bundle.digest_of(bundle.read_files(path)[1]) for name, path in pair(models).items()}
    assert content["models"] == {
        "emotion": {"bundle": digests["emotion"], "multi_label": True},
        "sentiment": {"bundle": digests["sentiment"], "multi_label": False},
    }
    assert content["model"] == pair(models)
    assert {name: len(chips) for name, chips in content["computed_by"].items()} == {"emotion": 1, "sentiment": 1}
    origins = footers(scored["two"], ORIGIN_KEY).values()
    assert all(origin["run"]["models"] == content["models"] for origin in origins)
    summary = scored["two"].summary
    assert not {"labels", "status", "tokens", "bundle"} & set(summary)
    assert summary["rows"] == summary["rows_in"] == len(TEXTS) + 9
    report = scored["two"].report()
    assert "\nsentiment: labels: " in report
    assert "emotion: 45 rows in 2 files: ok " in report


def test_a_single_model_may_have_a_name(in_process, models, corpus, scored, tmp_path):
    result = score_folder({"sentiment": models["sentiment"]}, corpus, tmp_path / "out")
    assert read_scored(result.place).column_names == [
        "id", "sentiment_label", "sentiment_confidence", "sentiment_status", "source", "row", "text_hash", "k",
    ]  # fmt: skip
    assert result.summary["models"]["sentiment"]["labels"] == scored["sentiment"].summary["labels"]


def test_texts_are_tokenized_once_for_models_that_make_the_same_tokens(ray_here, models, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # a stage sets it, elsewhere in a process of its own
    described = describe_models(open_models(models))
    assert {model.name: model.tokenizer for model in described} == {
        "emotion": "emotion", "sentiment": "emotion", "ready": "ready", "short": "short",
    }  # fmt: skip
    plan = plan_folder(models, corpus, tmp_path / "out")
    files = {name: ray.put(plan.bundle_files[name]) for name in ("emotion", "ready", "short")}
    table = TaskTable.build(plan.units_to_score).table
    task = TaskTable(stages.read_and_tokenize(table, plan.context, files, TaskGuard.start(60.0)))
    assert task.errors == ["", ""]
    made = {name.rpartition(" ")[2] for name in task.table.column_names if name.startswith("lists of ")}
    assert made == {"emotion", "ready", "short"}
    assert task.tokens("short").lengths.max() == 8
    assert task.tokens("emotion").lengths.max() == 32


def test_a_rerun_scores_only_what_is_missing(in_process, models, corpus, two):
    path = two / "k=2" / "b.parquet"
    before = path.read_bytes()
    path.unlink()
    assert verify(input=corpus, out=two).missing == ["k=2/b.parquet: all 9 rows"]
    swapped = dict(reversed(pair(models).items()))  # the order of the names makes no difference
    result = score_folder(swapped, corpus, two, probabilities=True)
    assert (result.summary["run"]["rows"], result.summary["rows"]) == (9, len(TEXTS) + 9)
    assert path.read_bytes() == before
    assert result.summary["models"]["emotion"]["status"]["ok"] > 9
    assert plan_folder(pair(models), corpus, two, probabilities=True).units_to_score == []


def test_a_changed_value_of_the_second_model_is_found(in_process, corpus, two):
    unchanged = verify(input=corpus, out=two, full=True)
    assert (unchanged.exit_code, unchanged.compared) == (0, len(TEXTS) + 9), unchanged.report()
    change(two / "k=1" / "a.parquet", "sentiment_confidence", lambda c: pc.subtract(c, pa.scalar(0.03, pa.float32())))
    assert verify(input=corpus, out=two).exit_code == 0  # which only scoring again can tell
    for again in ({"full": True}, {"sample": 1_000}):
        findings = verify(input=corpus, out=two, **again)
        assert findings.exit_code == 1
        assert len(findings.different) == 1
        assert "k=1/a.parquet: sentiment: 33 of 36 rows have another score; row 0: " in findings.different[0]


def test_verification_checks_the_columns_of_each_model_against_its_counts(corpus, two):
    change(two / "k=1" / "a.parquet", "sentiment_label", replace_first_label)
    change(two / "k=2" / "b.parquet", "emotion_status", lambda c: pa.chunked_array([["truncated"] * 9]))
    damaged = verify(input=corpus, out=two).damaged
    assert "sentiment: label is not as its footer counts it" in damaged[0]
    assert "emotion: status is not as its footer counts it" in damaged[1]


def test_bundles_that_moved_are_given_by_their_names(in_process, models, corpus, two, tmp_path):
    moved = shutil.copytree(models["emotion"], tmp_path / "moved")
    there = {"emotion": str(moved), "sentiment": models["sentiment"]}
    assert verify(input=corpus, out=two, sample=5, model=there).exit_code == 0
    for model, words in (
        ({"emotion": moved}, "gives the models emotion; .* was scored by emotion, sentiment; give those"),
        (moved, "gives the models one without a name"),
        ({"emotion": moved, "sentiment": moved}, "moved is not the bundle that scored"),
    ):
        with pytest.raises(UserError, match=words):
            verify(input=corpus, out=two, sample=5, model=model)


@pytest.mark.parametrize(
    ("change_models", "words"),
    [
        (lambda m: {"sentiment": m["sentiment"]}, "models: 'emotion, sentiment' there, 'sentiment' now"),
        (lambda m: pair(m) | {"short": m["short"]}, "models: 'emotion, sentiment' there, 'emotion, sentiment, short'"),
        (
            lambda m: {"mood": m["emotion"], "sentiment": m["sentiment"]},
            "'emotion, sentiment' there, 'mood, sentiment'",
        ),
        (lambda m: m["sentiment"], "models: 'emotion, sentiment' there, 'one without a name' now"),
        (lambda m: pair(m) | {"sentiment": m["short"]}, r"bundle of sentiment: '\w+' there, '\w+' now\)"),
    ],
)
def test_other_models_into_an_output_are_refused_by_their_names(models, corpus, two, change_models, words):
    with pytest.raises(UserError, match=words) as error:
        plan_folder(change_models(models), corpus, two, probabilities=True)
    assert str(error.value).count("there,") == 1
    assert "use those or choose another --out" in str(error.value)


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("a={sentiment},b=./nowhere", {}, "--model ./nowhere is not a bundle: the folder does not exist"),
        ("a={sentiment},b=", {}, "--model b= has no model behind the name"),
        ("a={sentiment},a={emotion}", {}, "gives two models the name a; their columns would be the same"),
        ("a={sentiment},b={titles}", {}, "a reads text; b reads title,body.*choose with --text-column"),
        ("a={sentiment},b={emotion}", {"int8": True}, "--int8"),
        ("a={sentiment},taken={emotion}", {}, "column 'taken_confidence' of a.parquet has the name of a scored column"),
        ("sentiment={sentiment}", {"prefix": "my_"}, "column 'MY_sentiment_label' of a.parquet has the name"),
    ],
)
def test_bad_requests_are_refused_before_any_work(models, tmp_path, model, settings, words):
    titles = shutil.copytree(models["sentiment"], tmp_path / "titles")
    record = json.loads((titles / bundle.CARD).read_text()) | {
        "training": {"settings": {"text_column": ["title", "body"]}}
    }
    (titles / bundle.CARD).write_text(json.dumps(record))
    columns = {"text": ["good"], "title": ["a"], "body": ["b"], "taken_confidence": [1.0], "MY_sentiment_label": ["x"]}
    write_shard(tmp_path / "in", "a.parquet", columns)
    with pytest.raises(UserError, match=words):
        plan_folder(model.format(**models, titles=titles), tmp_path / "in", tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_prefix_stands_before_the_names(in_process, models, tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good", "bad"], "sentiment_label": ["x", "y"], "row": [7, 8]})
    result = score_folder(pair(models), tmp_path / "in", tmp_path / "out", prefix="p_")
    names = read_scored_names(result)
    assert names[:3] == ["sentiment_label", "row", "p_emotion_labels"]
    assert names[-3:] == ["p_source", "p_row", "p_text_hash"]
    assert verify(input=tmp_path / "in", out=tmp_path / "out", full=True).exit_code == 0


def read_scored_names(result: ScoreResult) -> list[str]:
    path = next(Path(result.place).rglob("*.parquet"))
    return pq.ParquetFile(path).schema_arrow.names


def test_each_model_abstains_by_its_own_confidence(in_process, models, corpus, scored, tmp_path):
    all_rows = read_scored(scored["two"].place)
    threshold = float(np.median(pc.drop_null(all_rows["sentiment_confidence"]).to_numpy()))
    result = score_folder(pair(models), corpus, tmp_path / "out", min_confidence=threshold)
    table = read_scored(result.place)
    abstained = {}
    for name, label in (("sentiment", "label"), ("emotion", "labels")):
        below = pc.less(table[f"{name}_confidence"], pa.scalar(threshold, pa.float32()))
        abstained[name] = pc.fill_null(below, False).to_pylist()
        assert pc.equal(table[f"{name}_status"], "abstained").to_pylist() == abstained[name]
        nothing = pc.is_null(table[f"{name}_confidence"]).to_pylist()
        expected = [a or b for a, b in zip(abstained[name], nothing, strict=True)]
        assert pc.is_null(table[f"{name}_{label}"]).to_pylist() == expected
        assert result.summary["models"][name]["status"]["abstained"] == sum(abstained[name])
    assert abstained["sentiment"] != abstained["emotion"]
    assert verify(input=corpus, out=result.place, full=True).exit_code == 0


def test_limits_units_and_column_types_are_as_with_one_model(in_process, models, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "UNIT_ROWS", 5)
    root, out = tmp_path / "in", tmp_path / "out"
    write_shard(root, "a.parquet", {"text": ["good", "bad"] * 6, "n": pa.nulls(12)})
    limited = score(model=pair(models), input=root, out=out, limit=7)
    assert limited.place == f"{out}-limit-7"
    assert verify(input=root, out=out, limit=7).exit_code == 0
    score_folder(pair(models), root, out)
    assert len(list(out.glob("a.rows-*.parquet"))) == 3
    write_shard(root, "b.parquet", {"text": ["good"], "n": [1]})
    again = score_folder(pair(models), root, out)
    assert again.summary["run"]["rows"] == 1
    assert {pq.ParquetFile(path).schema_arrow.field("n").type for path in out.glob("*.parquet")} == {pa.int64()}
    findings = verify(input=root, out=out, full=True)
    assert (findings.exit_code, findings.compared) == (0, 13), findings.report()


def test_int8_and_number_type_hold_for_all_models(in_process, tiny_encoder, tmp_path):
    write_shard(tmp_path / "in", "a.parquet", {"text": ["good", "bad", None]})
    checked = {
        name: make_bundle(
            tiny_encoder, tmp_path / name, max_length=length, int8={"agreement": 1, "rows": 9, "layers": 12}
        )
        for name, length in (("a", 32), ("b", 16))
    }
    result = score_folder(checked, tmp_path / "in", tmp_path / "out", int8=True, precision="float32")
    for name in ("a", "b"):
        assert result.summary["models"][name]["computed_by"][0].startswith("int8 ")
        assert any(re.match(rf"{name}: int8 \w+ measured ", line) for line in result.summary["run"]["computed_by"])
    assert verify(input=tmp_path / "in", out=tmp_path / "out", full=True).exit_code == 0


def test_a_unit_that_one_model_cannot_do_leaves_the_others_alone(in_process, models, tmp_path):
    guard = TaskGuard.start(60.0)
    for name, text in (("a", "good"), ("b", "awful"), ("c", "fine")):
        write_shard(tmp_path / "in", f"{name}.parquet", {"text": [text, "bad"]})
    plan = plan_folder(pair(models), tmp_path / "in", tmp_path / "out")
    files = {name: ray.put(content) for name, content in plan.bundle_files.items()}
    engine = {"threads": 1, "backend": "torch", "on_cpu": True}
    stage = stages.ClassifyStage(plan.models, files, dict.fromkeys(files, engine), guard)
    table = stages.read_and_tokenize(TaskTable.build(plan.units_to_score).table, plan.context, files, guard)
    awful = TaskTable(table).tokens("emotion").select(np.array([2])).lists.ids[1]

    def refuse(module, inputs):
        if (inputs[0] == awful).any():
            raise ValueError("awful")

    expected = TaskTable(stage(table))
    stage.engines["sentiment"].backend.encoder.register_forward_pre_hook(refuse)
    task = TaskTable(stage(table))
    assert task.errors == ["", "sentiment: ValueError: awful", ""]
    for name, classes in (("emotion", 3), ("sentiment", 2)):
        np.testing.assert_allclose(
            task.probabilities(name, classes), expected.probabilities(name, classes)[[0, 1, 4, 5]], atol=1e-3
        )
    assert len(task.lengths("emotion")) == len(task.status("emotion")) == 4


def test_models_that_do_not_fit_into_memory_are_said_in_one_sentence(ray_here, models, monkeypatch, tmp_path):
    opened = open_models(pair(models))
    described = describe_models(opened)
    files = {name: ray.put(model.files) for name, model in opened.items()}

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(UserError, match="the models emotion, sentiment do not fit into the memory of one worker"):
        stages.ClassifyStage(described, files, {key: {} for key in files}, TaskGuard.start(60.0))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0, "memory": 5e9}}])
    preflight.check_memory(2_000_000_000, "a, b", 2, "CPU")
    with pytest.raises(
        UserError, match=r"the models a, b have 3\.0 GB of weights, .* each of 2 workers .* 5\.0 GB of memory"
    ):
        preflight.check_memory(3_000_000_000, "a, b", 2, "CPU")


def test_a_model_that_cannot_be_loaded_is_named(ray_here, models, monkeypatch):
    opened = open_models(pair(models))
    files = {name: ray.put(model.files | {"model.safetensors": b"torn"}) for name, model in opened.items()}
    with pytest.raises(RuntimeError, match=r"^emotion: "):
        stages.ClassifyStage(describe_models(opened), files, {key: {} for key in files}, TaskGuard.start(60.0))


def test_a_path_that_was_read_as_a_name_is_told_as_it_was_given(tmp_path):
    path = f"lr=/{tmp_path}/nowhere"
    with pytest.raises(UserError, match=rf"nowhere .*\(--model {path} does not exist as a path"):
        open_models(path)


def test_ray_data_runs_several_models(ray_here, models, corpus, scored, tmp_path):
    """Through the stream's own processes, and to the same bytes as in one."""
    first = read_run_file(scored["three"])
    outputs.write_run_file(str(tmp_path / "out"), first)
    chosen = dict(list(models.items())[:3])
    result = score(model=chosen, input=corpus, out=tmp_path / "out", probabilities=True)
    assert (result.exit_code, result.summary["run"]["rows"]) == (0, len(TEXTS) + 9)
    written, before = (
        {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.parquet")}
        for folder in (result.place, scored["three"].place)
    )
    assert written == before
    run_file = outputs.read_run_file(result.place)
    assert run_file is not None
    assert run_file.computed_by == first.computed_by
    findings = verify(input=corpus, out=result.place, full=True)
    assert (findings.exit_code, findings.compared) == (0, len(TEXTS) + 9), findings.report()
    assert replace(run_file, model="") == replace(first, model="")
