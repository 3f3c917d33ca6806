"""Requests that wait while the model is busy."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from sentiment_core.serving import micro_batching
from sentiment_core.serving.limits import Turns
from sentiment_core.serving.micro_batching import MicroBatcher


def test_waiting_requests_are_computed_together_except_those_of_disconnected_clients(monkeypatch):
    monkeypatch.setattr(micro_batching, "MAX_BATCH_TEXTS", 3)
    calls, started, may_finish = [], threading.Event(), threading.Event()

    def compute(requests: list[list[str]]) -> list[dict]:
        calls.append(requests)
        started.set()
        assert may_finish.wait(60)
        if ["bad"] in requests:
            raise ValueError("bad")
        return [{"texts": request} for request in requests]

    async def play() -> list:
        batcher = MicroBatcher(compute)
        first = asyncio.create_task(batcher(["a"]))
        assert await asyncio.to_thread(started.wait, 60)
        others = [asyncio.create_task(batcher(texts)) for texts in (["b"], ["gone"], ["c", "d"], ["bad"], ["e"])]
        await asyncio.sleep(0)  # now they wait
        others[1].cancel()
        await asyncio.sleep(0)
        may_finish.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        return [*answers, await batcher(["later"])]

    a, b, gone, c, bad, e, later = asyncio.run(play())
    assert calls == [[["a"]], [["b"], ["c", "d"]], [["bad"], ["e"]], [["bad"]], [["e"]], [["later"]]]
    assert [a, b, c, e, later] == [{"texts": texts} for texts in (["a"], ["b"], ["c", "d"], ["e"], ["later"])]
    assert isinstance(gone, asyncio.CancelledError)
    assert str(bad) == "bad"  # and nothing for the request that came with it


def test_texts_are_computed_while_all_threads_of_the_event_loop_wait():
    may_finish = threading.Event()

    async def play() -> dict:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        waiting = asyncio.create_task(asyncio.to_thread(may_finish.wait, 60))
        answer = await asyncio.wait_for(MicroBatcher(lambda requests: [{"texts": requests[0]}])(["a"]), 30)
        may_finish.set()
        assert await waiting
        return answer

    assert asyncio.run(play()) == {"texts": ["a"]}


def test_texts_are_scored_after_one_slice_of_many_explanations():
    computed, started, may_finish = [], threading.Event(), threading.Event()

    def compute(requests: list[list[str]]) -> list[str]:
        computed.append("batch")
        return ["scored"] * len(requests)

    def compute_slice() -> None:
        computed.append("slice")
        started.set()
        assert may_finish.wait(60)

    async def play() -> None:
        batcher, turns = MicroBatcher(compute), Turns(50)

        async def explain() -> None:
            async with turns.wait():
                for _ in range(10):
                    await batcher.in_turn(compute_slice)

        explaining = [asyncio.create_task(explain()) for _ in range(50)]
        assert await asyncio.to_thread(started.wait, 60)
        scoring = asyncio.create_task(batcher(["a"]))
        await asyncio.sleep(0.01)  # now it waits
        may_finish.set()
        assert await scoring == "scored"
        await asyncio.gather(*explaining)

    asyncio.run(play())
    assert computed == ["slice", "batch", *["slice"] * 499]
