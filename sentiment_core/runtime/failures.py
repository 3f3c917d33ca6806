"""Errors of files and tasks, and how they are reported in one line."""

import pyarrow as pa

from sentiment_core.errors import UserError

UNREADABLE = (OSError, pa.ArrowException)  # what reading a damaged or vanished file raises


class FileChanged(OSError):
    """A file that is no longer what it was when the work was planned."""


def describe_error(error: Exception) -> str:
    """Describe an error in one line.

    The type is named too, unless it is an error that files are expected to raise.
    """
    text = " ".join(str(error).split())
    expected = isinstance(error, (*UNREADABLE, UserError)) and not isinstance(error, MemoryError)
    return text if text and expected else f"{type(error).__name__}: {text}".rstrip(": ")
