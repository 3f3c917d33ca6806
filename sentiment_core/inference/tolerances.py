"""Limit how much computed probabilities may differ; say why there are two sets of limits."""

# Greatest difference from plain torch in float32, on random token ids, for a backend to count as right. Random ids
# bring numbers to extremes that texts do not reach; a wrong backend differs by far more. Used by `selection`.
FP32_TOLERANCE, BF16_TOLERANCE, INT8_TOLERANCE = 1e-4, 0.05, 0.25
# Greatest norm of the difference of first tokens' states, as a share of their norm. A head that is sure of itself hides
# wrong states. With all-MiniLM bfloat16 is off by 1 %; rows that attend to each other by 65 %, positions by 130 %.
STATES_TOLERANCE = 0.1
# Greatest difference, on real texts, of what other hardware or other batches computed with the same bundle and
# settings. Narrower than on the probe: there a wrong model is to be found, here a changed file. Used where outputs are
# scored again and compared.
RESCORED_BF16_TOLERANCE, RESCORED_INT8_TOLERANCE = 0.02, 0.12
