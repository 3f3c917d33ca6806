"""Scoring with a cascade: each row is that of the model that should answer it, and every promise of a run holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray

from sentiment_core import verify
from sentiment_core.errors import UserError
from sentiment_core.inference.cascade import Cascade
from sentiment_core.inference.classified import Classified
from sentiment_core.model import bundle
from sentiment_core.model.objective import SingleLabel
from sentiment_core.runtime.task_guard import TaskGuard
from sentiment_core.scoring import comparison, outputs, stages
from sentiment_core.scoring.job import ScoreResult
from sentiment_core.scoring.models import describe_models, open_models
from sentiment_core.scoring.outputs import COUNTS_KEY
from sentiment_core.scoring.task_table import TaskTable
from sentiment_core.text.token_lists import DistinctLists, TokenLists
from tests.cascades import Models, load, make_models, make_texts
from tests.scoring.runs import plan_folder, read_scored, score_folder, stages_in_process, write_shard

TEXTS = [*make_texts(60, seed=1), None, " ", "word " * 40]


@pytest.fixture(scope="module")
def models(packaged_encoder, tmp_path_factory) -> Models:
    return make_models(packaged_encoder, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "in"
    write_shard(root, "k=1/a.parquet", {"id": range(len(TEXTS)), "text": TEXTS})
    write_shard(root, "k=2/b.parquet", {"id": range(9), "text": [*TEXTS[:8], "none of these"]})
    return root


@pytest.fixture(scope="module")
def scored(ray_here, models, corpus, tmp_path_factory) -> ScoreResult:
    with stages_in_process():
        return score_folder(models.cascade, corpus, tmp_path_factory.mktemp("scored") / "out", probabilities=True)


CORPUS_TEXTS = (*TEXTS, *TEXTS[:8], "none of these")


def expected_rows(
    models: Models, texts: Sequence[str | None] = CORPUS_TEXTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities, status codes, and whether a row goes to the large model, of the texts in order."""
    small, large = load(models.small), load(models.large)
    (of_small, small_status), (of_large, large_status) = (model.predict_with_status(texts) for model in (small, large))
    of_large = of_large[:, [large.labels.index(label) for label in small.labels]]
    goes_on = of_small.max(axis=1) < np.float32(bundle.read_info(models.cascade).cascade.threshold)
    return (
        np.where(goes_on[:, None], of_large, of_small),
        np.where(goes_on, large_status, small_status),
        goes_on,
    )


def test_each_row_is_that_of_the_model_that_should_answer_it(scored, models):
    table = read_scored(scored.place)
    probabilities, status, goes_on = expected_rows(models)
    stored = np.array([row or [np.nan] * 3 for row in table["probabilities"].to_pylist()])
    near = np.isclose(stored, probabilities, atol=0.02, equal_nan=True).all(axis=1)
    assert near.all()
    assert table["status"].to_pylist() == names(status)
    assert scored.summary["escalated_rows"] == goes_on.sum()
    assert 5 < goes_on.sum() < len(table) - 5
    assert scored.summary["rows"] == len(table) == len(TEXTS) + 9
    share = 100 * goes_on.sum() / sum(scored.summary["confidence_histogram"])
    assert scored.summary["escalated_share"] == pytest.approx(share / 100)
    told = f"{goes_on.sum()} computed rows went to the large model of the cascade, {share:.1f} % of this run's"
    assert told in scored.report()
    assert scored.summary["run"]["computed_by"][0].startswith("small: ")
    assert "; large: " in scored.summary["run"]["computed_by"][0]


def names(codes: np.ndarray) -> list[str]:
    return [comparison.STATUS_NAMES[code] for code in codes]


@pytest.mark.journey
def test_actors_of_ray_score_the_same(ray_here, scored, models, corpus, tmp_path):
    """Each gets both models; the tasks that read get both tokenizers without weights."""
    result = score_folder(models.cascade, corpus, tmp_path / "out", probabilities=True)
    assert result.exit_code == 0
    assert result.summary["escalated_rows"] == scored.summary["escalated_rows"]
    stored, expected = (
        np.array([row or [np.nan] * 3 for row in read_scored(run.place)["probabilities"].to_pylist()])
        for run in (result, scored)
    )
    np.testing.assert_allclose(stored, expected, atol=0.02)


def test_footers_count_the_rows_that_went_on(scored, models):
    footers = {
        path.name: json.loads(pq.read_metadata(path).metadata[COUNTS_KEY])
        for path in Path(scored.place).rglob("*.parquet")
    }
    _, _, goes_on = expected_rows(models)
    assert footers["a.parquet"]["escalated_rows"] == goes_on[: len(TEXTS)].sum()
    assert footers["b.parquet"]["escalated_rows"] == goes_on[len(TEXTS) :].sum()


def test_all_rows_are_verified_and_a_changed_one_is_found(in_process, scored, corpus, tmp_path):
    findings = verify(input=corpus, out=scored.place, full=True)
    assert (findings.exit_code, findings.compared) == (0, len(TEXTS) + 9), findings.report()
    path = Path(scored.place) / "k=1" / "a.parquet"
    content, table = path.read_bytes(), pq.ParquetFile(path).read()
    i = table.column_names.index("confidence")
    lower = pc.subtract(table["confidence"], pa.scalar(0.2, pa.float32()))
    pq.write_table(table.set_column(i, table.schema.field(i), lower), path)
    try:
        findings = verify(input=corpus, out=scored.place, full=True)
        assert findings.exit_code == 1
        assert "k=1/a.parquet: " in findings.different[0]
    finally:
        path.write_bytes(content)


def test_a_rerun_scores_only_what_is_missing_by_the_same_choices(in_process, scored, models, corpus):
    path = Path(scored.place) / "k=2" / "b.parquet"
    before, run_file = path.read_bytes(), outputs.read_run_file(scored.place)
    path.unlink()
    again = score_folder(models.cascade, corpus, scored.place, probabilities=True)
    assert (again.summary["run"]["rows"], again.summary["rows"]) == (9, len(TEXTS) + 9)
    assert again.summary["escalated_rows"] == scored.summary["escalated_rows"]
    scored_rows = sum(again.summary["confidence_histogram"]) - sum(
        json.loads(pq.read_metadata(path.parents[1] / "k=1" / "a.parquet").metadata[COUNTS_KEY])["confidence_histogram"]
    )
    footer = json.loads(pq.read_metadata(path).metadata[COUNTS_KEY])
    assert again.summary["escalated_share"] == footer["escalated_rows"] / scored_rows  # of this run alone
    assert path.read_bytes() == before
    (choice,) = run_file.choices[""].values()
    assert choice.startswith("small: ")
    assert "; large: " in choice


def test_another_threshold_is_another_bundle(scored, models, corpus, tmp_path):
    files = bundle.read_files(models.cascade)[1]
    card = json.loads(files[bundle.CARD])
    card["cascade"]["threshold"] = 0.5
    for name, content in (files | {bundle.CARD: json.dumps(card).encode()}).items():
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_bytes(content)
    with pytest.raises(UserError, match="was made with other settings"):
        plan_folder(tmp_path / "other", corpus, scored.place, probabilities=True)


def test_costs_are_said_before_the_run(scored, models, corpus, tmp_path, command):
    share = bundle.read_info(models.cascade).cascade.escalated_share
    flags = ["--model", models.cascade, "--input", corpus, "--out", tmp_path / "out", "--dry-run"]
    code, stdout, stderr = command("score", *flags)
    assert code == 0, stderr
    assert f"cascade: about {100 * share:.0f} % of the rows go to the large model, as of the 600 rows" in stdout
    assert not (tmp_path / "out").exists()
    assert plan_folder(models.cascade, corpus, scored.place, probabilities=True).describe_cascades() == []


@pytest.mark.slow
def test_8_bits_are_refused(models, corpus, tmp_path):
    with pytest.raises(UserError) as caught:
        plan_folder(models.cascade, corpus, tmp_path / "out", int8=True)
    assert str(caught.value) == (
        f"--int8: --model {models.cascade} is a cascade, whose threshold was chosen without 8 bits. Score without "
        "--int8."
    )


def test_a_cascade_stands_beside_its_own_models_in_one_pass(in_process, scored, models, corpus, tmp_path):
    together = {"both": models.cascade, "alone": models.small}
    described = {model.name: model for model in describe_models(open_models(together))}
    assert described["both"].tokenizers == ("alone", "both/large")  # the small model's lists are made once
    result = score_folder(together, corpus, tmp_path / "out")
    assert result.summary["models"]["both"]["escalated_rows"] == scored.summary["escalated_rows"]
    assert "escalated_rows" not in result.summary["models"]["alone"]
    assert "both: " in result.report()
    findings = verify(input=corpus, out=tmp_path / "out", full=True)
    assert findings.exit_code == 0, findings.report()


def test_a_unit_that_the_large_model_cannot_do_leaves_the_others_alone(in_process, models, tmp_path):
    for name in ("a", "b", "c"):
        write_shard(tmp_path / "in", f"{name}.parquet", {"text": make_texts(9, seed=ord(name))})
    plan = plan_folder(models.cascade, tmp_path / "in", tmp_path / "out")
    files = {"": ray.put(plan.bundle_files[""])}
    guard = TaskGuard.start(60.0)
    settings = {"threads": 1, "backend": "torch", "on_cpu": True, "tolerance": 0.02}
    stage = stages.ClassifyStage(plan.models, files, {"": settings}, guard)
    table = stages.read_and_tokenize(TaskTable.build(plan.units_to_score).table, plan.context, files, guard)
    expected = TaskTable(stage(table)).classified("", 3)
    large = stage.engines[""].engines["large"]
    whole, calls = large.distinct_probabilities, []

    def refuse(tokens: DistinctLists) -> Any:
        calls.append(tokens)
        if len(calls) in (1, 3):  # of the task, and of its second unit
            raise ValueError("awful")
        return whole(tokens)

    large.distinct_probabilities = refuse
    task = TaskTable(stage(table))
    assert task.errors == ["", "ValueError: awful", ""]
    classified, left = task.classified("", 3), [*range(9), *range(18, 27)]
    np.testing.assert_allclose(classified.probabilities, expected.probabilities[left], atol=1e-3)
    assert classified.escalated.tolist() == expected.escalated[left].tolist()


class FixedEngine:
    """An engine whose probabilities are known."""

    objective, classes, chip, is_usable = SingleLabel(), 2, "a chip", True

    def __init__(self, probabilities: list[float]) -> None:
        first = np.array(probabilities, np.float32)
        self.probabilities, self.computed = np.stack([first, 1 - first], axis=1), []

    def distinct_probabilities(self, tokens: DistinctLists) -> tuple[np.ndarray, int]:
        """Return those of the rows that the tokens number."""
        rows = tokens.lists.ids[tokens.inverse]
        self.computed.append(rows.tolist())
        return self.probabilities[rows], len(rows)


def test_near_the_threshold_both_models_answer_where_that_is_asked_for():
    rows = DistinctLists(TokenLists(np.arange(5, dtype=np.int32), np.arange(6)), np.arange(5))
    small, large = FixedEngine([0.95, 0.81, 0.79, 0.6, 0.8]), FixedEngine([0.1, 0.2, 0.3, 0.4, 0.45])
    classified = Cascade(small, large, 0.8, [0, 1]).classify(rows, rows)
    assert classified.escalated.tolist() == [False, False, True, True, False]
    assert classified.others is None
    assert large.computed.pop() == [2, 3]
    np.testing.assert_allclose(classified.probabilities[:, 0], [0.95, 0.81, 0.3, 0.4, 0.8])
    classified = Cascade(small, large, 0.8, [1, 0], tolerance=0.02).classify(rows, rows)
    assert large.computed.pop() == [1, 2, 3, 4]
    np.testing.assert_allclose(classified.probabilities[:, 0], [0.95, 0.81, 0.7, 0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(classified.others[:, 0], [np.nan, 0.8, 0.79, np.nan, 0.55], rtol=1e-6)
    assert classified.padding_tokens == 5 + 4
    assert Classified.join([classified, classified]).others.shape == (10, 2)


def test_verification_accepts_either_answer_near_the_threshold_only(in_process, models, tmp_path):
    """The same rows, scored with a threshold that is a little lower, and with one that is much lower."""
    texts = pq.read_table(models.data)["text"].to_pylist()  # enough for some to lie near
    write_shard(tmp_path / "in", "a.parquet", {"text": texts})
    files = bundle.read_files(models.cascade)[1]
    card = json.loads(files[bundle.CARD])
    threshold = card["cascade"]["threshold"]
    _, _, goes_on = expected_rows(models, texts)
    digest = bundle.digest_of(files)
    for lower, exit_code in ((0.015, 0), (0.3, 1)):
        place = tmp_path / f"lower-{lower}"
        changed = card | {"cascade": card["cascade"] | {"threshold": threshold - lower}}
        for name, content in (files | {bundle.CARD: json.dumps(changed).encode()}).items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
        result = score_folder(place, tmp_path / "in", tmp_path / f"out-{lower}")
        assert result.summary["escalated_rows"] < goes_on.sum()
        rename_bundle(Path(result.place), result.summary["bundle"], digest, models.cascade)
        findings = verify(input=tmp_path / "in", out=result.place, full=True)
        assert (findings.exit_code, bool(findings.different)) == (exit_code, exit_code == 1), findings.report()


def rename_bundle(out: Path, before: str, after: str, path: str) -> None:
    """Make an output look as if another bundle had made it."""
    run_file = json.loads((out / outputs.RUN_FILE).read_text().replace(before, after))
    (out / outputs.RUN_FILE).write_text(json.dumps(run_file | {"model": path}))
    for file in out.rglob("*.parquet"):
        table = pq.ParquetFile(file).read()
        metadata = {key: value.replace(before.encode(), after.encode()) for key, value in table.schema.metadata.items()}
        pq.write_table(table.replace_schema_metadata(metadata), file)
