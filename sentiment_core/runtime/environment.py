"""Set the environment variables of Ray and transformers; find the user's cache.

They keep the libraries quiet and a local Ray private. The libraries read them when they are imported, and their
processes when they are started. A command sets them for its whole process. A call from Python sets them while it runs,
so that the session's environment stays as it was. A variable that the user has set is left alone.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

VARIABLES = {
    # what they print while they work would bury the command's own lines
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SCHEDULER_EVENTS": "0",  # autoscaler notices
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # notices about retried tasks, on stdout
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # a warning about actor restarts for each pool of Ray Data
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # a Ray that a command starts for itself listens on 127.0.0.1 alone; no other node could join it
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


def set_variables(variables: Mapping[str, str] = VARIABLES) -> None:
    """Set those of the variables that the user has not set, before the library that reads them is imported."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def variables_set(variables: Mapping[str, str] = VARIABLES) -> Iterator[None]:
    """Set the variables within the context, and restore the environment afterwards."""
    added = [name for name in variables if name not in os.environ]
    set_variables(variables)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def cache_folder() -> Path:
    """Return the folder of this project in the user's cache."""
    home = os.path.expanduser("~")
    if home == "~":  # a container's user without a name
        home = tempfile.gettempdir()
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")) / "sentiment-core"
