"""Find how many tokens the memory lets a worker compute at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed

from sentiment_core.runtime import hardware

# Tokens computed at a time, padding included: on a CPU what its caches hold, on a GPU more than most fit.
TRAIN_TOKENS = {"cpu": 2048, "cuda": 131072}
LEAST_TOKENS = 512


def find_token_budget(probe: Callable[[int], None], tokens: int, device: torch.device) -> int:
    """Return the largest budget, `tokens` or that halved again and again, for which `probe` has memory enough.

    All workers get the same. Raises `torch.OutOfMemoryError` where even `LEAST_TOKENS` are too many.
    """
    while True:
        try:
            probe(tokens)
            break
        except RuntimeError as error:
            if not hardware.is_out_of_memory(error) or tokens <= LEAST_TOKENS:
                raise
        torch.cuda.empty_cache()
        tokens //= 2
    if torch.distributed.is_initialized():
        smallest = torch.tensor(tokens, device=device)
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        tokens = int(smallest)
    return tokens


@dataclass
class TokenBudget:
    """Tokens to compute at a time."""

    tokens: int

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run needs."""
        return {"tokens": self.tokens}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with a checkpoint's budget, as far as it fits here.

        On a smaller GPU the budget found here stands, since the run would die of the other. Its dropout then differs
        from that of an undisturbed run. Both budgets are the same on all workers.
        """
        self.tokens = min(self.tokens, state["tokens"])
