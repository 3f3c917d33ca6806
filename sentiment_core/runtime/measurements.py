"""Remember what was measured on this machine, so that it is measured once."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sentiment_core.runtime.environment import cache_folder

with contextlib.suppress(ImportError):  # not on Windows
    import fcntl


def remember(key: dict[str, Any], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the values that were measured for a key on this machine; measure them if there are none.

    Of several processes that ask at the same time one measures and the others wait for it. They are kept in the user's
    cache; where that cannot be written, each process measures for itself.

    Args:
        key: All that the values depend on, as JSON can hold it.
        measure: Takes the measurement.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / "measurements"
    path = folder / f"{name}.json"
    with _locked(folder / f"{name}.lock"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # of another form
            return {str(name): float(value) for name, value in json.loads(path.read_text())["values"].items()}
        values = measure()
        if not values:  # what fails now may run later
            return values
        with contextlib.suppress(OSError):
            draft = path.with_suffix(f".{secrets.token_hex(4)}")
            draft.write_text(json.dumps({"key": key, "values": values}, indent=2) + "\n")
            os.replace(draft, path)
    return values


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock within the context; the system frees it when the process dies. Without files, no lock."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, NameError):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(path.open("a")), fcntl.LOCK_EX)
        yield
