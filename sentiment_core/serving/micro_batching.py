"""Compute requests that arrive while the model is busy together in the next call."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

MAX_BATCH_TEXTS = 256  # from which on no further request is added to a batch

Answer = TypeVar("Answer")


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
        self._queue: deque[tuple[list[str | None], asyncio.Future[Answer]]] = deque()
        self._task: asyncio.Task | None = None

    async def __call__(self, texts: list[str | None]) -> Answer:
        """Wait for the answer to a request. Raises what `compute` raises for its batch."""
        answer = asyncio.get_running_loop().create_future()
        self._queue.append((texts, answer))
        if self._task is None:
            # a task of its own: that of a request ends when its client disconnects
            self._task = asyncio.create_task(self._empty_queue())
        return await answer

    async def _empty_queue(self) -> None:
        while self._queue:
            requests, futures = self._next_batch()
            try:
                answers = await asyncio.to_thread(self._compute, requests)
            except Exception as error:
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, answer in zip(futures, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        self._task = None

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
