"""Train a classifier on labelled text with Ray Train.

`job` prepares, runs and finishes a training; `loop` is what every worker runs, and says where a trick goes.
"""
