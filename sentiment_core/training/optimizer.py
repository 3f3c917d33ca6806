"""Make the optimizer, clip its gradients, and schedule its learning rates."""

import torch
from torch import nn

from sentiment_core.model import classifier
from sentiment_core.model.classifier import Classifier
from sentiment_core.training.recipe import Recipe
from sentiment_core.training.settings import TrainSettings


def make_optimizer(model: Classifier, settings: TrainSettings, recipe: Recipe) -> torch.optim.AdamW:
    """Make AdamW with a peak learning rate for each group of parameters (`initial_lr`).

    The head has its own rate; the encoder's decays from its last layer to its first. Biases and norms, the parameters
    of one dimension, have no weight decay.
    """
    depth = classifier.depths(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        in_encoder = name.startswith(model.encoder_prefix)
        lr = recipe.lr * settings.layer_decay ** depth[name] if in_encoder else recipe.head_lr
        groups.setdefault((lr, settings.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": lr, "initial_lr": lr, "weight_decay": decay}
            for (lr, decay), parameters in groups.items()
        ],
        fused=True,
    )


def clip_at_next_step(optimizer: torch.optim.AdamW, max_norm: float) -> None:
    """Clip gradients as `nn.utils.clip_grad_norm_` does, but within the optimizer's next step.

    The fused optimizer reads the gradients anyway and can divide them there. It takes the divisor from where torch's
    GradScaler, which multiplies losses, leaves its own.
    """
    norm = nn.utils.get_total_norm(
        [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    )
    optimizer.grad_scale = (norm / max_norm).clamp(min=1)  # type: ignore[attr-defined]


def set_learning_rates(optimizer: torch.optim.AdamW, share: float) -> None:
    """Set all learning rates to a share of their peaks."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share


def learning_rate_share(done: float, warmup: float) -> float:
    """Return the learning rate as a share of its peak: it rises over `warmup` of the run, then falls to 0, linearly.

    Args:
        done: Share of the run that is done, 0 to 1.
        warmup: Share of the run in which the rate rises.
    """
    if done < warmup:
        return done / warmup
    return (1 - done) / (1 - warmup) if done < 1 else 0.0
