"""Models that cannot be used as this project uses models are refused, before any work."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from sentiment_core.errors import UserError
from sentiment_core.inference.engine import Engine, NotFinite
from sentiment_core.model import bundle, classifier, encoder, fitness
from sentiment_core.text.token_lists import TokenLists
from tests.conftest import make_bundle

WEIGHTS = "model.safetensors"
DECODER = {"vocab_size": 30522, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1}


def load(folder, head="standard", labels=("a", "b")):
    return classifier.from_encoder(str(folder), classifier.make_config(str(folder), list(labels)), head)


@pytest.fixture
def changed(tiny_encoder, tmp_path):
    """Return a function that copies the tiny encoder with other weights."""

    def change(function):
        folder = tmp_path / "changed"
        folder.mkdir(exist_ok=True)
        for path in Path(tiny_encoder).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        save_file(function(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
        return folder

    return change


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("head", ["standard", "mlp"])
def test_prefixes_of_wrappers_are_taken_off(tiny_encoder, changed, prefix, head):
    folder = changed(lambda weights: {prefix + name: value for name, value in weights.items()})
    expected = dict(load(tiny_encoder, head).encoder.named_parameters())
    for name, value in load(folder, head).encoder.named_parameters():
        torch.testing.assert_close(value, expected[name])


LAYER = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize("head", ["standard", "mlp"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: {name: value for name, value in w.items() if name != LAYER}, rf"1 missing \({LAYER}\)"),
        (lambda w: w | {LAYER: torch.zeros(3, 3)}, rf"1 of another shape \({LAYER}\)"),
        (lambda w: w | {"encoder.layer.2.output.dense.bias": torch.zeros(32)}, r"1 unexpected \(encoder\.layer\.2\."),
        (lambda w: {f"other.{name}": value for name, value in w.items()}, r"\d\d missing \("),
    ],
)
def test_weights_of_another_encoder_are_refused(changed, head, change, words):
    with pytest.raises(UserError, match=f"do not fit the model in its config.json: .*{words}"):
        load(changed(change), head)


def test_what_pretrained_encoders_lack_or_have_beside_is_no_fault(changed):
    def change(weights):
        without = {name: value for name, value in weights.items() if "pooler" not in name}
        return without | {"cls.predictions.bias": torch.zeros(3), "embeddings.position_ids": torch.arange(512)[None]}

    load(changed(change))


def test_a_bundle_lacks_nothing(tiny_bundle, tmp_path):
    for path in Path(tiny_bundle).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / WEIGHTS)
    del weights["classifier.bias"]
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing \(classifier\.bias\)"):
        bundle.load(str(tmp_path))


def test_a_kept_head_follows_the_names_of_the_labels(tiny_encoder, tmp_path):
    place = make_bundle(tiny_encoder, tmp_path / "b", labels=("c", "b", "a"))
    before, after, others = (load(place, labels=names).model.classifier for names in ("cba", "abc", "abx"))
    assert torch.equal(after.weight, before.weight.flip(0))
    assert torch.equal(after.bias, before.bias.flip(0))
    assert not torch.isclose(others.weight, before.weight).any()


def test_a_decoder_is_refused_where_its_first_token_would_decide(tiny_encoder, tmp_path):
    AutoModel.from_config(AutoConfig.for_model("gpt2", **DECODER)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"first token of this gpt2 model does not see the others.*encoder"):
        fitness.check_attention("m", load(tmp_path, "mlp").eval(), "mlp")
    for head in ("standard", "mlp"):
        fitness.check_attention("m", load(tiny_encoder, head).eval(), head)


def test_a_tokenizer_that_does_not_fit_is_refused(tiny_encoder):
    config, tokenizer = AutoConfig.from_pretrained(tiny_encoder), encoder.load_tokenizer(tiny_encoder)
    fitness.check_tokenizer("m", config, tokenizer)
    tokenizer.add_tokens(["<extra>"])
    with pytest.raises(UserError, match="has 30,523 tokens and the encoder embeddings for 30,522"):
        fitness.check_tokenizer("m", config, tokenizer)
    tokenizer = encoder.load_tokenizer(tiny_encoder)
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="no padding token"):
        fitness.check_tokenizer("m", config, tokenizer)


def test_a_family_whose_scores_depend_on_padding_is_refused():
    config = AutoConfig.for_model("xlnet", vocab_size=100, d_model=16, n_layer=1, n_head=2, d_inner=32, num_labels=2)
    model = classifier.StandardClassifier(AutoModelForSequenceClassification.from_config(config))
    for check in (lambda: fitness.check_padding(model), lambda: Engine(model, 2, 32)):
        with pytest.raises(UserError, match="xlnet gives a text another score when longer texts stand beside it"):
            check()


def test_numbers_that_are_none_are_an_error(tiny_bundle):
    model, info = bundle.load(tiny_bundle)
    with torch.no_grad():
        model.encoder.embeddings.word_embeddings.weight[7] = torch.nan
    engine = Engine(model, 2, info.max_length, backend="torch")
    good, bad = (TokenLists(np.array([5, 6, third], np.int32), np.array([0, 1, 3])) for third in (5, 7))
    assert engine.probabilities(good)[0].shape == (2, 2)
    with pytest.raises(NotFinite, match="no finite probabilities for 1 of 2 distinct texts, computed by torch"):
        engine.probabilities(bad)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            ["config.json", "vocab.txt", "pytorch_model.bin"],
            r"others are pickles, .*convert them: python -c .*save_pretrained",
        ),
        (["config.json", "model.safetensors"], "has no tokenizer"),
        (["vocab.txt", "model.safetensors"], r"has no config\.json"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_with_the_remedy(tmp_path, files, words):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=words):
        encoder.fetch(str(tmp_path))


def test_a_sentencepiece_tokenizer_names_what_reads_it(tmp_path, monkeypatch):
    for name in ("config.json", "spm.model", "model.safetensors"):
        (tmp_path / name).touch()
    monkeypatch.setattr(encoder, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Install what reads it: pip install sentencepiece protobuf"):
        encoder.fetch(str(tmp_path))
