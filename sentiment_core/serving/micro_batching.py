"""Compute requests that arrive while the model is busy together in the next call."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

MAX_BATCH_TEXTS = 256  # from which on no further request is added to a batch

Answer = TypeVar("Answer")
Returned = TypeVar("Returned")


class MicroBatcher(Generic[Answer]):
    """A queue in front of the model: a lone request is computed at once, those that arrive meanwhile in one batch next.

    `serve.batch` of Ray instead collects what arrives within some milliseconds, however long the batch then waits.
    """

    def __init__(self, compute: Callable[[list[list[str | None]]], Sequence[Answer]]) -> None:
        """Set up an empty queue.

        Args:
            compute: Returns an answer for the texts of each request; called in a thread, one call at a time.
        """
        self._compute = compute
        self._thread = ThreadPoolExecutor(1, "batches")  # its own: others may wait in those of the event loop
        self._queue: deque[tuple[list[str | None], asyncio.Future[Answer]]] = deque()
        self._task: asyncio.Task | None = None

    async def __call__(self, texts: list[str | None]) -> Answer:
        """Wait for the answer to a request. Raises what `compute` raises for it."""
        answer = asyncio.get_running_loop().create_future()
        self._queue.append((texts, answer))
        if self._task is None:
            # a task of its own: that of a request ends when its client disconnects
            self._task = asyncio.create_task(self._empty_queue())
        return await answer

    async def in_turn(self, call: Callable[..., Returned], *arguments: Any) -> Returned:
        """Make a call in the thread that computes the batches: calls and batches are computed as they came."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    async def _empty_queue(self) -> None:
        while self._queue:
            requests, futures = self._next_batch()
            for future, answer in zip(futures, await self._answer(requests), strict=True):
                if not future.done():
                    (future.set_exception if isinstance(answer, Exception) else future.set_result)(answer)
        self._task = None

    async def _answer(self, requests: list[list[str | None]]) -> Sequence[Any]:
        """Compute requests together; if that fails, each alone. Returns an answer or an exception for each."""
        try:
            return await self.in_turn(self._compute, requests)
        except Exception as error:
            if len(requests) == 1:
                return [error]
            return [(await self._answer([request]))[0] for request in requests]

    def _next_batch(self) -> tuple[list[list[str | None]], list[asyncio.Future[Answer]]]:
        """Take requests from the queue, without those whose client has disconnected."""
        requests: list[list[str | None]] = []
        futures: list[asyncio.Future[Answer]] = []
        while self._queue and sum(map(len, requests)) < MAX_BATCH_TEXTS:
            texts, future = self._queue.popleft()
            if not future.done():
                requests.append(texts)
                futures.append(future)
        return requests, futures
