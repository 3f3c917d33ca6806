"""What cannot be trained is refused in one sentence, before any work."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sentiment_core.errors import UserError
from sentiment_core.training.data import read_parts
from sentiment_core.training.job import train
from sentiment_core.training.settings import TrainSettings
from tests.conftest import make_bundle


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
        ({"workers": 33, "batch_size": 64}, ["--workers 33", "33 CPUs"]),
        ({"workers": 64, "batch_size": 32}, ["--batch-size", "64 workers"]),
        ({"seed": 2**32}, ["--seed is 4294967296"]),
        ({"label_names": ("a", "a")}, ["--label-names is 'a,a'", "different"]),
        ({"out": "."}, ["--out .", "already holds something"]),
        ({"text_column": ("body",)}, ["'body'", "--text-column"]),
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
    with pytest.raises(UserError, match=r"unseen.parquet has the label 'perhaps', which no row of .*seen.parquet has"):
        read_parts(TrainSettings(**places, model="m", out="o", label_names=("no", "yes", "perhaps")))
    with pytest.raises(UserError, match="has the label 'x'; expected one of negative, positive"):
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
    refused(make_bundle(tiny_encoder, tmp_path / "mlp", head="mlp"), ["mlp head", "Give its encoder"])
    (tmp_path / "c" / "config.json").write_text("{")
    (tmp_path / "c" / "model.safetensors").write_bytes(b"")
    refused(tmp_path / "c", ["cannot be loaded"])
