"""Make a cascade of two bundles: the large model answers the rows that the small one is less sure of.

`settings` has the flags and `job` does it, on this machine and without Ray. `rows` reads the rows that choose the
threshold, see `model.cascade`.
"""
