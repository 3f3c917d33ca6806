"""`cascade`: what it makes and says, what takes it, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from sentiment_core import Classifier, evaluate
from sentiment_core.adoption import AdoptSettings, adopt
from sentiment_core.cascading.job import make_cascade
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, source
from sentiment_core.model.known_texts import hash_training_texts
from sentiment_core.serving.model import ServedModel
from tests.cascades import ROWS, Models, load, make_models, make_texts, settings_of
from tests.conftest import make_bundle
from tests.ready_models import LABELS

pytestmark = pytest.mark.slow

TEXTS = [*make_texts(60, seed=1), None, " ", "word " * 40]


@pytest.fixture(scope="module")
def models(packaged_encoder, tmp_path_factory) -> Models:
    return make_models(packaged_encoder, tmp_path_factory.mktemp("models"))


def refusal(models: Models, **changes: object) -> str:
    """Return the sentence with which a request is refused, and check that it leaves nothing."""
    with pytest.raises(UserError) as caught:
        make_cascade(settings_of(models, **changes))
    assert not Path(str(changes["out"])).exists()
    return str(caught.value)


def test_the_command_says_what_the_cascade_does_and_costs(models, tmp_path, command):
    out = tmp_path / "out"
    flags = ["--small", models.small, "--large", models.large, "--data", models.data, "--max-loss", 0.1]
    code, stdout, stderr = command("cascade", *flags, "--out", out)
    assert code == 0, stderr
    record = bundle.read_info(str(out)).cascade
    lines = stdout.splitlines()
    assert lines[0].startswith("600 labelled rows that neither model has seen; speeds of the engines alone (")
    assert lines[1].startswith(
        f"small   accuracy {record.small_accuracy:.4f}, {record.small_rows_per_second:,.1f} rows/s"
    )
    assert lines[2].startswith(f"large   accuracy {record.large_accuracy:.4f}, ")
    assert lines[3] == f"cascade accuracy {record.accuracy:.4f}, {record.rows_per_second:,.1f} rows/s, as estimated"
    assert lines[4] == (
        f"{100 * record.escalated_share:.1f} % of the rows go to the large model: those with less confidence than "
        f"{record.threshold:.4g}"
    )
    assert lines[5] == (
        "of rows drawn like these the small model keeps at most 10 % that only the large model gets right, with "
        f"certainty 0.95 ({100 * record.loss:.2f} % of these rows)"
    )
    assert lines[-1] == f"bundle: {out}"
    assert f"{record.threshold:.6g}" in (out / "README.md").read_text()


def test_the_record_is_what_the_rows_show(models):
    info = bundle.read_info(models.cascade)
    record, table = info.cascade, pq.read_table(models.data)
    texts, truth = table["text"].to_pylist(), table["label"].to_numpy()
    small, large, cascade = (load(path) for path in (models.small, models.large, models.cascade))
    right = {}
    for name, model in (("small", small), ("large", large), ("cascade", cascade)):
        right[name] = np.array(model.labels)[model.predict_proba(texts).argmax(axis=1)] == truth
    kept = small.predict_proba(texts).max(axis=1) >= np.float32(record.threshold)
    assert 0.1 < record.escalated_share < 0.9
    assert record.escalated_share == pytest.approx(1 - kept.mean(), abs=0.01)
    assert record.loss == pytest.approx((right["large"] & ~right["small"] & kept).mean(), abs=0.01)
    assert record.loss < record.max_loss == 0.1
    for name in right:
        noted = getattr(record, "accuracy" if name == "cascade" else f"{name}_accuracy")
        assert noted == pytest.approx(right[name].mean(), abs=0.01)
    assert record.accuracy > max(record.small_accuracy, record.large_accuracy)
    assert info.metrics.accuracy == record.accuracy
    assert (info.metrics.n, info.reference.rows, info.guarantee.rows) == (ROWS, ROWS, ROWS)
    assert info.guarantee.comparisons > 1_500  # the rows chose one of so many thresholds
    assert (info.labels, info.head, info.format_version) == ([*LABELS[::-1]], "cascade", 3)


def test_each_text_gets_the_answer_of_the_model_that_should_give_it(models):
    small, large, cascade = (load(path) for path in (models.small, models.large, models.cascade))
    threshold = np.float32(cascade.info.cascade.threshold)
    probabilities, status = cascade.predict_with_status(TEXTS)
    (of_small, small_status), (of_large, large_status) = (model.predict_with_status(TEXTS) for model in (small, large))
    of_large = of_large[:, [large.labels.index(label) for label in small.labels]]
    goes_on = of_small.max(axis=1) < threshold
    assert 5 < goes_on.sum() < 55
    np.testing.assert_allclose(probabilities, np.where(goes_on[:, None], of_large, of_small), atol=0.02)
    assert status.tolist() == np.where(goes_on, large_status, small_status).tolist()
    assert (small_status != large_status).any()  # one reads more of a text than the other
    assert cascade.computed_by == f"small: {small.computed_by}; large: {large.computed_by}"
    assert np.isnan(probabilities[[60, 61]]).all()


def test_a_cascade_is_served_and_evaluated_like_another_bundle(models, tmp_path):
    files = source.open_model(models.cascade).files
    served = ServedModel(files, threads=1, min_confidence=0.0, precision="float32")
    labels = [prediction.label for prediction in Classifier(files, precision="float32").predict(TEXTS)]
    assert [result.label for result in served.answer([TEXTS])[0].results] == labels
    metrics = evaluate(model=models.cascade, data=models.data, target_accuracy=0.5, suspects=str(tmp_path / "s.csv"))
    assert metrics["accuracy"] == pytest.approx(bundle.read_info(models.cascade).cascade.accuracy, abs=0.01)
    assert metrics["guarantee"]["min_confidence"] is not None


def test_a_cascade_can_be_promoted(models, tiny_encoder, tmp_path, command):
    for name, path in (("small", models.small), ("cascade", models.cascade)):
        shutil.copytree(path, tmp_path / name)
        code, _, stderr = command("promote", "--models", tmp_path, "--bundle", name)
        assert code == 0, stderr
    assert Classifier.load(tmp_path).digest == load(models.cascade).digest


def test_the_digest_changes_with_the_threshold_and_with_each_model(models, tmp_path):
    files = bundle.read_files(models.cascade)[1]
    card = json.loads(files[bundle.CARD])
    changed = card | {"cascade": card["cascade"] | {"threshold": 0.5}}
    renamed = card | {"cascade": card["cascade"] | {"chip": "another"}}
    digest = bundle.digest_of(files)
    assert bundle.digest_of(files | {bundle.CARD: json.dumps(changed).encode()}) != digest
    assert bundle.digest_of(files | {bundle.CARD: json.dumps(renamed).encode()}) == digest
    for part in bundle.PARTS:
        name = f"{part}/{bundle.WEIGHTS}"
        assert bundle.digest_of(files | {name: files[name] + b" "}) != digest
    small = source.open_model(models.small).files
    assert bundle.tokens_digest_of(files) == bundle.tokens_digest_of(small)
    assert {part: bundle.digest_of(own) for part, own in bundle.parts_of(files).items()} == {
        "small": bundle.digest_of(small),
        "large": bundle.digest_of(source.open_model(models.large).files),
    }


def test_a_cascade_without_its_rule_is_refused(models, tmp_path):
    card = json.loads(Path(models.cascade, bundle.CARD).read_text())
    (tmp_path / bundle.CARD).write_text(json.dumps(card | {"cascade": {}}))
    with pytest.raises(UserError) as caught:
        bundle.read_info(str(tmp_path))
    assert str(caught.value) == (
        f"--model {tmp_path} is not a bundle: its sentiment.json is missing or damaged. Give a folder made by "
        "sentiment-core train, or a Hugging Face classifier."
    )


def test_a_cascade_that_lacks_a_model_is_refused(models, tmp_path):
    broken = shutil.copytree(models.cascade, tmp_path / "broken")
    shutil.rmtree(broken / "large")
    with pytest.raises(UserError) as caught:
        source.open_model(str(broken))
    assert str(caught.value) == (
        f"--model {broken}/large is not a bundle: the folder does not exist. Give a folder made by sentiment-core "
        "train, or a Hugging Face classifier."
    )


def test_rows_without_labels_hold_the_cascade_to_the_large_model(models, tmp_path):
    texts = pq.read_table(models.data).select(["text"])
    pa.csv.write_csv(texts, tmp_path / "texts.csv")
    result = make_cascade(
        settings_of(models, data=str(tmp_path / "texts.csv"), max_loss=0.3, out=str(tmp_path / "out"))
    )
    record = bundle.read_info(result.place).cascade
    assert not record.labelled
    assert (record.accuracy, record.small_accuracy, result.info.metrics.n) == (None, None, 0)
    kept_disagreement = record.loss
    assert 0 < kept_disagreement < 1 - record.agreement
    assert "% that the large model labels otherwise, with certainty 0.95" in result.summary()
    assert "600 rows without labels that neither model has seen" in result.summary()
    with pytest.raises(UserError, match=r"has no column 'mark'; it has text; choose with --label-column"):
        make_cascade(
            settings_of(models, data=str(tmp_path / "texts.csv"), label_column="mark", out=str(tmp_path / "other"))
        )


def test_rows_that_a_model_was_made_with_are_refused_or_left_out(models, tmp_path):
    seen = str(tmp_path / "seen.parquet")
    pq.write_table(pq.read_table(models.data).slice(0, 100), seen)
    trained = shutil.copytree(models.small, tmp_path / "trained")
    card = json.loads((trained / bundle.CARD).read_text())

    def note(**parts: str) -> None:
        (trained / bundle.CARD).write_text(
            json.dumps(card | {"training": {name: {"place": path} for name, path in parts.items()}})
        )

    out = str(tmp_path / "out")
    for name, kind in (("data", "training"), ("eval_data", "evaluation")):
        note(**{name: models.data})
        assert refusal(models, small=str(trained), out=out) == (
            f"--data {models.data} holds the {kind} rows of --small {trained}, which promise nothing for other rows; "
            "give rows that neither model has seen"
        )
    note(data=seen)
    result = make_cascade(settings_of(models, small=str(trained), out=out))
    assert result.info.cascade.rows == ROWS - 100
    assert "100 rows were left out: a model was trained or evaluated on their texts" in result.summary()
    hashes, remark = hash_training_texts(out)
    assert len(hashes) == ROWS  # those that chose the threshold too
    assert remark == (
        "the bundle that scored: what it was trained on is not noted; rows of it were not left out; give it with "
        "--exclude"
    )  # of the large model
    assert f"--large {models.large}: what it was trained on is not noted; make sure" in result.summary()


def test_what_is_gone_of_a_models_rows_is_told_and_the_rest_left_out(models, tmp_path):
    seen, gone = str(tmp_path / "seen.parquet"), str(tmp_path / "gone.csv")
    pq.write_table(pq.read_table(models.data).slice(0, 100), seen)
    small = Path(shutil.copytree(models.small, tmp_path / "small"))
    card = json.loads((small / bundle.CARD).read_text())
    training = {"data": {"place": gone}, "eval_data": {"place": seen}}
    (small / bundle.CARD).write_text(json.dumps(card | {"training": training}))
    result = make_cascade(settings_of(models, small=str(small), out=str(tmp_path / "out")))
    assert result.info.cascade.rows == ROWS - 100
    told = f"--small {small}: its training data {gone} is not at hand; make sure that --data has no row of it"
    assert told in result.summary()


def test_texts_that_a_teacher_answered_choose_no_threshold(models, tmp_path):
    small = Path(shutil.copytree(models.small, tmp_path / "small"))
    card = json.loads((small / bundle.CARD).read_text())
    taught = {"teacher": models.large, "texts": {"place": models.data, "rows": ROWS}}
    (small / bundle.CARD).write_text(json.dumps(card | {"distillation": taught}))
    assert f"holds the taught rows of --small {small}" in refusal(models, small=str(small), out=str(tmp_path / "out"))


def test_rows_of_the_large_model_are_known_in_its_own_order_of_labels(models, tmp_path):
    table = pq.read_table(models.data)
    copy = str(tmp_path / "copy.parquet")
    pq.write_table(table, copy)
    numbers = np.array([LABELS.index(label) for label in table["label"].to_pylist()])
    own = LabelledTexts(table["text"].to_pylist(), numbers, list(LABELS))
    large = str(tmp_path / "large")
    adopt(AdoptSettings(model=models.large, out=large))
    card = json.loads(Path(large, bundle.CARD).read_text())
    card["training"]["eval_data"] = {"place": "elsewhere.csv", "fingerprint": own.fingerprint()}
    Path(large, bundle.CARD).write_text(json.dumps(card))
    said = refusal(models, large=large, data=copy, out=str(tmp_path / "out"))
    assert said.startswith(f"--data {copy} holds the evaluation rows of --large {large}")


def test_a_folder_of_which_some_files_have_labels_is_refused(models, tmp_path):
    (tmp_path / "rows").mkdir()
    table = pq.read_table(models.data)
    pq.write_table(table.select(["text"]).slice(300), tmp_path / "rows" / "a.parquet")
    pq.write_table(table.slice(0, 300), tmp_path / "rows" / "b.parquet")
    said = refusal(models, data=str(tmp_path / "rows"), out=str(tmp_path / "out"))
    assert said == f"{tmp_path}/rows/a.parquet has no column 'label'; it has text; choose with --label-column"


def test_too_few_rows_are_refused_with_the_number_that_would_do(models, tmp_path):
    few, out = str(tmp_path / "few.parquet"), str(tmp_path / "out")
    pq.write_table(pq.read_table(models.data).slice(0, 28), few)
    assert refusal(models, data=few, out=out) == (
        f"--data {few} has 28 rows that neither model has seen; --max-loss 0.1 with certainty 0.95 needs at least 29, "
        "and with more of them fewer rows go to the large model"
    )


def test_a_large_model_that_gains_nothing_is_refused(models, tmp_path):
    table, out = pq.read_table(models.data), str(tmp_path / "out")
    own = np.array([prediction.label for prediction in load(models.small).predict(table["text"])])
    mastered = str(tmp_path / "mastered.parquet")
    pq.write_table(pa.table({"text": table["text"], "label": own}), mastered)
    said = refusal(models, data=mastered, out=out)
    assert said.startswith(f"nothing to gain: of 600 rows of --data {mastered} --large {models.large} gets ")
    assert said.endswith("; use the small model alone, or give a more accurate large one")
    said = refusal(models, max_loss=0.9, out=out)
    assert said.startswith(f"nothing to gain: --small {models.small} alone keeps to --max-loss 0.9 with certainty 0.95")
    others = np.array([prediction.label for prediction in load(models.large).predict(table["text"])])
    hopeless = str(tmp_path / "hopeless.parquet")  # the small model is wrong wherever it is sure
    pq.write_table(pa.table({"text": table["text"], "label": others}).filter(pa.array(own != others)), hopeless)
    rows = (own != others).sum()  # with which no row may be lost
    said = refusal(models, data=hopeless, max_loss=4 / rows, out=out)
    assert said.startswith(f"nothing to gain: with {rows} rows of --data {hopeless} no threshold keeps rows with ")
    assert said.endswith("; use the large model alone, give more rows, or raise --max-loss")


def test_models_that_make_no_cascade_are_refused(models, multi_label_bundle, tiny_encoder, tmp_path):
    out = str(tmp_path / "out")
    other = make_bundle(tiny_encoder, tmp_path / "other", labels=("no", "yes"))
    assert refusal(models, small=other, out=out) == (
        f"--large {models.large} has the labels bad, so so, good; expected those of --small {other}, no, yes. Train "
        "both on the same labels, or adopt a ready classifier with --label-names."
    )
    assert refusal(models, large=multi_label_bundle, out=out) == (
        f"--large {multi_label_bundle} gives several labels a row; expected one label a row from both models. Score "
        "with one of the models alone."
    )
    assert refusal(models, large=models.cascade, out=out) == (
        f"--large {models.cascade} is a cascade itself; expected a bundle with one model, such as those in its folders "
        "small and large"
    )
    assert refusal(models, large=models.small, out=out) == (
        f"--small {models.small} and --large {models.small} are the same model; expected a fast one and one that is "
        "more accurate"
    )
    absent = str(tmp_path / "absent")
    assert refusal(models, large=absent, out=out) == (
        f"--large {absent} is not a bundle: the folder does not exist. Give a folder made by sentiment-core train, or "
        "a Hugging Face classifier."
    )


def test_an_older_version_would_say_that_it_does_not_know_cascades(models):
    """27de93b refuses the format, later ones a head that they do not know."""
    card = json.loads(Path(models.cascade, bundle.CARD).read_text())
    assert (card["format_version"], card["head"]) == (3, "cascade")


def test_the_text_column_that_was_asked_for_is_read(models, tmp_path):
    """Both models remember the column `text`; the data has another text there."""
    table = pq.read_table(models.data)
    others = pa.array([f"{text} instead" for text in table["text"].to_pylist()])
    path = str(tmp_path / "two.parquet")
    pq.write_table(table.rename_columns({"text": "review"}).append_column("text", others), path)
    out = str(tmp_path / "out")
    make_cascade(settings_of(models, data=path, text_column=("review",), out=out))
    first, again = (bundle.read_info(place).cascade for place in (models.cascade, out))
    assert (again.threshold, again.accuracy) == pytest.approx((first.threshold, first.accuracy), abs=0.01)
