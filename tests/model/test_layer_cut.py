"""Encoders are cut down to some of their layers, whatever the family calls these."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    MPNetConfig,
    RobertaConfig,
)

from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.classifier import encoder_layers
from sentiment_core.model.encoder import Encoder
from sentiment_core.model.layer_cut import choose_layers, cut_layers
from sentiment_core.training.job import prepare
from sentiment_core.training.settings import TrainSettings

SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 32}


def test_layers_are_evenly_spread_and_the_last_is_among_them():
    assert choose_layers(12, 6) == [1, 3, 5, 7, 9, 11]
    assert choose_layers(12, 4) == [2, 5, 8, 11]
    assert choose_layers(6, 4) == [0, 2, 3, 5]
    assert choose_layers(6, 1) == [5]
    assert choose_layers(3, 3) == [0, 1, 2]


@pytest.mark.parametrize(
    "config",
    [
        BertConfig(**SMALL),
        RobertaConfig(**SMALL),
        MPNetConfig(**SMALL),
        DebertaV2Config(**SMALL),
        DistilBertConfig(vocab_size=60, dim=16, n_layers=6, n_heads=2, hidden_dim=32),
    ],
    ids=lambda config: config.model_type,
)
def test_a_cut_encoder_has_the_weights_of_the_chosen_layers(config, tmp_path):
    whole = AutoModel.from_config(config)
    whole.save_pretrained(tmp_path)
    with cut_layers(Encoder("whole", str(tmp_path), None), 3) as encoder:
        assert encoder.name == "whole"
        cut, report = AutoModel.from_pretrained(encoder.folder, output_loading_info=True)
    assert not Path(encoder.folder).exists()
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert cut.config.num_hidden_layers == len(encoder_layers(cut)) == 3
    for number, layer in enumerate(encoder_layers(cut)):
        expected = encoder_layers(whole)[2 * number + 1].state_dict()
        assert layer.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in layer.state_dict().items())


def test_weights_in_parts_are_put_together(tmp_path):
    AutoModel.from_config(BertConfig(**SMALL)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / bundle.WEIGHTS)
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: weights[name] for name in own}, tmp_path / file, metadata={"format": "pt"})
    (tmp_path / bundle.WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with cut_layers(Encoder("whole", str(tmp_path), None), 2) as encoder:
        cut = load_file(Path(encoder.folder) / bundle.WEIGHTS)
    assert torch.equal(cut["encoder.layer.0.output.dense.bias"], weights["encoder.layer.2.output.dense.bias"])
    assert not [name for name in cut if name.startswith("encoder.layer.2.")]


def test_layers_that_an_encoder_cannot_give_are_refused(tmp_path):
    AutoModel.from_config(BertConfig(**SMALL)).save_pretrained(tmp_path / "bert")
    AlbertConfig(**SMALL, embedding_size=8).save_pretrained(tmp_path / "albert")
    with (
        pytest.raises(UserError, match=r"^--layers is 7; --model whole has 6 layers\. Lower it\.$"),
        cut_layers(Encoder("whole", str(tmp_path / "bert"), None), 7),
    ):
        pass
    sentence = (
        r"^--layers: --model whole is of the family albert, whose layers cannot be taken apart\. Leave --layers out, "
        r"or choose one of bert, camembert, deberta-v2, distilbert, electra, mpnet, roberta, xlm-roberta\.$"
    )
    with pytest.raises(UserError, match=sentence), cut_layers(Encoder("whole", str(tmp_path / "albert"), None), 2):
        pass
    (tmp_path / "bert" / bundle.WEIGHTS).write_bytes(b"broken")
    with (
        pytest.raises(UserError, match=r"^--model whole cannot be loaded: "),
        cut_layers(Encoder("whole", str(tmp_path / "bert"), None), 2),
    ):
        pass


def test_a_training_takes_the_chosen_layers(short_encoder, labelled, tmp_path):
    settings = TrainSettings(data=labelled, model=short_encoder, out=str(tmp_path / "b"), layers=1)
    prepared = prepare(settings, settings.out)
    assert prepared.model_config.num_hidden_layers == 1
    assert prepared.encoder.name == short_encoder
    assert prepared.request["layers"] == 1
