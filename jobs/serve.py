"""Serve a model bundle by HTTP: POST texts, get labels and calibrated confidences; a page to try it.

    python jobs/serve.py --model models/reviews
    curl -H 'Content-Type: application/json' -d '{"texts": ["What a film!"]}' http://127.0.0.1:8000/score

POST /score, POST /explain, GET /healthz, GET / (the page), GET /openapi.json. Ctrl-C ends it.
"""

import contextlib
import threading

from sentiment_core.config import parse, run_job
from sentiment_core.serving.app import ServeSettings, start, stop


def main() -> None:
    print(f"serving on {start(parse(ServeSettings, __doc__))}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    stop()
    print("stopped")


if __name__ == "__main__":
    run_job(main)
