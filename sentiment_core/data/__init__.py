"""Read what people bring: labelled text (`labelled`) and Parquet shards (`shards`)."""
