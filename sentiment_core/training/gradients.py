"""Compute the gradients of a batch: by one worker, or by several that exchange them.

`cpu.ShardedBackward` is a third way, for one worker with several CPU threads. All have the one method `add_gradients`.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sentiment_core.text.batching import batches_by_tokens

# (model, rows of the batch) -> sum of the rows' weighted losses
LossOfRows = Callable[[nn.Module, np.ndarray], torch.Tensor]


class Backward(Protocol):
    """A way to compute gradients."""

    def add_gradients(self, loss: LossOfRows, lengths: np.ndarray, budget_tokens: int) -> torch.Tensor:
        """Add the gradients of a batch to the model's parameters.

        Args:
            loss: Computes the loss of some rows of the batch.
            lengths: Tokens of each row of the batch, (rows,).
            budget_tokens: Tokens to compute at a time, padding included.

        Returns:
            The batch's loss, a scalar; of several workers, this one's share.
        """


class PlainBackward:
    """One worker: parts of the batch one after another."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def add_gradients(self, loss: LossOfRows, lengths: np.ndarray, budget_tokens: int) -> torch.Tensor:
        """Add the gradients of all parts."""
        shares = []
        for rows in batches_by_tokens(lengths, budget_tokens):
            share = loss(self.model, rows)
            share.backward()
            shares.append(share.detach())
        return torch.stack(shares).sum()


class DistributedBackward:
    """Several workers: each computes its rows, and the last part of a batch brings all gradients together."""

    def __init__(self, model: nn.Module, workers: int, find_unused_parameters: bool) -> None:
        # buffers, such as the numbers of positions, never change: they need not travel before each forward pass
        self.model = DistributedDataParallel(
            model, find_unused_parameters=find_unused_parameters, broadcast_buffers=False
        )
        self.workers = workers

    def add_gradients(self, loss: LossOfRows, lengths: np.ndarray, budget_tokens: int) -> torch.Tensor:
        """Add the gradients of all workers' parts; the same on every worker."""
        *early, last = batches_by_tokens(lengths, budget_tokens)
        shares = []
        with self.model.no_sync():
            shares += [self._add_part(loss, rows) for rows in early]
        shares.append(self._add_part(loss, last))
        return torch.stack(shares).sum()

    def _add_part(self, loss: LossOfRows, rows: np.ndarray) -> torch.Tensor:
        share = loss(self.model, rows)
        # DDP averages gradients over the workers; the sum over all rows is wanted
        (share * self.workers).backward()
        return share.detach()
