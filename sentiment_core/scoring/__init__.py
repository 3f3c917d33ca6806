"""Score Parquet shards, each row exactly once.

`job` runs a scoring job, `stream` sends work units through Ray Data, `outputs` defines and commits scored Parquet, `verify`
checks it.
"""
