"""Training: it learns, workers agree, calibration reaches the bundle."""

import dataclasses
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from tensorboardX.proto.event_pb2 import Event

import sentiment_core
from sentiment_core.analysis.sample_file import DrawnRow, format_sample
from sentiment_core.api import Classifier
from sentiment_core.data import labelled as dataset
from sentiment_core.data import splits
from sentiment_core.data.readers import Columns
from sentiment_core.evaluation import EvaluateSettings, evaluate
from sentiment_core.inference.engine import Engine
from sentiment_core.inference.int8_layers import unpack_layers
from sentiment_core.model import bundle, metrics
from sentiment_core.model.records import GuaranteeGrid
from sentiment_core.training import job, tracking
from sentiment_core.training.job import TrainResult, train
from sentiment_core.training.settings import TrainSettings
from tests.conftest import sentences


def test_rows_of_a_sample_promise_nothing(tiny_bundle, tmp_path):
    table = sentences(60, seed=1)
    rows = [DrawnRow("a.parquet", i, "all", 2.0) for i in range(60)]
    content = format_sample(rows, {"text": table["text"].to_pylist()}).decode("utf-8-sig")
    (tmp_path / "s.csv").write_text(content.replace(",,all,", ",positive,all,").replace("positive", "negative", 30))
    others = pa.array([f"{text} again" for text in table["text"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("text"), "text", others), tmp_path / "plain.parquet")
    sample, plain = str(tmp_path / "s.csv"), str(tmp_path / "plain.parquet")
    for data, eval_data, rows_of_grid in ((sample, None, 0), (plain, sample, 0), (sample, plain, 60)):
        settings = TrainSettings(data=data, eval_data=eval_data, model=tiny_bundle, out=str(tmp_path / "b"))
        prepared = job.prepare(settings, settings.out)
        probabilities = np.full((len(prepared.eval_part), 2), 0.5)
        assert job._make_grid(prepared, prepared.objective, probabilities, 1).rows == rows_of_grid


def test_training_learns_and_leaves_a_whole_bundle(ray_here, short_encoder, labelled, tmp_path, monkeypatch):
    out = tmp_path / "trained" / "bundle"
    flags = {"data": labelled, "model": short_encoder, "epochs": 2, "lr": 1e-4, "head_lr": 1e-3, "ema_decay": 0.9}
    flags |= {"select_by": "accuracy"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trained = train(TrainSettings(**flags, out=str(out), tensorboard=str(tmp_path / "curves")), trials=3)
    assert trained.info.metrics.accuracy > 0.95
    grid = bundle.read_info(str(out)).guarantee
    assert (grid.rows, grid.comparisons) == (trained.info.metrics.n, 3 * 2)  # the epochs of three trials
    assert grid.right_above[-1] / grid.rows_above[-1] == trained.info.metrics.accuracy
    assert trained.info.labels == ["negative", "positive"]
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "sentiment.json",
        "README.md",
        "confusion.png",
        "report.html",
    } <= {path.name for path in out.iterdir()}
    assert sorted(path.name for path in out.parent.iterdir()) == ["bundle"]  # no work folder left
    assert "no better" not in trained.summary()
    losses = [np.mean(record.losses) for record in trained.log]
    assert losses[-1] < losses[0]
    assert f"{trained.info.metrics.accuracy:.4f}" in (out / "README.md").read_text()
    page = (out / "report.html").read_text()
    assert f"sentiment-core train --data {labelled} " in page
    assert "--epochs 2 --batch-size 16 --lr 0.0001 --head-lr 0.001 --adversarial 0.0 --ema-decay 0.9" in page
    assert page.count("<img ") == 5
    log = [json.loads(line) for line in (out / bundle.LOG).read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2]
    checked = trained.info.int8
    assert checked.agreement >= 0.995
    assert checked.rows == len(dataset.read(labelled))
    assert checked.accuracy == pytest.approx(trained.info.metrics.accuracy, abs=0.02)
    assert 6 <= checked.layers <= checked.all_layers == 12
    small = Engine.load(str(out), backend="int8")
    assert small.choice.backend == "int8"
    assert len(unpack_layers((out / bundle.INT8).read_bytes())) == checked.layers
    assert f"computes {checked.layers} of 12 linear layers in 8 bits" in (out / "README.md").read_text()
    # the curves, elsewhere too
    curves = tensorboard_scalars(tmp_path / "curves")
    steps = len(log[0]["losses"])
    assert [step for step, _ in curves["eval/accuracy"]] == [steps, 2 * steps]
    assert [value for _, value in curves["eval/accuracy"]] == pytest.approx([r["eval"]["accuracy"] for r in log])
    assert curves["calibrated/ece"][0][1] == pytest.approx(trained.info.calibration.ece_after)
    assert curves["train/learning_rate"][-1] == (2 * steps, 0)
    assert curves["train/loss"][-1][1] < curves["train/loss"][0][1]
    from mlflow import MlflowClient  # seconds, which other tests need not wait for

    client = MlflowClient()
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("bundle", "FINISHED")
    assert run.data.params["lr"] == "0.0001"
    for name, values in curves.items():
        found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert found == [(step, pytest.approx(value)) for step, value in values]
    # what the bundle says of itself, calibrated, is what a fresh look finds
    _, held_out = splits.hold_out(dataset.read(labelled), 0.1, 0)
    names = [held_out.label_names[i] for i in held_out.labels]
    pq.write_table(pa.table({"text": held_out.texts, "label": names}), tmp_path / "held.parquet")
    found = evaluate(
        EvaluateSettings(model=str(out), data=str(tmp_path / "held.parquet"), out=str(tmp_path / "m.json"))
    )
    assert json.loads((tmp_path / "m.json").read_text()) == found.to_json()
    found = found.metrics
    assert found.n == trained.info.metrics.n
    assert found.accuracy == trained.info.metrics.accuracy
    assert trained.info.calibration.temperature != pytest.approx(1.0, abs=0.01)
    assert found.ece == pytest.approx(trained.info.calibration.ece_after, abs=0.02)
    assert found.brier == pytest.approx(trained.info.metrics.brier, abs=0.01)


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by name, of the one event file in a folder: records of 8 bytes of length, 4 of checksum, an event,
    4 of checksum."""
    (file,) = folder.iterdir()
    content, found = file.read_bytes(), {}
    while content:
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        content = content[16 + size :]
    return found


def test_curves_that_cannot_be_logged_cost_no_training(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = {"tensorboard": str(tmp_path / "file"), "out": "b"}
    with tracking.log_curves(tracking.requested_trackers(settings, str(tmp_path))) as log:
        log(1, {"train/loss": 0.5})
    assert "nothing is logged to TensorBoard from here on" in capsys.readouterr().err


@pytest.mark.journey
def test_two_workers_lose_what_one_loses(ray_here, tiny_bundle, tmp_path):
    """The same global batches and seed; without dropout, whose masks are each worker's own. On the way, a bundle of two
    labels becomes a model of three with the mlp head, long texts are used in windows, as the bundle tells, and all that
    changes a step takes part in it."""
    table = sentences(640, seed=0).to_pydict()
    texts = [f"<p>{text}</p>" * (1 + 2 * (i % 7 == 0)) for i, text in enumerate(table["text"])]
    stars = [1 if i % 3 == 0 else 2 * (label == "positive") for i, label in enumerate(table["label"])]
    pq.write_table(pa.table({"text": texts, "stars": stars}), tmp_path / "d.parquet")

    def trained(workers: int) -> TrainResult:
        settings = TrainSettings(
            data=str(tmp_path / "d.parquet"), model=tiny_bundle, out=str(tmp_path / f"w{workers}"), workers=workers,
            label_column="stars", label_names=("low", "middle", "high"), head="mlp", epochs=1, max_length=8,
            truncation="window", clean="markup", dropout=0.0, classifier_dropout=0.0, batch_size=27, adversarial=0.5,
            lr=3e-4, head_lr=3e-3, precision="float32",
            ema_decay=0.9, layer_decay=0.9, label_smoothing=0.1, class_weights="balanced", focal_gamma=1.0,
            gradient_checkpointing=True, ordinal=True,
        )  # fmt: skip
        return train(settings)

    one, two = trained(1), trained(2)
    losses = [run.log[0].losses for run in (one, two)]
    assert len(losses[0]) == len(losses[1]) >= 20
    np.testing.assert_allclose(losses[0][:15], losses[1][:15], atol=1e-3)
    start, end, other = (
        load_file(Path(place, bundle.WEIGHTS))[f"{prefix}.encoder.layer.1.output.dense.weight"]
        for place, prefix in ((tiny_bundle, "bert"), (one.place, "encoder"), (two.place, "encoder"))
    )
    assert np.linalg.norm(other - end) < 0.2 * np.linalg.norm(end - start)  # they learned from all rows
    assert two.info.labels == ["low", "middle", "high"]
    assert (two.info.truncation, two.info.clean) == ("window", "markup")
    held_out = splits.hold_out(dataset.read(str(tmp_path / "d.parquet"), Columns(label="stars")), 0.1, 0)[1]
    assert np.array(two.info.metrics.confusion).sum() == two.info.metrics.n == len(held_out) == 72
    pq.write_table(pa.table({"text": held_out.texts, "stars": held_out.labels}), tmp_path / "held.parquet")
    found = evaluate(EvaluateSettings(two.place, str(tmp_path / "held.parquet"), label_column="stars")).metrics
    assert found.labels == two.info.labels
    assert found.brier == pytest.approx(two.info.metrics.brier, abs=0.01)
    off = np.array(found.confusion) * np.abs(np.subtract.outer(range(3), range(3)))
    assert found.mae == pytest.approx(off.sum() / len(held_out))


def test_training_drops_and_counts_bad_rows_stops_early_and_keeps_the_best_epoch(ray_here, tiny_bundle, tmp_path):
    """Labels that follow nothing: the evaluation loss gets worse soon, and the weights kept are those before. On the
    way, the standard head of a bundle of two labels makes room for three."""
    table = sentences(400, seed=2).to_pydict()
    table["label"] = np.random.default_rng(0).choice(["a", "b", "c"], 400).tolist()
    table["text"][:6] = [None, "", " ", "\x00\x01", "\x02", "fine"]
    table["label"][5] = None
    for name in ("train", "eval"):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    dropped_rows = f"2 rows of {tmp_path}/train.parquet dropped: without tokens"
    with pytest.warns(UserWarning, match=re.escape(dropped_rows)):
        trained = sentiment_core.train(
            data=tmp_path / "train.parquet", eval_data=tmp_path / "eval.parquet", model=tiny_bundle,
            out=tmp_path / "b", epochs=20, patience=1, lr=1e-2, head_lr=1e-2, select_by="loss", max_length=32,
            ema_decay=0.5, batch_size=64,
        )  # fmt: skip
    losses = [record.eval.loss for record in trained.log]
    assert len(losses) < 20
    assert len(set(losses)) == len(losses)  # the averaged weights move, however few steps an epoch has
    assert trained.info.training.best_epoch == 1 + int(np.argmin(losses)) == len(losses) - 1
    assert trained.info.metrics.accuracy == pytest.approx(trained.log[np.argmin(losses)].eval.accuracy)
    for part in ("data", "eval_data"):
        dropped = getattr(trained.info.training, part).dropped.to_json()
        assert dropped == {"without_text": 3, "without_label": 1, "without_tokens": 2}
    assert trained.info.metrics.n == 394
    assert trained.info.guarantee == GuaranteeGrid()  # the evaluation rows are those that it was trained on
    assert trained.info.labels == ["a", "b", "c"]
    assert dropped_rows in trained.summary()
    confusion = np.array(trained.info.metrics.confusion)
    right, most = np.trace(confusion), confusion.sum(axis=1).max()
    told = f"no better than always giving {trained.info.labels[confusion.sum(axis=1).argmax()]!r} ({most / 394:.4f})"
    assert (told in trained.summary()) == (right <= most)
    always_b = metrics.evaluate(np.eye(3)[[1] * 8], np.array([0, 0, 1, 1, 1, 1, 2, 2]), ["a", "b", "c"])
    info = dataclasses.replace(trained.info, metrics=always_b)
    assert "no better than always giving 'b' (0.5000)" in dataclasses.replace(trained, info=info).summary()


@pytest.mark.journey
def test_few_rows_are_all_trained_on_and_evaluated_by_cross_validation(ray_here, short_encoder, tmp_path, capsys):
    pq.write_table(sentences(60, seed=3), tmp_path / "few.parquet")
    flags = {"data": str(tmp_path / "few.parquet"), "model": short_encoder, "out": str(tmp_path / "b")}
    trained = train(TrainSettings(**flags, epochs=6, patience=1))
    rows, evaluation = trained.info.training.data.train_rows, trained.info.training.eval_data
    assert (rows, evaluation.eval_rows, evaluation.folds, trained.metrics["n"]) == (60, 60, 5, 60)
    assert [len(record.losses) for record in trained.log] == [4] * 6  # 4 batches of 16 rows and fewer
    assert trained.info.training.settings["select_by"] == "last"
    assert trained.info.training.best_epoch == 6
    assert trained.info.guarantee.rows == 0  # its errors are those of other models
    assert "on 60 rows by cross-validation" in trained.summary()
    assert "after 5 folds of cross-validation" in capsys.readouterr().err
    # the model was trained on these rows, and fits them better than those of a fold
    table = pq.read_table(tmp_path / "few.parquet")
    fitted = Classifier.load(trained.place).predict_proba(table["text"].to_pylist())
    numbers = [trained.info.labels.index(label) for label in table["label"].to_pylist()]
    assert -np.log(fitted[np.arange(60), numbers]).mean() < trained.log[-1].eval.loss


@pytest.mark.journey
def test_a_training_killed_amid_cross_validation_ends_as_if_it_had_not_been(ray_here, tiny_encoder, tmp_path):
    pq.write_table(sentences(60, seed=3), tmp_path / "few.parquet")
    flags = {"data": str(tmp_path / "few.parquet"), "model": tiny_encoder, "epochs": 10}
    calm = train(TrainSettings(**flags, out=str(tmp_path / "calm")))
    killed: list[int] = []

    def kill_worker() -> None:
        stop = time.monotonic() + 120
        while len({*(tmp_path / "_training-killed").glob("run/checkpoint_*/fold_logits-*.npy")}) < 1:
            assert time.monotonic() < stop
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                killed.append(process.pid)
                process.kill()

    killer = threading.Thread(target=kill_worker)
    killer.start()
    again = train(TrainSettings(**flags, out=str(tmp_path / "killed")))
    killer.join()
    assert len(killed) == 1
    assert [record.losses for record in again.log] == [record.losses for record in calm.log]
    assert again.info.metrics == calm.info.metrics
