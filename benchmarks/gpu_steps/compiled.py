"""Measure two ways to launch faster: Inductor's compiler, and a CUDA graph of the eager step."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._dynamo.utils import counters

from gpu_steps.bench import Bench
from gpu_steps.engine import load_engine
from gpu_steps.inputs import draw_sentences
from sentiment_core.inference.backends.torch_packed import Packed
from sentiment_core.inference.engine import Engine
from sentiment_core.runtime import hardware
from sentiment_core.text.token_lists import TokenLists

ROW_SLOTS = (512, 1_024, 2_048, 4_096)  # rows of a captured step; others in it have no tokens
ROW_STEP = 128  # the kernel's grid changes with each multiple of the longest row's tokens
WARM_UP_RUNS = 3  # before a capture, on a stream of its own


def measure_compiled(bench: Bench) -> None:
    """Record what compiling costs and gains, and what makes it compile again."""
    for shape in bench.compared_shapes:
        bench.measure(shape, compile_shape, bench, shape)
        torch._dynamo.reset()
        bench.free_memory()


def compile_shape(bench: Bench, shape: str) -> dict[str, Any]:
    """Compile, then count new graphs after other rows, another thread and a smaller budget.

    A CPU traces the graphs without compiling them, as that would take a minute.
    """
    torch._dynamo.reset()
    counters.clear()
    task = draw_sentences(bench.scale.task_rows, bench.scale.longest)
    traced = functools.partial(torch.compile, backend="eager")
    started = time.perf_counter()
    with mock.patch("torch.compile", torch.compile if bench.is_cuda else traced):
        engine = load_engine(bench.bundle(shape), "compiled")
        load_seconds = time.perf_counter() - started
        engine.probabilities(task)
    figures: dict[str, Any] = {
        "computed_by": engine.backend.name,
        "load_seconds": load_seconds,
        "first_task_seconds": time.perf_counter() - started - load_seconds,
        "graphs": count_graphs(),
    }

    def count_new(run: Callable[[], Any]) -> int:
        before = count_graphs()
        run()
        return count_graphs() - before

    others = draw_sentences(bench.scale.task_rows, bench.scale.longest // 2, seed=1)
    figures["new_graphs_for_other_rows"] = count_new(lambda: engine.probabilities(others))
    figures["new_graphs_in_another_thread"] = count_new(lambda: run_in_thread(lambda: engine.probabilities(task)))
    seconds = bench.wall_seconds(lambda: engine.probabilities(task))
    figures["new_graphs_of_it_all"] = count_graphs() - figures["graphs"]
    engine.backend.budget //= 2
    figures["new_graphs_for_half_the_budget"] = count_new(lambda: engine.probabilities(task))
    eager = load_engine(bench.bundle(shape), "packed")
    eager_seconds = bench.wall_seconds(lambda: eager.probabilities(task))
    saved = eager_seconds - seconds
    right = figures["new_graphs_of_it_all"] == 0 and figures["new_graphs_for_half_the_budget"] <= 1
    return figures | {
        "right": right,
        "rows_per_second": len(task) / seconds,
        "eager_rows_per_second": len(task) / eager_seconds,
        # seconds of eager computing that compiling makes up for
        "break_even_seconds": load_seconds * eager_seconds / saved if saved > 0 else None,
    }


def count_graphs() -> int:
    """Count the graphs that dynamo has traced in this process."""
    return int(counters["stats"].get("unique_graphs", 0))


def run_in_thread(run: Callable[[], Any]) -> None:
    """Run in a new thread, as Ray Data calls an actor, and raise what it raises."""
    errors: list[Exception] = []

    def catch() -> None:
        try:
            run()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


class StaticStep:
    """The packed step on inputs of fixed shapes, so that it can be captured and replayed.

    The offsets have room for `slots` rows; rows that are not there have no tokens. What fills up the step are rows too,
    no longer than the others. No row is longer than `limit`.
    """

    def __init__(self, backend: Packed, tokens: int, slots: int, limit: int) -> None:
        self.backend, self.tokens, self.slots, self.limit = backend, tokens, slots, limit
        device = backend.device
        self.ids = torch.zeros(1, tokens, dtype=torch.int64, device=device)
        self.positions = torch.zeros(1, tokens, dtype=torch.int64, device=device)
        self.offsets = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self.graph: Any = None
        self.states = torch.empty(0)

    def fill(self, picked: TokenLists) -> None:
        """Copy rows into the inputs."""
        total, longest = len(picked.ids), int(picked.lengths.max())
        ids = np.full(self.tokens, self.backend.pad_id, np.int64)
        ids[:total] = picked.ids
        offsets = np.union1d(picked.offsets, [*range(total, self.tokens, longest), self.tokens])
        positions = self.backend._positions(ids, offsets)
        slots = np.full(self.slots + 1, self.tokens, np.int32)
        slots[: len(offsets)] = offsets
        for target, values in ((self.ids, ids[None]), (self.positions, positions[None]), (self.offsets, slots)):
            target.copy_(hardware.to_device(self.backend.device, values)[0])

    def compute(self) -> torch.Tensor:
        """Compute the states of all tokens, (tokens, width)."""
        return self.backend.encoder(
            input_ids=self.ids,
            position_ids=self.positions,
            cu_seq_lens_q=self.offsets,
            max_length_q=torch.tensor(self.limit),
        ).last_hidden_state[0]

    def capture(self) -> None:
        """Record the step's launches."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self.compute()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.states = self.compute()

    def run(self, picked: TokenLists) -> torch.Tensor:
        """Compute the first tokens' states of some rows, (rows, width)."""
        self.fill(picked)
        if self.graph is None:
            self.states = self.compute()
        else:
            self.graph.replay()
        return self.states[self.offsets[: len(picked)].long()]


def measure_graphs(bench: Bench) -> None:
    """Record whether a captured step gives the eager step's numbers, and how fast it is."""
    for shape in bench.compared_shapes:
        engine = bench.load(f"{shape}: load", lambda s=shape: load_engine(bench.bundle(s)))
        if engine is None:
            continue
        for divisor in (1, 4):
            tokens = engine.backend.budget // divisor
            step = bench.load(f"{shape}: step of {tokens}", lambda e=engine, n=tokens: make_static_step(bench, e, n))
            if step is not None:
                title = f"{shape}: step of {tokens}"
                bench.measure(f"{title}, filled up", compare_static, bench, engine, step)
                bench.measure(f"{title}, captured", time_graph, bench, engine, step)
            del step
            bench.free_memory()
        del engine


def make_static_step(bench: Bench, engine: Engine, tokens: int) -> tuple[StaticStep, TokenLists]:
    """Make a step for the first rows of a task, not captured yet."""
    task = draw_sentences(bench.scale.task_rows, bench.scale.longest)
    picked = task.take(np.flatnonzero(np.cumsum(task.lengths) <= tokens))
    longest = int(picked.lengths.max())
    filling = -(-(tokens - len(picked.ids)) // longest)
    slots = next(slots for slots in ROW_SLOTS if slots >= len(picked) + filling)
    backend: Any = engine.backend
    return StaticStep(backend, tokens, slots, longest + -longest % ROW_STEP), picked


def compare_static(bench: Bench, engine: Engine, made: tuple[StaticStep, TokenLists]) -> dict[str, Any]:
    """Compare with the engine's own step, which has as many tokens and other rows behind these."""
    step, picked = made
    engine.backend.budget = step.tokens
    with torch.inference_mode():
        expected = engine.backend(picked, [np.arange(len(picked))])
        difference = float((step.run(picked) - expected).abs().max())
    return {"right": difference == 0, "largest_difference": difference, "rows": len(picked), "slots": step.slots}


def time_graph(bench: Bench, engine: Engine, made: tuple[StaticStep, TokenLists]) -> dict[str, Any]:
    """Capture the step, compare a replay to the bit, and time both."""
    bench.require_gpu()
    step, picked = made
    rows = np.arange(len(picked))
    engine.backend.budget = step.tokens
    with torch.inference_mode():
        eager = engine.backend(picked, [rows])
        step.fill(picked)
        started = time.perf_counter()
        step.capture()
        bench.synchronize()
        capture_seconds = time.perf_counter() - started
        difference = float((step.run(picked) - eager).abs().max())
        started = time.perf_counter()
        step.run(picked)
        launch_seconds = time.perf_counter() - started
        bench.synchronize()
        seconds = bench.device_seconds(lambda: step.run(picked))
        eager_seconds = bench.device_seconds(lambda: engine.backend(picked, [rows]))
    return {
        "right": difference == 0,
        "largest_difference": difference,
        "capture_seconds": capture_seconds,
        "launch_seconds": launch_seconds,
        "rows_per_second": len(picked) / seconds,
        "eager_rows_per_second": len(picked) / eager_seconds,
    }
