"""Train only the embeddings of tokens that the data has."""

from typing import Any

import numpy as np
import torch
from torch import nn

from sentiment_core.model.classifier import Classifier
from sentiment_core.text.token_lists import TokenLists


def ids_in(keep: int, *parts: TokenLists) -> np.ndarray:
    """Return the token ids that occur in the data, ascending, and all ids up to `keep`."""
    seen = np.zeros(max(keep, *(int(part.ids.max()) for part in parts)) + 1, bool)
    seen[: keep + 1] = True
    for part in parts:
        seen[part.ids] = True
    return np.flatnonzero(seen)


def remap(tokens: TokenLists, token_ids: np.ndarray) -> TokenLists:
    """Replace each token id by its position in `token_ids`."""
    position = np.zeros(token_ids[-1] + 1, np.int32)
    position[token_ids] = np.arange(len(token_ids), dtype=np.int32)
    return TokenLists(position[tokens.ids], tokens.offsets)


class TrimmedVocabulary:
    """A model whose embeddings are cut down to the token ids of the data, and can be made whole again.

    No gradient would reach the other embeddings; without them the optimizer is spared most of a large vocabulary.
    The model then takes tokens that `remap` made.
    """

    def __init__(self, model: Classifier, token_ids: np.ndarray) -> None:
        self.token_ids = torch.tensor(token_ids)
        module: Any = model.encoder.get_input_embeddings()  # type: ignore[operator]
        self.whole = module.weight.detach().clone()
        self.embedding = module.weight = nn.Parameter(self.whole[self.token_ids])
        module.num_embeddings = len(token_ids)
        self.name = next(name for name, parameter in model.named_parameters() if parameter is self.embedding)

    def restore(self, model: Classifier) -> dict[str, torch.Tensor]:
        """Return the model's weights with all embeddings, on the CPU."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        embeddings = self.whole.clone()
        embeddings[self.token_ids] = state[self.name]
        return state | {self.name: embeddings}
