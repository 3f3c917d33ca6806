"""Training: it learns, workers agree, calibration reaches the bundle, bad requests are refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core import bundle
from sentiment_core.errors import BadRequest
from sentiment_core.evaluation import EvaluateSettings, evaluate
from sentiment_core.training import TrainSettings, train
from tests.conftest import make_bundle, sentences


def test_training_learns_and_leaves_a_whole_bundle(ray_here, packaged_encoder, labelled, tmp_path):
    out = tmp_path / "bundle"
    trained = train(TrainSettings(data=labelled, model=packaged_encoder, out=str(out), epochs=3, lr=1e-4, head_lr=1e-3))
    assert trained.info.metrics["accuracy"] > 0.95
    assert trained.info.labels == ["negative", "positive"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "sentiment.json", "README.md", "confusion.png"} <= {
        path.name for path in out.iterdir()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]  # no work folder left
    losses = [np.mean(record["losses"]) for record in trained.log]
    assert losses[-1] < losses[0]
    assert f"{trained.info.metrics['accuracy']:.4f}" in (out / "README.md").read_text()
    log = [json.loads(line) for line in (out / bundle.LOG).read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2, 3]
    assert trained.info.int8["agreement"] > 0.95
    assert trained.info.int8["rows"] == trained.info.metrics["n"]
    # what the bundle says of itself is what a fresh look finds, on new sentences
    pq.write_table(sentences(200, seed=7), tmp_path / "new.parquet")
    found = evaluate(EvaluateSettings(model=str(out), data=str(tmp_path / "new.parquet"), out=str(tmp_path / "m.json")))
    assert found["accuracy"] > 0.95
    assert json.loads((tmp_path / "m.json").read_text()) == found


def test_two_workers_lose_what_one_loses(ray_here, packaged_encoder, labelled, tmp_path):
    """The same global batches and seed; without dropout, whose masks are each worker's own."""

    def losses(workers: int) -> list[float]:
        settings = TrainSettings(
            data=labelled, model=packaged_encoder, out=str(tmp_path / f"w{workers}"), workers=workers, epochs=1,
            dropout=0.0, classifier_dropout=0.0, batch_size=27,
        )  # fmt: skip
        return train(settings).log[0]["losses"]

    one, two = losses(1), losses(2)
    assert len(one) == len(two) >= 20
    np.testing.assert_allclose(one[:20], two[:20], atol=1e-3)


def test_three_classes_from_a_bundle_of_two_with_the_mlp_head_on_two_workers(ray_here, tiny_bundle, tmp_path):
    table = sentences(300, seed=1)
    numbers = [i % 3 for i in range(300)]
    pq.write_table(table.set_column(1, "stars", pa.array(numbers)), tmp_path / "d.parquet")
    settings = TrainSettings(
        data=str(tmp_path / "d.parquet"), model=tiny_bundle, out=str(tmp_path / "b"), label_column="stars",
        label_names=("low", "middle", "high"), head="mlp", epochs=1, workers=2, max_length=32,
    )  # fmt: skip
    info = train(settings).info
    assert info.labels == ["low", "middle", "high"]
    assert np.array(info.metrics["confusion"]).sum() == info.metrics["n"] == 30
    found = evaluate(EvaluateSettings(model=settings.out, data=settings.data, label_column="stars"))
    assert found["labels"] == info.labels


def test_rows_that_cannot_be_learned_from_are_dropped_counted_and_said(ray_here, tiny_bundle, tmp_path):
    """On the way, the standard head of a bundle of two labels makes room for three."""
    table = sentences(100, seed=1).to_pydict()
    table["text"][:6] = [None, "", " ", "\x00\x01", "\x02", "fine"]
    table["label"][5] = None
    table["label"][6:9] = ["mixed"] * 3
    for name in ("train", "eval"):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    settings = TrainSettings(
        data=str(tmp_path / "train.parquet"), eval_data=str(tmp_path / "eval.parquet"), model=tiny_bundle,
        out=str(tmp_path / "b"), epochs=1, max_length=32,
    )  # fmt: skip
    trained = train(settings)
    for part in ("data", "eval_data"):
        dropped = trained.info.training[part]["dropped"]
        assert dropped == {"without_text": 3, "without_label": 1, "without_tokens": 2}
    assert trained.info.metrics["n"] == 94
    assert trained.info.labels == ["mixed", "negative", "positive"]
    assert f"2 rows of {settings.data} dropped: without tokens" in trained.summary()


def test_training_stops_early_and_keeps_the_best_epoch(ray_here, tiny_encoder, tmp_path):
    """Labels that follow nothing: the evaluation loss gets worse soon, and the weights kept are those before."""
    table = sentences(400, seed=2).set_column(1, "label", pa.array(np.random.default_rng(0).choice(["a", "b"], 400)))
    pq.write_table(table, tmp_path / "d.parquet")
    trained = train(
        TrainSettings(
            data=str(tmp_path / "d.parquet"),
            model=tiny_encoder,
            out=str(tmp_path / "b"),
            epochs=20,
            patience=1,
            lr=1e-2,
            head_lr=1e-2,
            select_by="loss",
        )
    )
    losses = [record["eval"]["loss"] for record in trained.log]
    assert len(losses) < 20
    assert trained.info.training["best_epoch"] == 1 + int(np.argmin(losses)) == len(losses) - 1
    assert trained.info.metrics["accuracy"] == pytest.approx(trained.log[np.argmin(losses)]["eval"]["accuracy"])


def test_calibration_is_folded_into_the_weights(ray_here, tiny_encoder, labelled, tmp_path):
    settings = TrainSettings(
        data=labelled, model=tiny_encoder, out=str(tmp_path / "b"), epochs=2, lr=1e-3, head_lr=1e-2, seed=3
    )
    info = train(settings).info
    from sentiment_core import dataset

    _, held_out = dataset.split(dataset.read(labelled, "text", "label"), settings.eval_fraction, settings.seed)
    pq.write_table(
        pa.table({"text": held_out.texts, "label": [held_out.label_names[i] for i in held_out.labels]}),
        tmp_path / "held.parquet",
    )
    found = evaluate(EvaluateSettings(model=settings.out, data=str(tmp_path / "held.parquet")))
    assert info.calibration["temperature"] != pytest.approx(1.0, abs=0.01)
    assert found["ece"] == pytest.approx(info.calibration["ece_after"], abs=0.02)
    assert found["brier"] == pytest.approx(info.metrics["brier"], abs=0.01)


def test_an_error_in_a_worker_is_seen_and_leaves_nothing(ray_here, tiny_encoder, labelled, tmp_path):
    """An encoder whose weights file is damaged fails in the workers, not before."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(tiny_encoder).iterdir():
        content = path.read_bytes()
        (broken / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)
    with pytest.raises(Exception, match=r"(?i)safetensor|incomplete"):
        train(TrainSettings(data=labelled, model=str(broken), out=str(tmp_path / "b")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "./nowhere"}, ["--model ./nowhere", "does not exist"]),
        ({"max_length": 513}, ["--max-length is 513", "at most 512"]),
        ({"max_length": 2}, ["--max-length is 2", "at least 3"]),
        ({"workers": 33, "batch_size": 64}, ["33 workers", "CPUs", "--workers"]),
        ({"workers": 64}, ["--batch-size", "64 workers"]),
        ({"seed": 2**32}, ["--seed is 4294967296"]),
        ({"label_names": ("a", "a")}, ["--label-names is 'a,a'", "different"]),
        ({"out": "."}, ["--out .", "already holds something"]),
        ({"text_column": "body"}, ["'body'", "--text-column"]),
    ],
)
def test_what_cannot_be_trained_is_refused(ray_here, tiny_encoder, labelled, tmp_path, change, words):
    wanted = {"data": labelled, "model": tiny_encoder, "out": str(tmp_path / "b")} | change
    with pytest.raises(BadRequest) as error:
        train(TrainSettings(**wanted))
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.iterdir())


def test_one_class_and_labels_that_training_never_saw_are_refused(tiny_encoder, labelled, tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "x"]}), tmp_path / "one.parquet")
    with pytest.raises(BadRequest, match="one label 'x'; expected two or more"):
        train(TrainSettings(data=str(tmp_path / "one.parquet"), model=tiny_encoder, out=str(tmp_path / "b")))
    with pytest.raises(BadRequest, match="label 'x', which is none of negative, positive"):
        train(
            TrainSettings(
                data=labelled, eval_data=str(tmp_path / "one.parquet"), model=tiny_encoder, out=str(tmp_path / "b")
            )
        )


def test_folders_that_are_no_encoder_are_refused(tiny_encoder, labelled, tmp_path):
    def refused(model, words):
        with pytest.raises(BadRequest) as error:
            train(TrainSettings(data=labelled, model=str(model), out=str(tmp_path / "new")))
        assert all(word in str(error.value) for word in words), error.value

    for name, without, words in [
        ("a", {"tokenizer.json", "vocab.txt"}, ["has no tokenizer"]),
        ("b", {"config.json"}, ["no config.json"]),
        ("c", {"model.safetensors"}, ["no *.safetensors"]),
    ]:
        (tmp_path / name).mkdir()
        for path in Path(tiny_encoder).iterdir():
            if path.name not in without:
                (tmp_path / name / path.name).write_bytes(path.read_bytes())
        refused(tmp_path / name, words)
    refused(make_bundle(tiny_encoder, tmp_path / "mlp", head="mlp"), ["mlp head", "give its encoder"])
    (tmp_path / "c" / "config.json").write_text("{")
    (tmp_path / "c" / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "c", ["cannot be loaded"])
