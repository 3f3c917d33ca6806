"""Check that a model can be used as this project uses models: padded on the right, with an encoder's attention."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sentiment_core.errors import UserError
from sentiment_core.model import families
from sentiment_core.model.classifier import Classifier
from sentiment_core.model.records import Head
from sentiment_core.text.batching import pad
from sentiment_core.text.token_lists import TokenLists

TOLERANCE = 1e-3  # of logits, which differ in rounding


def check_vocabulary(name: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with tokens that the encoder does not know. Raises `UserError`."""
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"--model {name}: the tokenizer has {len(tokenizer):,} tokens and the encoder embeddings for "
            f"{config.vocab_size:,}. Resize the embeddings, or save the tokenizer that the encoder was trained with."
        )


def check_tokenizer(name: str, config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that does not fit the encoder, or cannot pad. Raises `UserError`."""
    check_vocabulary(name, config, tokenizer)
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"--model {name}: the tokenizer of this {config.model_type} model has no padding token. Choose an encoder, "
            "such as a BERT."
        )


def check_attention(name: str, model: Classifier, head: Head) -> None:
    """Refuse a model whose head looks at a token that has not seen the text.

    The mlp head looks at the first token, which in a decoder sees nothing else. Raises `UserError`.
    """
    config: Any = model.encoder.config
    row = families.make_probe(config).take(np.array([2])).ids
    changed = row.copy()
    changed[-1] = row[0] if row[0] != row[-1] else row[1]
    tokens = TokenLists(np.concatenate([row, changed]), np.array([0, len(row), 2 * len(row)]))
    first, second = _logits(model, tokens, np.array([0, 1]))
    if head == "mlp" and torch.equal(first, second):
        raise UserError(
            f"--model {name}: the first token of this {config.model_type} model does not see the others. Choose an "
            "encoder, such as a BERT, or --head standard."
        )


def check_padding(model: Classifier) -> None:
    """Refuse a model that gives a row other logits when longer rows stand beside it. Raises `UserError`."""
    config: Any = model.encoder.config
    lists = families.make_probe(config)
    rows = np.arange(len(lists))
    together = probe_logits(model)
    alone = torch.cat([_logits(model, lists, rows[i : i + 1]) for i in rows])
    if not torch.isfinite(alone).all():
        raise UserError(f"the {config.model_type} model gives no finite numbers: its weights hold NaN or overflow")
    difference = float((together - alone).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(together.abs().max())):
        raise UserError(
            f"a model of the family {config.model_type} gives a text another score when longer texts stand beside it "
            f"(logits differ by {difference:.2g}): it cannot be padded on the right. Choose another encoder."
        )


def probe_logits(model: Classifier) -> torch.Tensor:
    """Compute the logits of a few random rows, (rows, classes), by which two states of a model can be compared."""
    lists = families.make_probe(model.encoder.config)
    return _logits(model, lists, np.arange(len(lists)))


def _logits(model: Classifier, tokens: TokenLists, rows: np.ndarray) -> torch.Tensor:
    config: Any = model.encoder.config
    device = next(model.parameters()).device
    batch = [torch.from_numpy(array).to(device) for array in pad(tokens, rows, config.pad_token_id or 0)]
    was_training = model.training
    with torch.inference_mode():
        logits = model.eval()(*batch).float()
    model.train(was_training)
    return logits
