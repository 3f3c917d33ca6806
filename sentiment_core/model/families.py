"""List what differs between encoder families: the names of their settings, their positions, their attention."""

from typing import Any

import numpy as np

from sentiment_core.text.token_lists import TokenLists

# names of the dropouts inside the encoder
ENCODER_DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "embedding_dropout",
    "mlp_dropout",
)  # fmt: skip
# families whose attention is the plain one; others may have fewer keys than queries, caps, sinks, ...
PLAIN_ATTENTION = ("albert", "bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
# families whose layers are alike and stand in one list, so that some of them make an encoder, too
PLAIN_LAYERS = ("bert", "camembert", "deberta-v2", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
# families some of whose layers attend to a window on both sides, as transformers' flash attention counts it
WINDOWED_ATTENTION = ("modernbert",)
# families that number positions from behind the padding id, so that no token takes the first two
POSITIONS_BEHIND_PADDING = (
    "roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "data2vec-text", "esm", "ibert", "lilt", "luke",
    "roberta-prelayernorm", "xlm-roberta-xl", "xmod",
)  # fmt: skip
RESERVED_POSITIONS = 2  # in those
PROBE_LENGTHS = (1, 2, 15, 16, 40)  # in tokens, of the rows that backends are checked with


def count_positions(config: Any, unbounded: int) -> int:
    """Return how many positions the encoder has; `unbounded` where it has no fixed number of them."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    return positions if positions > 0 else unbounded  # XLNet: -1


def longest_text(config: Any, unbounded: int) -> int:
    """Return how many tokens of a text the encoder takes; `unbounded` where it has no fixed limit."""
    reserved = RESERVED_POSITIONS if config.model_type in POSITIONS_BEHIND_PADDING else 0
    return count_positions(config, unbounded) - reserved


def make_probe(config: Any, beyond_window: bool = False) -> TokenLists:
    """Make random token lists of several lengths, to check a backend with.

    With `beyond_window` there is another list, if the family attends within a window: longer than the window, so that
    a backend without it is found out.
    """
    limit = count_positions(config, 512) - RESERVED_POSITIONS
    lengths = list(PROBE_LENGTHS)
    if beyond_window and config.model_type in WINDOWED_ATTENTION:
        lengths.append(config.local_attention * 3 // 2)
    return make_random_lists(config, np.minimum(lengths, limit))


def make_random_lists(config: Any, lengths: np.ndarray) -> TokenLists:
    """Make random token lists of these lengths, without special tokens.

    Vocabularies keep special tokens at either end, so ids are drawn from the middle. The head of a model with a decoder
    looks at the token that ends a text, so that its lists have one.
    """
    offsets = np.cumsum([0, *lengths])
    quarter = config.vocab_size // 4
    ids = np.random.default_rng(0).integers(quarter, 3 * quarter, offsets[-1], dtype=np.int32)
    ids[ids == (config.pad_token_id or 0)] += 1
    if config.is_encoder_decoder:
        ids[offsets[1:] - 1] = config.eos_token_id
    return TokenLists(ids, offsets)
