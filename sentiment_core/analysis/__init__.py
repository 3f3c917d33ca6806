"""Statements about scored corpora and their labels.

`scored_rows` reads an output folder as columns, `sampling` draws rows of it for people to label, `sample_file` is the
file that they fill in, and `suspects` ranks labels that are probably wrong.
"""
