"""Alerts about nights."""

import http.server
import json
import threading

import pytest

from sentiment_core.errors import UserError
from sentiment_core.nightly.job import nightly
from sentiment_core.nightly.settings import NightlySettings


class Webhook(http.server.BaseHTTPRequestHandler):
    received: list[dict] = []  # noqa: RUF012

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.received.append(content)
        self.send_response(503 if len(self.received) == 1 else 200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_night_that_cannot_start_is_sent_to_the_webhook(tmp_path, models, monkeypatch):
    monkeypatch.setattr("sentiment_core.nightly.alert.RETRY_AFTER_S", (0.1,))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/"
    flags = {"model": str(models), "input": str(tmp_path / "none"), "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match="does not exist"):
        nightly(NightlySettings(**flags, alert_url=url))
    server.shutdown()
    server.server_close()
    assert len(Webhook.received) == 2  # the first was answered with an error
    assert "does not exist" in Webhook.received[1]["text"]
    assert not (tmp_path / "out").exists()
