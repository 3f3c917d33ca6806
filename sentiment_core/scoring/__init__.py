"""Score Parquet shards, each row exactly once, and verify the result.

Open `job` for the run from plan to summary, `plan` for what is left to score, `models` for the models of a pass,
`stream` and `stages` for the way of work units through Ray Data, `outputs` and `records` for the files, `statistics` to
add a statistic of texts or scores, `reuse` for scores of known texts, `tidy` for the outputs that a run deletes at its
end, and `verify` for what is checked afterwards.
"""
