"""Declare the flags that say how CSV files are written, for all commands that read labelled text."""

from typing import Any

from sentiment_core.config import setting


def csv_separator_setting() -> Any:
    """Declare the flag `--csv-separator`."""
    return setting(None, "separator of CSV files; default: the one of , ; tab | that the first line has", group="data")


def csv_encoding_setting() -> Any:
    """Declare the flag `--csv-encoding`."""
    return setting(
        None, "encoding of CSV files, such as cp1252; default: by the byte-order mark, else UTF-8", group="data"
    )
