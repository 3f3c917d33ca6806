"""Make small classifiers of several families with random weights, as transformers saves them, and a hub."""

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Tokenizer,
    PreTrainedTokenizerBase,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from sentiment_core.model import encoder
from tests.conftest import BAD, GOOD, sentences

LABELS = ("bad", "so so", "good")
VOCABULARY = 400  # tokens of the tokenizers that are trained here
POSITIONS = 64
WEIGHTS_STD = 0.3  # ten times the usual, so that texts and their words make a difference
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
# by family, as transformers names it: what its configuration has besides
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "roberta": {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    "xlm-roberta": {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "mpnet": {"max_position_embeddings": POSITIONS + 2, "pad_token_id": 0},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 16, "classifier_pooling": "mean"},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2},
}
BYTE_PAIRS = ("roberta", "gpt2", "bart")
PIECES = {  # class, and special tokens that its vocabulary begins with
    "xlm-roberta": (XLMRobertaTokenizer, ["<s>", "<pad>", "</s>", "<unk>"]),
    "albert": (AlbertTokenizer, ["<pad>", "<unk>", "[CLS]", "[SEP]"]),
    "deberta-v2": (DebertaV2Tokenizer, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]),
}


class Hub:
    """A hub with the model me/mine, whose newest revision is `sha`; `folders` has the files of some revisions."""

    def __init__(self, folder: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.sha = cache, "a" * 40
        self.folders = dict.fromkeys(["a" * 40, "b" * 40], folder)
        self.reachable = True
        monkeypatch.setattr(encoder, "HfApi", lambda: self)
        monkeypatch.setattr(encoder, "snapshot_download", self.download)

    def model_info(self, name: str, revision: str | None, timeout: float) -> SimpleNamespace:
        if not self.reachable:
            raise OSError("no network")
        assert name == "me/mine"
        return SimpleNamespace(sha=revision or self.sha)

    def download(self, name: str, revision: str | None, local_files_only: bool, **_: object) -> str:
        assert local_files_only != self.reachable
        sha = revision or self.sha
        if not (self.cache / sha).exists():
            assert self.reachable
            shutil.copytree(self.folders[sha], self.cache / sha)
        return str(self.cache / sha)


def make_classifier(
    family: str, folder: Path, packaged_encoder: str, labels: tuple[str, ...] | None = LABELS, **options: Any
) -> str:
    """Save a classifier with random weights; `options` are of its configuration."""
    tokenizer = make_tokenizer(family, packaged_encoder)
    named = {} if labels is None else {"id2label": dict(enumerate(labels))}
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": POSITIONS}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes | special | FAMILIES[family] | named | options)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=WEIGHTS_STD)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_tokenizer(family: str, packaged_encoder: str) -> PreTrainedTokenizerBase:
    """Make a tokenizer of the kind that the family has: word pieces, byte pairs or the pieces of a unigram model."""
    if family in BYTE_PAIRS:
        vocabulary, merges = _byte_pairs()
        return RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)
    if family in PIECES:
        return PIECES[family][0](vocab=_pieces(family), model_max_length=POSITIONS)
    tokenizer = AutoTokenizer.from_pretrained(packaged_encoder)
    tokenizer.model_max_length = POSITIONS
    return tokenizer


@functools.cache
def _byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        _texts(), VOCABULARY, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@functools.cache
def _pieces(family: str) -> list[tuple[str, float]]:
    special = PIECES[family][1]
    unknown = next(token for token in special if "unk" in token.lower())
    tokenizer = SentencePieceUnigramTokenizer()
    tokenizer.train_from_iterator(_texts(), VOCABULARY, False, special, unk_token=unknown)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def _texts() -> list[str]:
    return [*sentences(300, seed=3)["text"].to_pylist(), *GOOD, *BAD]
