"""Train on embeddings that are moved to where the loss is greater (FGM)."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def perturb(embedding: nn.Parameter, norm: float) -> Iterator[None]:
    """Move the embeddings by a step of this L2 norm along their gradient within the context.

    Source: Miyato et al. 2017, Adversarial Training Methods for Semi-Supervised Text Classification.
    """
    assert embedding.grad is not None
    trained = embedding.detach().clone()
    with torch.no_grad():
        embedding.add_(embedding.grad * (norm / embedding.grad.norm().clamp(min=1e-12)))
    yield
    with torch.no_grad():
        embedding.copy_(trained)
