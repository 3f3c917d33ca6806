"""Classifiers that transformers saved: each family gives what `pipeline()` gives, and what is none is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
    pipeline,
)

from sentiment_core.errors import UserError
from sentiment_core.inference.engine import Engine
from sentiment_core.model import bundle, encoder, source
from sentiment_core.model.source import OpenedModel, open_model
from sentiment_core.runtime import storage
from tests.conftest import make_bundle
from tests.ready_models import FAMILIES, LABELS, POSITIONS, Hub, make_classifier

pytestmark = pytest.mark.slow
TEXTS = ["the film was wonderful", "Dull", "the book was awful, " * 40, "Crème brûlée!  人工 & so\twe talked", "a play"]
WEIGHTS = "model.safetensors"


def ask_pipeline(folder: str, texts: list[str] = TEXTS) -> np.ndarray:
    """Return what transformers makes of each text alone, (n, classes) in the order of its id2label."""
    ask = pipeline("text-classification", model=folder, tokenizer=folder, top_k=None, device="cpu", dtype=torch.float32)
    names = [name for _, name in sorted(ask.model.config.id2label.items())]
    answers = [{a["label"]: a["score"] for a in ask([text], truncation=True)[0]} for text in texts]
    return np.array([[answer[name] for name in names] for answer in answers])


def compute_and_tell(model: OpenedModel, texts: list[str] = TEXTS, **engine: object) -> tuple[np.ndarray, str]:
    """Return the engine's probabilities of the texts in one call, and its number type.

    In float32 the probabilities of each text in its own call are the same.
    """
    with storage.unpack_files(model.files) as folder:
        ours = Engine.load(folder, **engine)
        tokens, _ = bundle.load_tokenizer(folder).encode(texts)
    together, _ = ours.probabilities(tokens)
    if ours.choice.number_type == "float32":
        alone = [ours.probabilities(tokens.take(np.array([row])))[0] for row in range(len(texts))]
        np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)
    return together, ours.choice.number_type


def compute(model: OpenedModel, texts: list[str] = TEXTS, **engine: object) -> np.ndarray:
    """Return the engine's probabilities of the texts."""
    return compute_and_tell(model, texts, **engine)[0]


@pytest.fixture(scope="module")
def folders(packaged_encoder, tmp_path_factory):
    """Return the folder of a family's classifier, made once."""
    made: dict[str, str] = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = make_classifier(family, tmp_path_factory.mktemp(family), packaged_encoder)
        return made[family]

    return folder


@pytest.fixture
def copied(folders, tmp_path):
    """Return a function that copies a family's classifier, with another configuration."""

    def copy(family: str = "distilbert", **config: object) -> Path:
        folder = Path(shutil.copytree(folders(family), tmp_path / "copied"))
        content = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
        return folder

    return copy


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_what_the_pipeline_gives_alone_and_beside_others(folders, family):
    folder = folders(family)
    expected = ask_pipeline(folder)
    assert expected.std(axis=0).max() > 0.02  # texts make a difference
    model = open_model(folder)
    assert model.info.labels == list(LABELS)
    assert model.info.max_length == POSITIONS
    np.testing.assert_allclose(compute(model, backend="torch", precision="float32"), expected, atol=1e-5)
    usual, number_type = compute_and_tell(model)
    np.testing.assert_allclose(usual, expected, atol=0.01 if number_type == "float32" else 0.02)


def test_a_head_that_is_sure_of_itself_is_not_cut_from_what_it_looks_at(folders, tmp_path):
    """Its probabilities of random tokens are the same whatever it looks at; those of texts are not."""
    folder = Path(shutil.copytree(folders("modernbert"), tmp_path / "sure"))
    weights = load_file(folder / WEIGHTS)
    weights["classifier.bias"] = torch.tensor([0.0, 60.0, 0.0])
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    model, _ = bundle_of(open_model(str(folder)))
    assert Engine(model, 3, POSITIONS, backend="torch", precision="float32").head.__class__ is torch.nn.Identity


def bundle_of(model: OpenedModel):
    with storage.unpack_files(model.files) as folder:
        return bundle.load(folder)


def test_labels_without_names_are_numbered(packaged_encoder, tmp_path):
    make_classifier("electra", tmp_path, packaged_encoder, labels=None)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    assert open_model(str(tmp_path)).info.labels == ["LABEL_0", "LABEL_1"]


def test_weights_in_parts_are_read_and_what_training_left_is_not(folders, tmp_path):
    plain = open_model(folders("distilbert"))
    model = AutoModelForSequenceClassification.from_pretrained(folders("distilbert"))
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    AutoTokenizer.from_pretrained(folders("distilbert")).save_pretrained(tmp_path)
    (tmp_path / "checkpoint-500").mkdir()
    for name in ("trainer_state.json", "training_args.bin", "checkpoint-500/optimizer.pt", "README.txt"):
        (tmp_path / name).write_bytes(b"{}")
    opened = open_model(str(tmp_path))
    parts = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(parts) > 1
    assert set(opened.files) == {*parts, f"{WEIGHTS}.index.json", *(set(plain.files) - {WEIGHTS})}
    np.testing.assert_array_equal(*(compute(model, precision="float32", backend="torch") for model in (opened, plain)))
    assert bundle.tokens_digest_of(opened.files) == bundle.tokens_digest_of(plain.files)

    (tmp_path / parts[0]).unlink()
    with pytest.raises(UserError, match=f"has no file {parts[0]}, which should hold its weights"):
        open_model(str(tmp_path))


def test_the_digest_is_that_of_what_decides_a_label(copied):
    folder = copied()
    before = bundle.digest_of(open_model(str(folder)).files)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "README.md").write_text("# Mine")
    assert bundle.digest_of(open_model(str(folder)).files) == before
    weights = load_file(folder / WEIGHTS)
    weights["classifier.bias"] += 0.5
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    changed = bundle.digest_of(open_model(str(folder)).files)
    assert changed != before
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 20
    tokenizer.save_pretrained(folder)
    assert open_model(str(folder)).info.max_length == 20
    assert bundle.digest_of(open_model(str(folder)).files) not in (before, changed)


def test_a_tokenizer_that_cuts_the_beginning_is_followed(copied):
    folder = copied()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.truncation_side = "left"
    tokenizer.save_pretrained(folder)
    assert open_model(str(folder)).info.truncation == "tail"
    exact = compute(open_model(str(folder)), backend="torch", precision="float32")
    np.testing.assert_allclose(exact, ask_pipeline(str(folder)), atol=1e-5)


def test_a_tokenizer_that_transformers_makes_otherwise_gives_its_tokens(folders, tmp_path):
    """By tokenizer_config.json case matters, by tokenizer.json it does not; transformers takes the first."""
    folder = Path(shutil.copytree(folders("bert"), tmp_path / "cased"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_lower_case": False}))
    texts = ["the Film was WONDERFUL", "the film was wonderful"]
    expected = ask_pipeline(str(folder), texts)
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    model = open_model(str(folder))
    assert model.files["tokenizer.json"] != (folder / "tokenizer.json").read_bytes()
    exact = compute(model, texts, backend="torch", precision="float32")
    np.testing.assert_allclose(exact, expected, atol=1e-5)


def test_old_vocabularies_do_without_a_tokenizer_json(folders, tmp_path, packaged_encoder):
    folder = Path(shutil.copytree(folders("bert"), tmp_path / "old"))
    shutil.copy(Path(packaged_encoder) / "vocab.txt", folder)
    (folder / "tokenizer.json").unlink()
    assert isinstance(AutoTokenizer.from_pretrained(folder), BertTokenizer)
    exact = compute(open_model(str(folder)), backend="torch", precision="float32")
    np.testing.assert_allclose(exact, ask_pipeline(str(folder)), atol=1e-5)


def test_heads_of_pretraining_and_poolers_may_lie_beside(folders, tmp_path):
    folder = Path(shutil.copytree(folders("roberta"), tmp_path / "beside"))
    weights = load_file(folder / WEIGHTS)
    beside = {"roberta.pooler.dense.bias": torch.zeros(32), "lm_head.bias": torch.zeros(3)}
    save_file(weights | beside, folder / WEIGHTS, metadata={"format": "pt"})
    np.testing.assert_allclose(
        compute(open_model(str(folder)), backend="torch", precision="float32"),
        ask_pipeline(folders("roberta")),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"id2label": {"0": "good"}}, "gives a number, not a label"),
        ({"problem_type": "regression"}, "gives a number, not a label"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "has several labels named 'a'.*adopt --label-names"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "numbers the labels 1, 2, 3; expected 0 to 2"),
        ({"id2label": {"0": "a", "1": "b"}}, r"do not fit the model .* of another shape \(classifier"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, "needs code of its own, which is not run"),
        ({"model_type": "mine"}, "cannot be loaded: "),
        ({"model_type": "vit", "architectures": None}, "family vit, for which transformers has no classifier"),
        (
            {"architectures": ["DistilBertForMaskedLM"]},
            "is not a classifier: its config.json names DistilBertForMaskedLM",
        ),
        ({"n_layers": 3}, r"do not fit the model in its config.json: 16 missing \("),
    ],
)
def test_what_does_not_give_each_text_one_label_is_refused(copied, config, words):
    folder = copied(**config)
    with pytest.raises(UserError, match=f"^(--model|the weights of) {folder}.*{words}") as refusal:
        open_model(str(folder))
    assert "\n" not in str(refusal.value)
    assert "/sentiment-core-" not in str(refusal.value)  # no temporary folder


@pytest.mark.parametrize("loader", [AutoModel, AutoModelForCausalLM])
def test_a_model_without_a_head_is_refused(folders, tmp_path, loader):
    tokenizer = AutoTokenizer.from_pretrained(folders("gpt2"))
    config = AutoConfig.from_pretrained(folders("gpt2"))
    loader.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is not a classifier: its config\.json names GPT2"):
        open_model(str(tmp_path))
    content = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["GPT2ForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"do not fit the model in its config.json: 1 missing \(score.weight\)"):
        open_model(str(tmp_path))


def test_pickled_weights_are_refused_with_the_command_that_converts_a_classifier(copied):
    folder = copied()
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"others are pickles.*import AutoModelForSequenceClassification, AutoTokenizer"
    ):
        open_model(str(folder))


def test_weights_that_are_a_pointer_of_git_are_refused(copied):
    folder = copied()
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="cannot be loaded: "):
        open_model(str(folder))


def test_a_tokenizer_that_types_its_special_tokens_is_refused(copied, monkeypatch):
    load = encoder.load_tokenizer

    def load_typed(folder: str):
        tokenizer = load(folder)
        call = type(tokenizer).__call__
        typed = type("Typed", (type(tokenizer),), {"__call__": lambda *a: call(*a) | {"token_type_ids": [[0, 0, 2]]}})
        tokenizer.__class__ = typed
        return tokenizer

    monkeypatch.setattr(encoder, "load_tokenizer", load_typed)
    with pytest.raises(UserError, match="marks special tokens by a type of their own"):
        open_model(str(copied()))


def test_a_place_that_holds_neither_is_not_a_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", "s3://"):
        with pytest.raises(UserError, match=r"is not a bundle|expected"):
            open_model(str(path))


def test_a_bundle_is_opened_as_it_is(tiny_bundle):
    model = open_model(tiny_bundle)
    assert (model.path, model.info, model.files) == (tiny_bundle, *bundle.read_files(tiny_bundle))
    with pytest.raises(UserError, match="is a bundle already"):
        source.open_classifier(tiny_bundle)


def test_a_model_of_the_hub_is_pinned_and_found_again_without_network(folders, tmp_path, monkeypatch):
    hub = Hub(folders("distilbert"), tmp_path, monkeypatch)
    model = open_model("me/mine")
    assert model.path == f"me/mine@{'a' * 40}"
    assert model.info.training.encoder.name == "me/mine"
    assert model.info.training.encoder.revision == "a" * 40
    hub.sha = "b" * 40
    assert open_model("me/mine").path == f"me/mine@{'b' * 40}"
    hub.reachable = False
    again = open_model(model.path)
    assert again.path == model.path
    assert bundle.digest_of(again.files) == bundle.digest_of(model.files)


def test_a_bundle_on_the_hub_is_a_bundle(tiny_encoder, tmp_path, monkeypatch):
    place = make_bundle(tiny_encoder, tmp_path / "b", head="mlp")
    Hub(place, tmp_path, monkeypatch)
    model = open_model("me/mine")
    assert model.info.head == "mlp"
    assert model.path == f"me/mine@{'a' * 40}"


def test_a_name_that_the_hub_does_not_know_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object, **__: object):
        raise OSError("no such model")

    monkeypatch.setattr(encoder, "HfApi", refuse)
    monkeypatch.setattr(encoder, "snapshot_download", refuse)
    with pytest.raises(
        UserError, match="--model me/mine is not a folder here and cannot be fetched from the hub: no such"
    ):
        open_model("me/mine")
