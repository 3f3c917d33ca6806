"""Each backend gives what transformers' own model gives, in families whose attention or positions are their own."""

import functools

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, masking_utils

from sentiment_core.inference.backends import openvino
from sentiment_core.inference.backends.base import BackendUnavailable
from sentiment_core.inference.engine import Engine
from sentiment_core.model import families
from sentiment_core.model.classifier import StandardClassifier
from sentiment_core.runtime import hardware
from sentiment_core.text.token_lists import TokenLists

CLASSES, VOCABULARY, LONGEST, PAD_ID = 3, 400, 300, 1
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "vocab_size": VOCABULARY, "pad_token_id": PAD_ID, "max_position_embeddings": LONGEST + 2, "num_labels": CLASSES,
    "initializer_range": 0.3,
}  # fmt: skip
# layers within the window first, so that what they make of padding reaches the other tokens
WINDOWS_FIRST = {
    "cls_token_id": 2, "sep_token_id": 3, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
FAMILIES = {
    "modernbert": ("modernbert", WINDOWS_FIRST),
    "modernbert, mean": ("modernbert", WINDOWS_FIRST | {"classifier_pooling": "mean"}),
    "modernbert, narrow": ("modernbert", WINDOWS_FIRST | {"local_attention": 8}),
    "deberta-v3": (
        "deberta-v2",
        {
            "relative_attention": True, "position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
        },
    ),
    "xlm-roberta": ("xlm-roberta", {"type_vocab_size": 1}),
    "mpnet": ("mpnet", {}),
    "electra": ("electra", {"embedding_size": 16}),
    "albert": ("albert", {"embedding_size": 16}),
}  # fmt: skip
NOT_PACKED = {
    "modernbert, mean": "this family's head looks at more than the first token",
    "deberta-v3": "this family brings its own attention",
    "mpnet": "this family brings its own attention",
}
WINDOWED = [name for name, (family, _) in FAMILIES.items() if family in families.WINDOWED_ATTENTION]
RUNS = [(name, backend) for name in FAMILIES for backend in ("openvino", "torch", "packed")
        if backend != "packed" or name not in NOT_PACKED]  # fmt: skip
EXACT = 1e-4


def draw(lengths: tuple[int, ...]) -> TokenLists:
    ids = np.random.default_rng(0).integers(10, VOCABULARY - 10, sum(lengths), dtype=np.int32)
    return TokenLists(ids, np.cumsum([0, *lengths]).astype(np.int64))


# some are several windows long; the engine puts the last ones into one batch
TOKENS = draw((1, 16, 70, 200, LONGEST - 1, LONGEST))


@functools.cache
def make_model(name: str, **options: float) -> StandardClassifier:
    family, own = FAMILIES[name]
    config = AutoConfig.for_model(family, **SIZES | own | options)
    torch.manual_seed(0)
    return StandardClassifier(AutoModelForSequenceClassification.from_config(config)).eval()


def ask_transformers(model: StandardClassifier, tokens: TokenLists = TOKENS) -> np.ndarray:
    """Return the probabilities of each row alone, by transformers' own forward pass."""
    with torch.inference_mode():
        rows = [torch.from_numpy(ids[None].astype(np.int64)) for ids in np.split(tokens.ids, tokens.offsets[1:-1])]
        return torch.cat([model.model(input_ids=row).logits for row in rows]).softmax(dim=1).numpy()


def make_engine(
    model: StandardClassifier, backend: str, number_type: str = "float32", max_length: int = LONGEST
) -> Engine:
    noted = {hardware.chip_id(torch.device("cpu")): f"{backend} {number_type}"}  # so that nothing is timed
    return Engine(model, CLASSES, max_length, 2, backend, on_cpu=True, precision=number_type, choices=noted)


def compute_in_one_batch(engine: Engine) -> np.ndarray:
    """Return the probabilities of rows of all lengths side by side, which the engine itself would put apart."""
    with torch.inference_mode():
        states = engine.backend(TOKENS, [np.arange(len(TOKENS))])
        return engine.head(states.double()).softmax(dim=1).numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_make_a_difference(name):
    assert ask_transformers(make_model(name)).std(axis=0).max() > 0.02


@pytest.mark.parametrize("name", WINDOWED)
def test_windows_make_a_difference(name):
    narrow, wide = make_model(name), make_model(name, local_attention=4 * LONGEST)
    difference = np.abs(ask_transformers(narrow) - ask_transformers(wide))
    assert difference[TOKENS.lengths > 128].max() > 100 * EXACT


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), RUNS)
def test_a_row_gets_what_transformers_gives_alone_and_beside_others(name, backend):
    expected = ask_transformers(make_model(name))
    engine = make_engine(make_model(name), backend)
    assert engine.backend.name == f"{backend} float32"
    np.testing.assert_allclose(engine.probabilities(TOKENS)[0], expected, atol=EXACT)
    np.testing.assert_allclose(compute_in_one_batch(engine), expected, atol=EXACT)
    for row in range(len(TOKENS)):
        alone, _ = engine.probabilities(TOKENS.take(np.array([row])))
        np.testing.assert_allclose(alone[0], expected[row], atol=EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_rotary_positions_of_long_rows_stay_right_in_16_bits(backend):
    """Compute long rows in bfloat16, which has every second number above 256 and every eighth above 1,024."""
    if torch.bfloat16 not in hardware.number_types(torch.device("cpu")):
        pytest.skip("needs a CPU that computes bfloat16")
    longest = 1_500
    model, tokens = (
        make_model("modernbert", max_position_embeddings=longest, initializer_range=0.5),
        draw((700, longest)),
    )
    engine = make_engine(model, backend, "bfloat16", longest)
    assert engine.backend.name == f"{backend} bfloat16"
    np.testing.assert_allclose(engine.probabilities(tokens)[0], ask_transformers(model, tokens), atol=0.06)


def test_scaled_rotary_positions_are_left_to_torch():
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    config = AutoConfig.for_model("modernbert", **SIZES | WINDOWS_FIRST)
    config.rope_parameters = {
        "full_attention": scaled,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    model = StandardClassifier(AutoModelForSequenceClassification.from_config(config)).eval()
    with pytest.raises(BackendUnavailable, match="rotary positions are scaled"):
        make_engine(model, "openvino")


@pytest.mark.parametrize("name", NOT_PACKED)
def test_what_cannot_be_packed_says_why(name):
    with pytest.raises(BackendUnavailable, match=NOT_PACKED[name]):
        make_engine(make_model(name), "packed")


@pytest.mark.slow
def test_a_backend_without_the_window_is_found_out(monkeypatch):
    """By a row that is longer than the window."""

    def without_window(mask_function, **others):
        return masking_utils.sdpa_mask(mask_function=masking_utils.bidirectional_mask_function, **others)

    monkeypatch.setattr(openvino, "sdpa_mask", without_window)
    with pytest.raises(BackendUnavailable, match="differ"):
        make_engine(make_model("modernbert"), "openvino")
