"""Skip a part of what is learned already (InfoBatch)."""

from typing import Any

import numpy as np
import torch
import torch.distributed

from sentiment_core.runtime import hardware


class DataPruning:
    """The rows that an epoch trains on, and how much each counts. Keeps all rows with a share of 0.

    The first epoch trains on all rows. Afterwards, of the rows whose loss was last below the mean, a share is skipped
    at random, each time others; the rest of them count more, so that the gradient is the same in the mean. An epoch
    then has fewer steps. Source: Qin et al. 2024, InfoBatch, https://arxiv.org/abs/2303.04947.
    """

    def __init__(self, rows: int, share: float, seed: int, device: torch.device) -> None:
        self.share, self.seed, self.device = share, seed, device
        # when a row was last trained on; 0: not in this epoch yet, or by another worker
        self.losses = torch.zeros(rows, device=device)
        self._set_weights(torch.ones(rows))

    def choose(self, epoch: int) -> None:
        """Choose the rows of an epoch, the same on all workers."""
        if not self.share:
            return
        distributed = torch.distributed.is_initialized()
        if distributed:
            torch.distributed.all_reduce(self.losses, torch.distributed.ReduceOp.MAX)
        mean = self.losses.mean()
        if distributed:  # chips of another kind may add up in another order
            torch.distributed.broadcast(mean, 0)
        learned = (self.losses < mean).cpu().numpy()
        skipped = learned & (np.random.default_rng([self.seed, epoch, 1]).random(len(learned)) < self.share)
        weights = np.where(skipped, 0.0, np.where(learned, 1 / (1 - self.share), 1.0))
        self._set_weights(torch.from_numpy(weights / weights[~skipped].mean()).float())
        self.losses[torch.from_numpy(self.rows)] = 0

    def weigh(self, rows: np.ndarray, losses: torch.Tensor) -> torch.Tensor:
        """Note the losses of rows, (rows,), and return them times how much each row counts."""
        if not self.share:
            return losses
        (indices,) = hardware.to_device(self.device, rows)
        self.losses[indices] = losses.detach()
        return losses * self.weights[indices]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"losses": self.losses, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.losses = state["losses"].to(self.device)
        self._set_weights(state["weights"])

    def _set_weights(self, weights: torch.Tensor) -> None:
        self.weights = weights.to(self.device)
        self.rows = np.flatnonzero(weights.cpu().numpy())  # of this epoch
