"""Compute probabilities from token ids.

`engine` runs a bundle by the fastest of the `backends` that matches plain torch.
"""
