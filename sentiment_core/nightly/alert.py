"""Send an alert when someone should look at a night: to a webhook, or to a shell command."""

import json
import subprocess
import time
import urllib.request
from typing import Any

RETRY_AFTER_S = (2, 10)
TIMEOUT_S = 30.0


def send_alert(url: str | None, command: str | None, text: str, record: dict[str, Any]) -> str:
    """Send a night's record as JSON, with `text` under that key, which chat services show.

    Args:
        url: Webhook to POST it to.
        command: Shell command that gets it on standard input.
        text: The alert in a sentence.
        record: The night in short.

    Returns:
        What failed; empty if nothing did.
    """
    content = json.dumps({"text": text} | record, ensure_ascii=False).encode()
    failures = []
    if url:
        try:
            _post(url, content)
        except Exception as error:  # a server may answer anything
            failures.append(f"--alert-url: {error}")
    if command:
        try:
            subprocess.run(command, shell=True, input=content, timeout=TIMEOUT_S, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            failures.append(f"--alert-command: {error}")
    return "; ".join(failures)


def _post(url: str, content: bytes) -> None:
    """POST JSON, and retry at `RETRY_AFTER_S`. Raises OSError."""
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    for seconds in (*RETRY_AFTER_S, None):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return
        except OSError:
            if seconds is None:
                raise
            time.sleep(seconds)
