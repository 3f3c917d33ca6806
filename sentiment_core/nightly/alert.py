"""Telling someone that a night needs a look: a webhook, or a command of the user's."""

import json
import subprocess
import time
import urllib.request

RETRY_AFTER_S = (2, 10)
TIMEOUT_S = 30.0


def send(url: str | None, command: str | None, text: str, record: dict) -> str:
    """POST the `record` as JSON to `url`, with `text` under that name, which is what chat services show; give the same
    to `command`, a line for the shell, on standard input. What went wrong, in words; empty if nothing."""
    content = json.dumps({"text": text} | record, ensure_ascii=False).encode()
    failures = []
    if url:
        try:
            _post(url, content)
        except Exception as error:  # whatever a server may answer
            failures.append(f"--alert-url: {error}")
    if command:
        try:
            subprocess.run(command, shell=True, input=content, timeout=TIMEOUT_S, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            failures.append(f"--alert-command: {error}")
    return "; ".join(failures)


def _post(url: str, content: bytes) -> None:
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    for seconds in (*RETRY_AFTER_S, None):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return
        except OSError:
            if seconds is None:
                raise
            time.sleep(seconds)
