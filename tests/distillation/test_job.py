"""Students learn what a teacher answers; the bundle says who taught it; a stopped run resumes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.analysis.model_errors import find_model_errors
from sentiment_core.analysis.scored_rows import open_output
from sentiment_core.api import Classifier
from sentiment_core.distillation import job as distillation
from sentiment_core.distillation.job import distill
from sentiment_core.distillation.settings import DistillSettings
from sentiment_core.errors import EXIT_FAULT, UserError
from sentiment_core.model import bundle
from sentiment_core.model.distillation_record import Distillation
from sentiment_core.model.records import GuaranteeGrid
from sentiment_core.runtime import storage
from sentiment_core.subcommands import COMMANDS
from sentiment_core.training.job import train
from sentiment_core.training.settings import TrainSettings
from tests.conftest import sentences
from tests.scoring.runs import score_folder

FAST = {"max_length": 32, "lr": 1e-4, "head_lr": 1e-3, "batch_size": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def teacher(ray_here, short_encoder, labelled, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("teacher") / "bundle")
    trained = train(TrainSettings(data=labelled, model=short_encoder, out=out, epochs=3, **FAST))
    assert trained.info.metrics.accuracy > 0.95
    return out


@pytest.fixture
def texts(tmp_path) -> str:
    """Write texts without labels, in two files, a hundred of them twice, beside columns named as answers are."""
    (tmp_path / "texts").mkdir()
    table = sentences(700, seed=5)
    numbered = pa.array([f"{text} number {i}" for i, text in enumerate(table["text"].to_pylist())])
    for name, own in {"a": numbered.slice(0, 400), "b": numbered.slice(300)}.items():
        others = {column: ["?"] * len(own) for column in ("label", "confidence", "status", "probabilities")}
        pq.write_table(pa.table({"text": own} | others), tmp_path / "texts" / f"{name}.parquet")
    return str(tmp_path / "texts")


@pytest.mark.journey
def test_a_student_agrees_with_its_teacher_and_its_bundle_says_so(in_process, teacher, short_encoder, texts, tmp_path):
    evaluation = sentences(200, seed=6)
    pq.write_table(evaluation, tmp_path / "eval.parquet")
    leak = pa.table({"text": [*evaluation["text"].to_pylist()[:20], None, ""]})
    pq.write_table(leak, Path(texts) / "leak.parquet")
    out = tmp_path / "students" / "small"
    result = distill(
        DistillSettings(
            teacher=teacher, texts=texts, eval_data=str(tmp_path / "eval.parquet"), model=short_encoder, layers=1,
            out=str(out), epochs=3, **FAST,
        )
    )  # fmt: skip
    assert sorted(path.name for path in out.parent.iterdir()) == ["small"]  # no work folder left
    info = bundle.read_info(str(out))
    assert info.to_json() == json.loads(json.dumps(result.info.to_json()))
    record = info.distillation
    assert record.teacher == teacher
    assert record.teacher_bundle == bundle.digest_of(bundle.read_files(teacher)[1])
    leaked = len([text for text in leak["text"].to_pylist() if text])
    assert (record.texts.rows, record.texts.copies, record.texts.evaluation_texts) == (700, 100, leaked)
    assert (record.texts.without_answer, record.labelled_rows, record.evaluated_on) == (2, 0, "labels")
    assert record.agreement > 0.95
    assert record.student.accuracy == pytest.approx(info.metrics.accuracy)
    assert record.teacher_shows.accuracy > 0.85
    assert min(record.student.rows_per_second, record.teacher_shows.rows_per_second) > 0
    assert info.guarantee.rows == 200
    assert info.training.data.train_rows == 700
    assert info.training.settings["teacher"] == teacher
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    told = f"{leaked} rows of --texts have texts of evaluation rows and were left out"
    assert told in result.summary()
    assert f"agreement of student and teacher: {record.agreement:.4f} of 200 evaluation rows" in result.summary()
    card = (out / "README.md").read_text()
    assert f"Fine-tuned from `{short_encoder}`, 1 of its layers (head: standard)" in card
    assert f"Taught by `{teacher}`" in card
    assert f"| rows decided right | {record.student.accuracy:.4f} | {record.teacher_shows.accuracy:.4f} |" in card
    assert f"sentiment-core distill --model {short_encoder}" in (out / "report.html").read_text()
    Classifier.load(str(out))


def test_a_run_that_stopped_after_scoring_resumes_with_what_was_scored(
    in_process, tiny_bundle, tiny_encoder, texts, labelled, tmp_path, monkeypatch, capfd
):
    """A file of texts is deleted meanwhile, and the student gets another length."""
    table = pq.read_table(labelled)
    no_token = pa.table({"text": ["\x07"], "label": ["positive"]}).cast(table.schema)
    data, gone = tmp_path / "data.parquet", Path(texts, "c.parquet")
    pq.write_table(pa.concat_tables([table, no_token]), data)
    pq.write_table(pa.table({"text": ["a text that is deleted"]}), gone)
    out, work = str(tmp_path / "small"), tmp_path / "_distilling-small"
    settings = DistillSettings(
        teacher=tiny_bundle, texts=texts, data=str(data), model=tiny_encoder, out=out, epochs=1, **FAST
    )

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def distill_until(name: str, wanted: DistillSettings) -> dict[Path, int]:
        """Stop at a function; return when each output was scored."""
        with monkeypatch.context() as patch:
            patch.setattr(distillation, name, stop)
            with pytest.raises(KeyboardInterrupt):
                distill(wanted)
        return {path: path.stat().st_mtime_ns for path in (work / "scored").glob("*.parquet")}

    first = distill_until("train", settings)
    assert len(first) == 3
    gone.unlink()
    unfinished = work / "_training-student"  # of the old length, as a training leaves it that is killed
    (unfinished / "run").mkdir(parents=True)
    (unfinished / "run" / "checkpoint_manager_snapshot.json").write_text("{}")
    (unfinished / "request.json").write_text("{}")
    longer = replace(settings, max_length=40)
    scored = distill_until("_publish", longer)
    assert len(scored) == 2
    assert scored.items() < first.items()
    assert not unfinished.exists()
    trained = (work / "student" / "sentiment.json").stat().st_mtime_ns

    output = min(scored)
    content = output.read_bytes()
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # of what stands before the footer
    output.write_bytes(content[:4] + bytes(end - 4) + content[end:])
    with pytest.raises(UserError, match=r"^a\S*\.parquet of .* cannot be read"):
        distill(longer)
    output.write_bytes(content)
    assert set((work / "scored").glob("*.parquet")) == set(scored)

    summary = work / "scored" / "_summary.json"
    summary.unlink()
    (summary / "folder").mkdir(parents=True)  # so that it cannot be written
    assert COMMANDS["distill"].run(longer) == EXIT_FAULT
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the teacher's scoring of --texts stopped: _summary.json cannot be written: ")
    assert error.endswith("; finished files are kept; rerun the same command to resume")
    shutil.rmtree(summary)
    kept = {}
    copy = bundle.copy

    def look(*arguments: object) -> None:
        kept.update({path.name: path.stat().st_mtime_ns for path in (work / "student").iterdir()})
        copy(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "copy", look)
        result = distill(longer)
    assert kept["sentiment.json"] == trained
    assert not storage.exists(str(work))
    record, info = result.info.distillation, result.info
    assert info.max_length == 40
    assert (record.texts.rows, record.evaluated_on) == (700, "labels")
    assert info.training.data.dropped.without_tokens + info.training.eval_data.dropped.without_tokens == 1
    assert info.training.data.train_rows + info.metrics.n == 640 + 700


def test_an_output_of_score_teaches_and_without_labels_metrics_are_agreement(
    in_process, multi_label_bundle, tiny_encoder, texts, tmp_path
):
    """The teacher gives several labels a row."""
    scored = str(tmp_path / "scored")
    score_folder(multi_label_bundle, texts, scored, keep=("text",))
    Path(scored, "_SUCCESS").unlink()
    out = str(tmp_path / "small")
    result = distill(DistillSettings(texts=scored, model=tiny_encoder, out=out, epochs=1, **FAST))
    record = result.info.distillation
    told = f"--texts {scored} is not complete. Run sentiment-core score again to learn all of its input."
    assert told in result.warnings
    assert (record.teacher, record.answers) == (multi_label_bundle, "probabilities")
    assert (record.rows, record.texts.rows) == (70, 630)
    assert result.info.objective.several
    assert result.info.labels == ["anger", "joy", "love"]
    assert record.is_by_teacher
    assert record.agreement == pytest.approx(result.info.metrics.exact_match, abs=0.02)
    assert (record.student.accuracy, record.teacher_shows.ece) == (None, None)
    assert record.teacher_shows.rows_per_second > 0
    assert result.info.guarantee == GuaranteeGrid()
    assert "the evaluation rows have the teacher's labels: accuracy is agreement with the teacher" in result.summary()
    card = Path(out, "README.md").read_text()
    assert "agreement with the teacher, not accuracy" in card
    assert "results: []" in card
    score_folder(out, texts, tmp_path / "again", keep=())
    errors = find_model_errors(open_output(str(tmp_path / "again")))
    assert errors.reason == f"the evaluation rows of the bundle at {out} have the labels of its teacher; label a sample"


@pytest.mark.journey
def test_probabilities_of_someone_teach_without_a_model(ray_here, short_encoder, tmp_path):
    """They are never sure, and so is the student."""
    table = sentences(640, seed=8)
    unsure = {
        "positive": {"positive": 0.6, "negative": 0.4},
        "negative": {"positive": 0.4, "negative": 0.6},
    }
    pairs = zip(*(table[name].to_pylist() for name in ("text", "label")), strict=True)
    rows = [{"text": f"{text} {i}", "probabilities": unsure[label]} for i, (text, label) in enumerate(pairs)]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = str(tmp_path / "s")
    settings = FAST | {"lr": 5e-4, "head_lr": 2e-3}
    result = distill(DistillSettings(texts=str(path), model=short_encoder, out=out, epochs=4, **settings))
    record = result.info.distillation
    assert (record.teacher, record.teacher_bundle, record.teacher_shows) == (str(path), None, None)
    assert record.agreement == pytest.approx(result.info.metrics.accuracy, abs=0.05)
    assert record.agreement > 0.9
    assert result.info.labels == ["negative", "positive"]
    entropy = -0.6 * np.log(0.6) - 0.4 * np.log(0.4)
    assert np.mean(result.log[-1].losses) == pytest.approx(entropy, abs=0.03)  # that of labels comes to be 0
    confidences = Classifier.load(out).predict_proba([row["text"] for row in rows]).max(axis=1)
    assert confidences.mean() == pytest.approx(0.6, abs=0.03)
    assert result.info.calibration.temperature > 0.3  # labels ask for the least
    assert result.info.calibration.ece_after < 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "s"]


def test_records_of_distillation_are_read_back(tiny_bundle):
    assert bundle.read_info(tiny_bundle).distillation == Distillation()
    assert Distillation().to_json() == {}
    record = Distillation(teacher="t", agreement=0.5, rows=3)
    assert Distillation.from_json(json.loads(json.dumps(record.to_json()))) == record
