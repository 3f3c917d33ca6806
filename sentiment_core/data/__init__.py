"""Read what people bring, by one rule for training and scoring.

Open `files` for which files are data, `tables` for those of Delta Lake and Iceberg, `shards` for Parquet corpora cut
into work units, `unit_reader` for their rows, `columns` and `types` for their columns, `labelled` for labelled text
and the table of its file formats, `hub` for data sets of the Hugging Face hub, `labels` for the numbering of classes.
"""
