"""Compute the losses of rows. Targets are labels, or probabilities of labels, as a teacher gives them.

With targets that are certain, probabilities give the same loss as labels.
"""

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

LEAST_DOUBT = 1e-6  # a power below 1 of 0 has no finite gradient


def single_label_losses(
    logits: torch.Tensor,
    targets: torch.Tensor,
    class_weights: torch.Tensor,
    label_smoothing: float,
    focal_gamma: float,
) -> torch.Tensor:
    """Compute the loss of each row, (n,): smoothed cross entropy, times the weight of the row's class.

    With `focal_gamma` above 0 it is the focal loss (Lin et al. 2017), which counts a row less the more probable its
    label already is.

    Args:
        logits: (n, classes).
        targets: (n,) int, the class of each row; or (n, classes) float, the probability of each.
        class_weights: (classes,); of a row with probabilities their mean counts.
        label_smoothing: Share of each label that is spread over all labels.
        focal_gamma: See above.
    """
    losses = cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    shares = one_hot(targets, logits.shape[1]).to(class_weights.dtype) if targets.ndim == 1 else targets
    if focal_gamma:
        target_probability = (logits.softmax(dim=1) * shares).sum(dim=1)
        losses = losses * (1 - target_probability).clamp(min=LEAST_DOUBT) ** focal_gamma
    return losses * (shares @ class_weights)


def multi_label_losses(
    logits: torch.Tensor,
    targets: torch.Tensor,
    class_weights: torch.Tensor,
    label_smoothing: float,
    focal_gamma: float,
) -> torch.Tensor:
    """Compute the loss of each row, (n,): the mean over the labels, as transformers computes it.

    Binary cross entropy with smoothed labels, times the label's weight where the row has it. With `focal_gamma` above 0
    a label counts less the more certain the model already is of the right answer (Lin et al. 2017).

    Args:
        logits: (n, labels).
        targets: (n, labels) bool, whether a row has each label; or float, how probably it has.
        class_weights: (labels,).
        label_smoothing: Share of each answer that is spread over yes and no.
        focal_gamma: See above.
    """
    truth = targets.to(logits.dtype)
    smoothed = truth * (1 - label_smoothing) + label_smoothing / 2
    losses = binary_cross_entropy_with_logits(logits, smoothed, pos_weight=class_weights, reduction="none")
    if focal_gamma:
        wrong_probability = truth * (-logits).sigmoid() + (1 - truth) * logits.sigmoid()
        losses = losses * wrong_probability.clamp(min=LEAST_DOUBT) ** focal_gamma
    return losses.mean(dim=1)
