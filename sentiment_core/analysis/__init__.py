"""Statements about scored corpora and their labels.

`scored_rows` reads an output folder as columns. `sample` draws rows for people to label, into a `sample_file`. `shares`
estimates shares from it with `labelled_sample` and `estimation`, or without it with `model_errors` and
`quantification`. `suspects` ranks labels that are probably wrong.
"""
