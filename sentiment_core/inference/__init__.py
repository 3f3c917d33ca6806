"""Compute probabilities from token ids.

`engine` runs a bundle. `selection` lists the backends and picks the fastest that matches plain torch. `int8` checks
that 8-bit numbers keep the labels.
"""
