"""Errors of files and tasks, and how they are reported in one line."""

from itertools import pairwise

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


def describe_remote_error(trace: str) -> str:
    """Return the line of a trace that names the error, which later lines only explain.

    Below every error of CUDA stands advice to compile torch in another way.
    """
    lines = trace.strip().split("\n")
    below_frames = [line for frame, line in pairwise(lines) if frame[:1].isspace() and line and not line[0].isspace()]
    return (below_frames or lines)[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
