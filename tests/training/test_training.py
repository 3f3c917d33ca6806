"""Training: it learns, workers agree, calibration reaches the bundle, bad requests are refused."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from safetensors.numpy import load_file
from tensorboardX.proto.event_pb2 import Event
from torch import nn

from sentiment_core.data import labelled as dataset
from sentiment_core.errors import UserError
from sentiment_core.evaluation import EvaluateSettings, evaluate
from sentiment_core.model import bundle, classifier, metrics
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.training import tracking
from sentiment_core.training.job import Trained, TrainSettings, read_parts, train
from sentiment_core.training.loop import Pruning, Tokenised, Vocabulary, clip, fitting_budget, renumbered, used_ids
from tests.conftest import make_bundle, sentences


def test_training_learns_and_leaves_a_whole_bundle(ray_here, packaged_encoder, labelled, tmp_path, monkeypatch):
    out = tmp_path / "trained" / "bundle"
    flags = {"data": labelled, "model": packaged_encoder, "epochs": 2, "lr": 1e-4, "head_lr": 1e-3, "ema_decay": 0.9}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    trained = train(TrainSettings(**flags, out=str(out), tensorboard=str(tmp_path / "curves")))
    assert trained.info.metrics["accuracy"] > 0.95
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
    losses = [np.mean(record["losses"]) for record in trained.log]
    assert losses[-1] < losses[0]
    assert f"{trained.info.metrics['accuracy']:.4f}" in (out / "README.md").read_text()
    page = (out / "report.html").read_text()
    assert f"python jobs/train.py --data {labelled} " in page
    assert "--lr 0.0001 --head-lr 0.001 --ema-decay 0.9" in page
    assert page.count("<img ") == 5
    log = [json.loads(line) for line in (out / bundle.LOG).read_text().splitlines()]
    assert [record["epoch"] for record in log] == [1, 2]
    assert trained.info.int8["agreement"] > 0.95
    assert trained.info.int8["rows"] == len(dataset.read(labelled, "text", "label"))
    # the curves, elsewhere too
    curves = tensorboard_scalars(tmp_path / "curves")
    steps = len(log[0]["losses"])
    assert [step for step, _ in curves["eval/accuracy"]] == [steps, 2 * steps]
    assert [value for _, value in curves["eval/accuracy"]] == pytest.approx([r["eval"]["accuracy"] for r in log])
    assert curves["calibrated/ece"][0][1] == pytest.approx(trained.info.calibration["ece_after"])
    assert curves["train/learning_rate"][-1] == (2 * steps, 0)
    assert curves["train/loss"][-1][1] < curves["train/loss"][0][1]
    client = MlflowClient()
    (run,) = client.search_runs(["0"])
    assert (run.info.run_name, run.info.status) == ("bundle", "FINISHED")
    assert run.data.params["lr"] == "0.0001"
    for name, values in curves.items():
        found = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert found == [(step, pytest.approx(value)) for step, value in values]
    # what the bundle says of itself, calibrated, is what a fresh look finds
    _, held_out = dataset.split(dataset.read(labelled, "text", "label"), 0.1, 0)
    names = [held_out.label_names[i] for i in held_out.labels]
    pq.write_table(pa.table({"text": held_out.texts, "label": names}), tmp_path / "held.parquet")
    found = evaluate(
        EvaluateSettings(model=str(out), data=str(tmp_path / "held.parquet"), out=str(tmp_path / "m.json"))
    )
    assert json.loads((tmp_path / "m.json").read_text()) == found
    assert found["n"] == trained.info.metrics["n"]
    assert found["accuracy"] == trained.info.metrics["accuracy"]
    assert trained.info.calibration["temperature"] != pytest.approx(1.0, abs=0.01)
    assert found["ece"] == pytest.approx(trained.info.calibration["ece_after"], abs=0.02)
    assert found["brier"] == pytest.approx(trained.info.metrics["brier"], abs=0.01)


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
    with tracking.logging_to(tracking.wanted(settings, str(tmp_path))) as log:
        log(1, {"train/loss": 0.5})
    assert "nothing is logged to TensorBoard from here on" in capsys.readouterr().err


def test_two_workers_lose_what_one_loses(ray_here, tiny_bundle, tmp_path):
    """The same global batches and seed; without dropout, whose masks are each worker's own. On the way, a bundle of two
    labels becomes a model of three with the mlp head, long texts are used in windows, as the bundle tells, and all that
    changes a step takes part in it."""
    table = sentences(640, seed=0).to_pydict()
    texts = [f"<p>{text}</p>" * (1 + 2 * (i % 7 == 0)) for i, text in enumerate(table["text"])]
    stars = [1 if i % 3 == 0 else 2 * (label == "positive") for i, label in enumerate(table["label"])]
    pq.write_table(pa.table({"text": texts, "stars": stars}), tmp_path / "d.parquet")

    def trained(workers: int) -> Trained:
        settings = TrainSettings(
            data=str(tmp_path / "d.parquet"), model=tiny_bundle, out=str(tmp_path / f"w{workers}"), workers=workers,
            label_column="stars", label_names=("low", "middle", "high"), head="mlp", epochs=1, max_length=8,
            truncation="window", clean="markup", dropout=0.0, classifier_dropout=0.0, batch_size=27, adversarial=0.5,
            lr=3e-4, head_lr=3e-3,
            ema_decay=0.9, layer_decay=0.9, label_smoothing=0.1, class_weights="balanced", focal_gamma=1.0,
            gradient_checkpointing=True, ordinal=True,
        )  # fmt: skip
        return train(settings)

    one, two = trained(1), trained(2)
    losses = [run.log[0]["losses"] for run in (one, two)]
    assert len(losses[0]) == len(losses[1]) >= 20
    np.testing.assert_allclose(losses[0][:15], losses[1][:15], atol=1e-3)
    start, end, other = (
        load_file(Path(place, bundle.WEIGHTS))[f"{prefix}.encoder.layer.1.output.dense.weight"]
        for place, prefix in ((tiny_bundle, "bert"), (one.place, "encoder"), (two.place, "encoder"))
    )
    assert np.linalg.norm(other - end) < 0.2 * np.linalg.norm(end - start)  # they learned from all rows
    assert two.info.labels == ["low", "middle", "high"]
    assert (two.info.truncation, two.info.clean) == ("window", "markup")
    held_out = dataset.split(dataset.read(str(tmp_path / "d.parquet"), "text", "stars"), 0.1, 0)[1]
    assert np.array(two.info.metrics["confusion"]).sum() == two.info.metrics["n"] == len(held_out) == 72
    pq.write_table(pa.table({"text": held_out.texts, "stars": held_out.labels}), tmp_path / "held.parquet")
    found = evaluate(EvaluateSettings(two.place, str(tmp_path / "held.parquet"), label_column="stars"))
    assert found["labels"] == two.info.labels
    assert found["brier"] == pytest.approx(two.info.metrics["brier"], abs=0.01)
    off = np.array(found["confusion"]) * np.abs(np.subtract.outer(range(3), range(3)))
    assert found["mae"] == pytest.approx(off.sum() / len(held_out))


def test_the_memory_that_there_is_decides_how_much_is_computed_at_a_time():
    tried = []

    def attempt(tokens: int) -> None:
        tried.append(tokens)
        if tokens > 1500:
            raise torch.OutOfMemoryError

    assert fitting_budget(attempt, 4096, torch.device("cpu")) == 1024
    assert tried == [4096, 2048, 1024]
    with pytest.raises(torch.OutOfMemoryError):
        fitting_budget(lambda tokens: attempt(4096), 4096, torch.device("cpu"))


def test_embeddings_that_the_data_has_no_token_of_stay_as_they_are(tiny_bundle):
    model, _ = bundle.load(tiny_bundle)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = np.array([101, 2204, 2143, 102, 101, 2919, 102], np.int32)
    part = Tokenised(TokenLists(ids, np.array([0, 4, 7])), np.array([1, 0]))
    (expected,) = model(*map(torch.from_numpy, pad(part.tokens, np.array([0]), 0)))
    used = used_ids(0, part.tokens)
    vocabulary = Vocabulary(model, used)
    assert vocabulary.embedding.shape == (6, 32)
    small = renumbered(part.tokens, used)
    (found,) = model(*map(torch.from_numpy, pad(small, np.array([0]), 0)))
    assert torch.equal(found, expected)
    with torch.no_grad():
        vocabulary.embedding.add_(1)
    after = vocabulary.whole_state(model)
    assert after.keys() == before.keys()
    changed = (after[vocabulary.name] != before[vocabulary.name]).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == [0, 101, 102, 2143, 2204, 2919]


def test_workers_leave_out_the_same_rows(ray_here, tiny_encoder, labelled, tmp_path):
    settings = TrainSettings(
        data=labelled, model=tiny_encoder, out=str(tmp_path / "b"), workers=2, epochs=2, batch_size=33, lr=1e-4,
        head_lr=1e-3, data_pruning=0.5,
    )  # fmt: skip
    first, second = train(settings).log  # which would hang if they had not as many steps
    assert second["rows"] < 0.95 * first["rows"]
    assert [len(record["losses"]) for record in (first, second)] == [-(-r["rows"] // 33) for r in (first, second)]
    assert np.mean(second["losses"]) < np.mean(first["losses"])


def test_what_is_left_out_is_learned_and_counted_by_others():
    settings = TrainSettings(data="d", model="m", out="o", data_pruning=0.75)
    rows = np.arange(1000)
    pruning = Pruning(len(rows), settings, torch.device("cpu"))
    assert np.array_equal(pruning.kept, rows)
    losses = torch.linspace(0.1, 1.1, len(rows)) ** 2  # 535 below the mean
    assert torch.equal(pruning.weigh(rows, losses), losses)
    learned = int((losses < losses.mean()).sum())
    estimates, seen = [], []
    for epoch in range(2, 42):
        pruning.choose(epoch)
        kept = pruning.kept
        assert np.isin(rows[learned:], kept).all()
        weighed = pruning.weigh(kept, losses[kept])
        counts = weighed / losses[kept]
        torch.testing.assert_close(counts[kept < learned], 4 * counts[-1].expand(len(kept) - len(rows) + learned))
        estimates.append(float(weighed.mean()))
        seen.append(np.isin(rows[:learned], kept))
    assert np.mean(estimates) == pytest.approx(float(losses.mean()), rel=0.01)
    assert np.mean(seen) == pytest.approx(0.25, abs=0.01)
    assert np.any(seen, axis=0).all()  # others each time
    # what a checkpoint keeps is enough to go on the same; what is learned no more is back
    again = Pruning(len(rows), settings, torch.device("cpu"))
    again.restore(copy.deepcopy(pruning.state()))
    before = pruning.kept
    for one in (pruning, again):
        one.weigh(one.kept, 2 - losses[one.kept])
        one.choose(99)
    assert torch.equal(again.weights, pruning.weights)
    assert np.isin(before[before < learned], pruning.kept).all()
    assert len(pruning.kept) < len(rows)  # those that were left out before still count as learned


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_does(norm):
    def trained(clips) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        for scale in (1.0, 100.0, 3.0):  # Adam alone would not tell gradients from multiples of them
            model(torch.randn(8, 20)).square().sum().mul(scale).backward()
            clips(model, optimizer)
            optimizer.step()
            optimizer.zero_grad()
        return model

    ours = trained(lambda _, optimizer: clip(optimizer, norm))
    torchs = trained(lambda model, _: nn.utils.clip_grad_norm_(model.parameters(), norm))
    without = trained(lambda *_: None)
    for a, b, c in zip(ours.parameters(), torchs.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(a, b)
        assert torch.allclose(a, c) == (norm == 1e6)


def test_layers_are_told_by_how_deep_they_lie(tiny_bundle):
    depth = classifier.depths(bundle.load(tiny_bundle)[0])
    told = {name.partition("bert.")[2]: number for name, number in depth.items()}
    assert told["embeddings.word_embeddings.weight"] == 2
    assert told["encoder.layer.0.output.dense.weight"] == 1
    assert told["encoder.layer.1.output.dense.weight"] == told["pooler.dense.weight"] == 0


def test_training_drops_and_counts_bad_rows_stops_early_and_keeps_the_best_epoch(ray_here, tiny_bundle, tmp_path):
    """Labels that follow nothing: the evaluation loss gets worse soon, and the weights kept are those before. On the
    way, the standard head of a bundle of two labels makes room for three."""
    table = sentences(400, seed=2).to_pydict()
    table["label"] = np.random.default_rng(0).choice(["a", "b", "c"], 400).tolist()
    table["text"][:6] = [None, "", " ", "\x00\x01", "\x02", "fine"]
    table["label"][5] = None
    for name in ("train", "eval"):
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    settings = TrainSettings(
        data=str(tmp_path / "train.parquet"), eval_data=str(tmp_path / "eval.parquet"), model=tiny_bundle,
        out=str(tmp_path / "b"), epochs=20, patience=1, lr=1e-2, head_lr=1e-2, select_by="loss", max_length=32,
        ema_decay=0.5, batch_size=64,
    )  # fmt: skip
    trained = train(settings)
    losses = [record["eval"]["loss"] for record in trained.log]
    assert len(losses) < 20
    assert len(set(losses)) == len(losses)  # the averaged weights move, however few steps an epoch has
    assert trained.info.training["best_epoch"] == 1 + int(np.argmin(losses)) == len(losses) - 1
    assert trained.info.metrics["accuracy"] == pytest.approx(trained.log[np.argmin(losses)]["eval"]["accuracy"])
    for part in ("data", "eval_data"):
        dropped = trained.info.training[part]["dropped"]
        assert dropped == {"without_text": 3, "without_label": 1, "without_tokens": 2}
    assert trained.info.metrics["n"] == 394
    assert trained.info.labels == ["a", "b", "c"]
    assert f"2 rows of {settings.data} dropped: without tokens" in trained.summary()
    confusion = np.array(trained.info.metrics["confusion"])
    right, most = np.trace(confusion), confusion.sum(axis=1).max()
    told = f"no better than always giving {trained.info.labels[confusion.sum(axis=1).argmax()]!r} ({most / 394:.4f})"
    assert (told in trained.summary()) == (right <= most)
    always_b = trained.info.metrics | metrics.evaluate(
        np.eye(3)[[1] * 8], np.array([0, 0, 1, 1, 1, 1, 2, 2]), ["a", "b", "c"]
    )
    info = dataclasses.replace(trained.info, metrics=always_b)
    assert "no better than always giving 'b' (0.5000)" in dataclasses.replace(trained, info=info).summary()


def test_an_error_in_a_worker_is_seen_and_leaves_nothing(ray_here, tiny_encoder, labelled, tmp_path):
    """An encoder whose weights file is damaged fails in the workers, not before."""
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(tiny_encoder).iterdir():
        content = path.read_bytes()
        (broken / path.name).write_bytes(content[: len(content) // 2] if path.suffix == ".safetensors" else content)
    with pytest.raises(Exception, match=r"(?i)safetensor|incomplete") as error:
        train(TrainSettings(data=labelled, model=str(broken), out=str(tmp_path / "b")))
    assert "lost" not in str(error.value)  # nor is it tried again
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
    with pytest.raises(UserError) as error:
        train(TrainSettings(**wanted))
    assert all(word in str(error.value) for word in words), error.value
    assert not list(tmp_path.iterdir())


def test_one_class_and_labels_that_training_never_saw_are_refused(tiny_encoder, labelled, tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "x"]}), tmp_path / "one.parquet")
    with pytest.raises(UserError, match="one label 'x'; expected two or more"):
        train(TrainSettings(data=str(tmp_path / "one.parquet"), model=tiny_encoder, out=str(tmp_path / "b")))
    for name, label in {"seen": 1, "unseen": 2}.items():
        pq.write_table(pa.table({"text": ["a", "b"], "label": [0, label]}), tmp_path / f"{name}.parquet")
    places = {"data": str(tmp_path / "seen.parquet"), "eval_data": str(tmp_path / "unseen.parquet")}
    with pytest.raises(UserError, match=r"unseen.parquet has the label 'perhaps', of which .*seen.parquet has no row"):
        read_parts(TrainSettings(**places, model="m", out="o", label_names=("no", "yes", "perhaps")))
    with pytest.raises(UserError, match="label 'x', which is none of negative, positive"):
        train(
            TrainSettings(
                data=labelled, eval_data=str(tmp_path / "one.parquet"), model=tiny_encoder, out=str(tmp_path / "b")
            )
        )


def test_folders_that_are_no_encoder_are_refused(tiny_encoder, labelled, tmp_path):
    def refused(model, words):
        with pytest.raises(UserError) as error:
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
