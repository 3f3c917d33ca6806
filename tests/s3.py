"""An S3 server on loopback, and one in front of it that misbehaves as told."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pyarrow.fs
from moto.server import ThreadedMotoServer

BUCKET = "bucket"
SECRET = "dont-print-this-secret"
THROTTLED = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
PER_CONNECTION = ("transfer-encoding", "content-length", "connection", "expect", "server", "date")


def environment(port: int) -> dict[str, str]:
    """What a user would set to reach it."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def filesystem(port: int) -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        access_key="key",
        secret_key=SECRET,
        region="us-east-1",
        endpoint_override=f"http://127.0.0.1:{port}",
        allow_bucket_creation=True,
    )


def client(port: int, service: str = "s3", region: str = "us-east-1"):
    """boto3's, which takes any name for a key."""
    return boto3.client(
        service,
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="key",
        aws_secret_access_key=SECRET,
        region_name=region,
    )


@contextmanager
def moto_server() -> Iterator[int]:
    """Run a server with an empty bucket in a thread; yield its port."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/moto-api/reset")  # servers of one process share their content
        assert connection.getresponse().status == 200
        connection.close()
        filesystem(port).create_dir(BUCKET)
        yield port
    finally:
        server.stop()


class Faults:
    """What the server in front is to do: so many requests for keys that hold `key` are throttled, or their connection
    dropped amid the answer; `done` counts them. `asked` are the paths of all requests,
    `port` that of the server behind; `when_listed` is called before a listing."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.key, self.throttle, self.drop, self.done = "", 0, 0, 0
        self.asked: list[str] = []
        self.when_listed: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def next(self, path: str) -> str:
        if "list-type=2" in path:
            self.when_listed()
        with self._lock:
            self.asked.append(path)
            for kind in ("throttle", "drop"):
                if self.key in path and getattr(self, kind) > 0:
                    setattr(self, kind, getattr(self, kind) - 1)
                    self.done += 1
                    return kind
        return ""


@contextmanager
def misbehaving(port: int) -> Iterator[tuple[int, Faults]]:
    """A server in front of the one at `port`: its own port, and what sets its faults."""
    faults = Faults(port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.body()
            fault = faults.next(self.path)
            if fault == "throttle":
                self.answer(503, {"Content-Type": "application/xml"}, THROTTLED)
                return
            behind = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            told = {name: value for name, value in self.headers.items() if name.lower() not in PER_CONNECTION}
            behind.request(self.command, self.path, body, told)
            answer = behind.getresponse()
            content = answer.read()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in PER_CONNECTION}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            behind.close()
            self.answer(answer.status, headers, content, length, drop=fault == "drop")

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def answer(self, status: int, headers: dict, content: bytes, length: str | None = None, drop=False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if drop else content)
            if drop:
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815

        def log_message(self, *_) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], faults
    finally:
        server.shutdown()
        server.server_close()
