"""Heads on encoders of several families, all with random weights."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig
from transformers.utils import logging

from sentiment_core.errors import UserError
from sentiment_core.model import classifier, families
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.training.optimizer import make_optimizer
from sentiment_core.training.recipe import Recipe
from sentiment_core.training.settings import TrainSettings
from sentiment_core.training.vocabulary import TrimmedVocabulary, ids_in, remap
from tests.conftest import make_bundle

SMALL = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
FAMILIES = {
    "bert": SMALL,
    "roberta": SMALL | {"pad_token_id": 1, "type_vocab_size": 1},
    "electra": SMALL | {"embedding_size": 16},
    "albert": SMALL | {"embedding_size": 16},
    "deberta-v2": SMALL,
    "modernbert": SMALL | {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2},
    "distilbert": {"vocab_size": 100, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "mpnet": SMALL | {"pad_token_id": 1},
    "longformer": SMALL | {"pad_token_id": 1, "type_vocab_size": 1, "attention_window": 16},
}


@pytest.fixture(params=FAMILIES)
def config(request, tmp_path):
    AutoConfig.for_model(request.param, **FAMILIES[request.param]).save_pretrained(tmp_path)
    return classifier.make_config(str(tmp_path), ["a", "b", "c"], dropout=0.0)


@pytest.mark.parametrize("head", ["standard", "mlp"])
def test_every_family_gives_logits_from_its_last_layer(config, head):
    model = classifier.from_config(config, head).eval()
    batch = {"input_ids": torch.randint(5, 99, (4, 7)), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
    with torch.no_grad():
        logits = model(**batch)
        last = classifier.last_layer(model, 3)
        last.weight.div_(2)
        last.bias.div_(2)
        assert logits.shape == (4, 3)
        torch.testing.assert_close(model(**batch), logits / 2)


@pytest.mark.parametrize("head", ["standard", "mlp"])
def test_dropouts_reach_every_family(config, head):
    model = classifier.from_config(config, head)
    classifier.set_head_dropout(model, 0.3)
    found = {True: set(), False: set()}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            found[name.startswith(model.encoder_prefix)].add(module.p)
    assert found[False] == {0.3}
    assert found[True] <= {0.0}


@pytest.mark.parametrize("head", ["standard", "mlp"])
def test_the_head_learns_at_its_own_rate_and_norms_and_biases_do_not_decay(config, head):
    model = classifier.from_config(config, head)
    settings = TrainSettings(data="", model="", out="", weight_decay=0.1)
    found = {}
    for group in make_optimizer(model, settings, Recipe(lr=1e-5, head_lr=1e-3)).param_groups:
        found |= {id(parameter): (group["lr"], group["weight_decay"]) for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    assert len(found) == len(parameters)
    last = classifier.last_layer(model, 3)
    assert found[id(last.weight)] == (1e-3, 0.1)
    assert found[id(last.bias)] == (1e-3, 0.0)
    embeddings = next(p for n, p in parameters.items() if "word_embeddings" in n or "tok_embeddings" in n)
    assert found[id(embeddings)] == (1e-5, 0.1)
    assert all(
        rate == 1e-5 for n, p in parameters.items() if n.startswith(model.encoder_prefix) for rate, _ in [found[id(p)]]
    )
    assert all(decay == 0.0 for p in parameters.values() if p.ndim == 1 for _, decay in [found[id(p)]])


@pytest.mark.parametrize("head", ["standard", "mlp"])
def test_every_family_is_the_same_with_the_vocabulary_that_is_used(config, head):
    """In batches with padding, by which some families count positions."""
    classifier.check(config, head, ["a", "b", "c"], gradient_checkpointing=False)
    model = classifier.from_config(config, head).eval()
    tokens = TokenLists(np.array([50, 7, 90, 7, 13, 50], np.int32), np.array([0, 2, 6]))
    pad_id = config.pad_token_id or 0

    def logits(lists: TokenLists) -> torch.Tensor:
        with torch.no_grad():
            return model(*map(torch.from_numpy, pad(lists, np.array([0, 1]), pad_id)))

    expected = logits(tokens)
    used = ids_in(pad_id, tokens)
    TrimmedVocabulary(model, used)
    torch.testing.assert_close(logits(remap(tokens, used)), expected)


def test_families_that_cannot_save_memory_say_so(tmp_path):
    AutoConfig.for_model("albert", **FAMILIES["albert"]).save_pretrained(tmp_path)
    config = classifier.make_config(str(tmp_path), ["a", "b"])
    with pytest.raises(UserError, match="--gradient-checkpointing: albert"):
        classifier.check(config, "standard", ["a", "b"], gradient_checkpointing=True)


def test_the_mlp_head_is_the_one_described(tiny_encoder):
    config = classifier.make_config(tiny_encoder, ["a", "b"])
    model = classifier.from_encoder(tiny_encoder, config, "mlp")
    assert (model.dense.in_features, model.dense.out_features, model.classifier.out_features) == (32, 16, 2)
    bound = (6 / (32 + 16)) ** 0.5  # Xavier, uniform
    assert 0.9 * bound < model.dense.weight.abs().max() <= bound
    assert not model.dense.bias.any()


@pytest.mark.parametrize("head", ["standard", "mlp"])
def test_last_layer_is_spared_what_the_head_does_not_see(config, head):
    torch.manual_seed(0)
    model = classifier.from_config(config, head).eval()
    lists = TokenLists(np.arange(5, 35, dtype=np.int32), np.array([0, 1, 11, 30]))
    batch = [torch.from_numpy(x) for x in pad(lists, np.arange(3), config.pad_token_id or 0)]

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(*batch), torch.tensor([0, 1, 2])).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    seen = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith(model.encoder_prefix):
            module.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    # not where all layers are one and the same, nor where padding is cut off behind the last
    spared = config.model_type not in ("albert", "longformer")
    assert classifier.compute_first_token_only(model, model.encoder) == spared
    seen.clear()
    torch.testing.assert_close(gradients(), expected)
    assert (1 in seen) == spared


def test_a_model_with_a_decoder_is_refused():
    config = AutoConfig.for_model("bart", vocab_size=100, d_model=16, encoder_layers=1, decoder_layers=1)
    with pytest.raises(UserError, match="bart, which has a decoder"):
        classifier.check(config, "mlp", ["a", "b"], False)


def test_families_that_count_no_positions_have_no_limit():
    config = AutoConfig.for_model("xlnet", vocab_size=100, d_model=16, n_layer=1, n_head=2, d_inner=32)
    assert (config.max_position_embeddings, families.count_positions(config, 512)) == (-1, 512)
    assert len(families.make_probe(config).ids)


def test_loading_and_writing_show_no_bars_and_leave_those_of_the_session(tiny_encoder, tmp_path, capsys):
    logging.enable_progress_bar()
    make_bundle(tiny_encoder, tmp_path / "b")
    assert capsys.readouterr().err == ""
    assert logging.is_progress_bar_enabled()
