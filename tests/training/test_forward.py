"""The forward pass of training, with the mask that GPUs get."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, masking_utils

from sentiment_core.model import classifier
from sentiment_core.model.families import PLAIN_ATTENTION
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.training.forward import Forward, can_expand_mask

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "dim": 32,
    "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "embedding_size": 16, "vocab_size": 99, "pad_token_id": 0,
}  # fmt: skip


def make_model(family: str, head: str = "standard") -> classifier.Classifier:
    known = vars(AutoConfig.for_model(family))
    config = AutoConfig.for_model(family, **{name: size for name, size in SIZES.items() if name in known})
    torch.manual_seed(0)
    return classifier.from_config(config, head).eval()


def random_lists(lengths: list[int]) -> TokenLists:
    ids = np.random.default_rng(0).integers(5, 90, sum(lengths), dtype=np.int32)
    return TokenLists(ids, np.cumsum([0, *lengths]))


@pytest.mark.parametrize("family", PLAIN_ATTENTION)
@pytest.mark.parametrize("lengths", [[9, 4, 1], [9, 9, 9]], ids=["padded", "of one length"])
def test_the_expanded_mask_gives_the_same_and_nobody_looks_at_it(family, lengths, monkeypatch):
    """A look would make the host wait for the GPU in every batch."""
    model = make_model(family)
    classifier.compute_first_token_only(model, model.encoder)  # as in training
    tokens, rows = random_lists(lengths), np.arange(3)
    assert can_expand_mask(model)
    forward = Forward(torch.device("cpu"), torch.float32, 512, 0, expands_mask=False)
    expected = forward.logits(model, tokens, rows)

    def look(padding_mask, *_, **__):
        assert padding_mask is None, "the mask was looked at"
        return True

    monkeypatch.setattr(masking_utils, "_ignore_bidirectional_mask_sdpa", look)
    logits = replace(forward, expands_mask=True).logits(model, tokens, rows)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(("family", "attention"), [("modernbert", "sdpa"), ("mpnet", "eager"), ("bert", "eager")])
def test_other_attention_keeps_the_plain_mask(family, attention):
    model = make_model(family, "mlp")
    model.pretrained.set_attn_implementation(attention)
    assert not can_expand_mask(model)
