"""Limit what a client may send: bytes in a request, texts a second, requests that wait for one another."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

MAX_CLIENTS = 10_000  # whose rates are remembered
BURST_S = 2  # seconds of the rate that a client may send at once
BODY_S = 30.0  # for a body to arrive: a request that waits for it takes one of the places that there are


class RateLimiter:
    """A token bucket for each client, counted in texts. It counts what reaches this copy of the model."""

    def __init__(self, texts_per_second: float) -> None:
        """Set up full buckets; a rate of 0 is no limit."""
        self.texts_per_second = texts_per_second
        self._buckets: dict[str, tuple[float, float]] = {}  # by client: texts left, and the time of that

    def allows(self, client: str, texts: int) -> bool:
        """Take the texts of a request out of the client's bucket; False if it is empty."""
        if not self.texts_per_second:
            return True
        now, capacity = time.monotonic(), BURST_S * max(self.texts_per_second, 1.0)
        texts_left, updated = self._buckets.get(client, (capacity, now))
        texts_left = min(capacity, texts_left + (now - updated) * self.texts_per_second)
        allowed = texts_left > 0  # so that a request larger than the bucket passes when the bucket is full
        if len(self._buckets) >= MAX_CLIENTS:
            self._buckets.clear()
        self._buckets[client] = (texts_left - texts if allowed else texts_left, now)
        return allowed


class Turns:
    """A queue of requests that have their turn one at a time."""

    def __init__(self, most: int) -> None:
        """Set up an empty queue that is full with `most` requests, the one that has its turn included."""
        self._most, self._requests, self._turn = most, 0, asyncio.Lock()

    @property
    def is_full(self) -> bool:
        """True if a further request should be refused."""
        return self._requests >= self._most

    @asynccontextmanager
    async def wait(self) -> AsyncIterator[None]:
        """Wait for the turn, which ends with the context. A request that is cancelled leaves the queue."""
        self._requests += 1
        try:
            async with self._turn:
                yield
        finally:
            self._requests -= 1


class BodySizeLimit:
    """ASGI middleware that answers 413 as soon as a body turns out larger than `max_bytes`, and 408 if it is late."""

    def __init__(self, app: Any, max_bytes: int) -> None:
        """Wrap the ASGI application `app`."""
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Read the body, then pass the request on or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._read(receive)
        except TimeoutError:
            return await _refuse(send, 408, f"the body did not arrive within {BODY_S:g} seconds")
        if body is None:
            return None
        if len(body) > self.max_bytes:
            return await _refuse(send, 413, f"more than {self.max_bytes} bytes")
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict:
            return unread.pop() if unread else await receive()

        return await self.app(scope, replay, send)

    async def _read(self, receive: Any) -> bytes | None:
        """Read the body, of one that is too large only the beginning; None if the client has disconnected."""
        body, more = b"", True
        while more and len(body) <= self.max_bytes:
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body


async def _refuse(send: Any, status: int, reason: str) -> None:
    content = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    if status == 408:  # what arrives later would be read as this body
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
