"""Limits of what a client may send."""

import asyncio
import json
from collections.abc import Callable

from sentiment_core.serving import limits
from sentiment_core.serving.limits import BodySizeLimit, RateLimiter, Turns


def test_each_client_has_its_own_rate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    limiter = RateLimiter(10.0)
    assert [limiter.allows("a", 15) for _ in range(3)] == [True, True, False]
    assert limiter.allows("b", 15)
    now[0] += 2
    assert limiter.allows("a", 15)
    assert RateLimiter(0).allows("a", 10**9)


def test_a_body_is_refused_as_soon_as_it_is_too_large():
    chunks, sent = [b"12345", b"67890", b"never read"], []

    async def receive() -> dict:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: dict) -> None:
        sent.append(message)

    async def echo(scope: dict, receive: Callable, send: Callable) -> None:
        await send(await receive())

    asyncio.run(BodySizeLimit(echo, max_bytes=8)({"type": "http"}, receive, send))
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"]) == {"detail": "more than 8 bytes"}
    assert chunks == [b"never read"]
    chunks[:], sent[:] = [b"123", b"45"], []
    asyncio.run(BodySizeLimit(echo, max_bytes=8)({"type": "http"}, receive, send))
    assert sent == [{"type": "http.request", "body": b"12345", "more_body": False}]


def test_a_body_that_does_not_arrive_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "BODY_S", 0.05)
    begun, sent = [{"type": "http.request", "body": b"{", "more_body": True}], []

    async def receive() -> dict:
        if begun:
            return begun.pop()
        return await asyncio.Event().wait()

    async def send(message: dict) -> None:
        sent.append(message)

    async def never(scope: dict, receive: Callable, send: Callable) -> None:
        raise AssertionError("a request without its body was passed on")

    asyncio.run(BodySizeLimit(never, max_bytes=8)({"type": "http"}, receive, send))
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"]) == {"detail": "the body did not arrive within 0.05 seconds"}


def test_requests_have_their_turn_one_at_a_time_until_the_queue_is_full():
    async def play() -> tuple[list, list]:
        turns, may_finish, begun, full = Turns(3), asyncio.Event(), [], []

        async def take_turn(name: str) -> None:
            async with turns.wait():
                begun.append(name)
                await may_finish.wait()

        tasks = []
        for name in ("a", "gone", "b"):
            full.append(turns.is_full)
            tasks.append(asyncio.create_task(take_turn(name)))
            await asyncio.sleep(0)
        full.append(turns.is_full)
        assert begun == ["a"]
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        full.append(turns.is_full)
        may_finish.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with turns.wait():
            return begun, full

    assert asyncio.run(play()) == (["a", "b"], [False, False, False, True, False])
