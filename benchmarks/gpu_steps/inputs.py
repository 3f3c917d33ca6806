"""Make what the steps compute: token lists of realistic lengths, texts, models with random weights, bundles."""

import itertools
import string
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import AutoConfig, PreTrainedTokenizerFast

from sentiment_core.model import bundle, classifier
from sentiment_core.model.classifier import Classifier
from sentiment_core.model.encoder import load_tokenizer
from sentiment_core.runtime import hardware
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists

VOCABULARY, CLASSES = 30_522, 3
ID_RANGE = 1_000, 30_000  # of random token ids: special tokens lie outside
# Random weights of unit gain, attention twice that. With BERT's own 0.02 a row hardly shows what else it attends to,
# so a lost isolation of rows would pass for rounding; measured on two shapes, the ratio of the two is 3 and 38.
ATTENTION_GAIN = 2.0
ATTENTION_WEIGHTS = (
    *(".value.weight", ".value_proj.weight", ".v_lin.weight", ".attn.v.weight"),
    *("attention.output.dense.weight", ".attention.dense.weight", ".out_lin.weight", ".attn.o.weight"),
)
LOGIT_SPREAD, CALIBRATION_ROWS = 0.7, 64  # standard deviation of the logits over these rows
CHECK_LENGTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 127, 129, 255, 256, 257, 511, 512)  # at kernels' edges
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Shape:
    """The shape of an encoder."""

    hidden: int
    layers: int
    heads: int
    inner: int
    family: str = "bert"


SHAPES = {
    "minilm-l6": Shape(384, 6, 12, 1_536),
    "distilbert": Shape(768, 6, 12, 3_072, "distilbert"),
    "bert-base": Shape(768, 12, 12, 3_072),
}
SMALL_SHAPES = {"minilm-l6": Shape(64, 2, 2, 128)}
FAMILIES: dict[str, dict[str, Any]] = {  # with the settings that others than BERT need
    "bert": {},
    "distilbert": {},
    "roberta": {},
    "xlm-roberta": {},
    "electra": {"embedding_size": 64},
    "albert": {"embedding_size": 64},
    "mpnet": {},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102, "local_attention": 32},
}


def draw_lengths(mean: float, longest: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Draw lengths of texts in tokens, (rows,) int64: gamma, from 3 to `longest`."""
    return np.clip(rng.gamma(3.0, mean / 3.0, rows).round().astype(np.int64), 3, longest)


def draw_sentences(rows: int, longest: int, seed: int = 0) -> TokenLists:
    """Draw token lists as long as sentences: 31 tokens on average."""
    rng = np.random.default_rng(seed)
    return random_lists(draw_lengths(31, min(128, longest), rows, rng), rng)


def draw_reviews(rows: int, longest: int) -> TokenLists:
    """Draw token lists as long as reviews: 275 tokens on average where `longest` is 512."""
    rng = np.random.default_rng(0)
    return random_lists(draw_lengths(0.57 * longest, longest, rows, rng), rng)


def draw_check_lists(rows: int, longest: int) -> TokenLists:
    """Draw rows to compare: lengths at edges of kernels, and sentences."""
    rng = np.random.default_rng(1)
    edges = [length for length in CHECK_LENGTHS if length <= longest]
    return random_lists(np.concatenate([edges, draw_lengths(31, min(128, longest), rows, rng)]), rng)


def random_lists(lengths: np.ndarray, rng: np.random.Generator) -> TokenLists:
    """Draw random token lists of these lengths."""
    ids = rng.integers(*ID_RANGE, int(lengths.sum()), dtype=np.int32)
    return TokenLists(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def make_model(shape: Shape, longest: int, device: torch.device) -> Classifier:
    """Make a classifier with random weights, in evaluation mode on the device."""
    sizes = dict(zip(_size_names(shape.family), (shape.hidden, shape.layers, shape.heads, shape.inner), strict=True))
    config = AutoConfig.for_model(
        shape.family,
        vocab_size=VOCABULARY,
        max_position_embeddings=longest + 2,
        initializer_range=shape.hidden**-0.5,
        num_labels=CLASSES,
        **sizes,
        **FAMILIES[shape.family],
    )
    torch.manual_seed(0)
    model = classifier.from_config(config, "standard").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(ATTENTION_WEIGHTS):
                parameter.mul_(ATTENTION_GAIN)
    scale_head(model.to(device), device, min(64, longest))
    return model


def _size_names(family: str) -> tuple[str, ...]:
    if family == "distilbert":
        return ("dim", "n_layers", "n_heads", "hidden_dim")
    return ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def scale_head(model: Classifier, device: torch.device, longest: int) -> None:
    """Shift and scale the last layer so that rows get different labels; a random layer gives all of them one."""
    lists = draw_sentences(CALIBRATION_ROWS, longest)
    ids, mask = hardware.to_device(device, *pad(lists, np.arange(len(lists)), pad_id(model)))
    layer = classifier.last_layer(model, CLASSES)
    with torch.no_grad():
        logits = model(ids, mask)
        scale = LOGIT_SPREAD / logits.std(dim=0).mean()
        layer.weight.mul_(scale)
        layer.bias.copy_((layer.bias - logits.mean(dim=0)) * scale)


def pad_id(model: Classifier) -> int:
    """Return the id that pads a row."""
    config: Any = model.encoder.config
    return config.pad_token_id or 0


def make_bundle(folder: str, shape: Shape, longest: int, encoder: str | None, device: torch.device) -> None:
    """Write a bundle: random weights of this shape, or a trained encoder with a new head."""
    labels = [f"label_{i}" for i in range(CLASSES)]
    if encoder is None:
        model, tokenizer = make_model(shape, longest, device), make_tokenizer(longest)
    else:
        torch.manual_seed(0)
        model = classifier.from_encoder(encoder, classifier.make_config(encoder, labels), "standard").eval()
        scale_head(model.to(device), device, min(64, longest))
        tokenizer = load_tokenizer(encoder)
    config: Any = model.encoder.config
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    bundle.write(folder, model.cpu(), config, tokenizer, bundle.BundleInfo("standard", labels, longest), {})


def make_tokenizer(longest: int) -> PreTrainedTokenizerFast:
    """Make a WordPiece tokenizer of as many words as BERT's has."""
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    made_up = map("".join, itertools.product(string.ascii_lowercase, repeat=4))
    words = [*SPECIAL_TOKENS, *letters, *itertools.islice(made_up, VOCABULARY - len(SPECIAL_TOKENS) - len(letters))]
    backend = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [(name, words.index(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=longest, **names)


def draw_texts(folder: str, rows: int, longest: int, seed: int = 0) -> list[str]:
    """Draw texts of the vocabulary's plain words, as long as sentences."""
    rng = np.random.default_rng(seed)
    vocabulary = load_tokenizer(folder).get_vocab()
    words = np.array(sorted(w for w in vocabulary if w.isascii() and w.isalpha() and w.islower() and len(w) > 2))
    return [" ".join(rng.choice(words, n - 2)) for n in draw_lengths(31, min(128, longest), rows, rng)]
