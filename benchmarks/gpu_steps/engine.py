"""Time the engine on scoring tasks: rates, idle time, budgets, requests, task sizes, two engines on one GPU."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timing import ContenderProcess, flop_per_token, peak_memory_mb
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_steps.bench import Bench
from gpu_steps.inputs import CLASSES, draw_reviews, draw_sentences
from sentiment_core.inference.engine import Engine
from sentiment_core.model import bundle
from sentiment_core.text.token_lists import DistinctLists, TokenLists

BUDGET_FACTORS = (0.25, 0.5, 1, 2)  # of the engine's own tokens of a step
REQUEST_ROWS, REQUEST_REPEATS = (1, 8, 64), 10
TOP_KERNELS = 12
TASK_FACTORS = (1, 2, 4)  # of the rows of a scoring task
TWO_ENGINES_S, SMALL_TWO_ENGINES_S = 4.0, 0.5


def load_engine(folder: str, backend: str | None = "packed") -> Engine:
    """Load the engine with a bundle."""
    model, info = bundle.load(folder)
    return Engine(model, CLASSES, info.max_length, None, backend)


def measure_tasks(bench: Bench) -> None:
    """Record how long a task takes for each shape, and what of that time the GPU computes."""
    sentences = draw_sentences(bench.scale.task_rows, bench.scale.longest)
    reviews = draw_reviews(bench.scale.review_rows, bench.scale.longest)
    for shape in bench.scale.shapes:
        for backend in ("packed", "torch"):
            title = f"{shape}, {backend}"
            engine = bench.load(f"{title}: load", lambda s=shape, b=backend: load_engine(bench.bundle(s), b))
            if engine is None:
                continue
            bench.measure(f"{title}: sentences", time_task, bench, engine, sentences)
            bench.measure(f"{title}: kernels", profile_task, bench, engine, sentences)
            if backend == "packed":
                bench.measure(f"{title}: reviews", time_task, bench, engine, reviews)
                bench.measure(f"{title}: one step", time_step, bench, engine, sentences)
                bench.measure(f"{title}: budgets", time_budgets, bench, engine, sentences)
            bench.measure(f"{title}: requests", time_requests, bench, engine, sentences)
            del engine
            bench.free_memory()


def time_task(bench: Bench, engine: Engine, task: TokenLists) -> dict[str, Any]:
    """Time a task, and when its last step is launched."""
    bench.free_memory()
    seconds = bench.wall_seconds(lambda: engine.probabilities(task), warm_up=2)
    lists = DistinctLists.find(task).lists
    batches = engine.backend.batches(lists.lengths)
    bench.synchronize()
    started = time.perf_counter()
    with torch.inference_mode():
        engine.backend(lists, batches)
    launched = time.perf_counter() - started
    bench.synchronize()
    computed = time.perf_counter() - started
    padding = sum(engine.backend.padding(lists.lengths[batch]) for batch in batches)
    tokens = int(task.lengths.sum())
    return {
        "computed_by": engine.backend.name,
        "rows": len(task),
        "seconds": seconds,
        "launch_seconds": launched,
        "encoder_seconds": computed,
        "steps": len(batches),
        "rows_per_second": len(task) / seconds,
        "tokens_per_second": tokens / seconds,
        "flops": tokens * flop_per_token(_encoder(engine)) / seconds,
        "padding_share": padding / (tokens + padding),
        "peak_memory_mb": peak_memory_mb(bench.device),
    }


def _encoder(engine: Engine) -> torch.nn.Module:
    backend: Any = engine.backend
    return backend.encoder


def profile_task(bench: Bench, engine: Engine, task: TokenLists) -> dict[str, Any]:
    """Add up the time of a task's kernels, and list the longest; on a CPU those of its operators."""
    engine.probabilities(task)
    bench.synchronize()
    activity = ProfilerActivity.CUDA if bench.is_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as trace:
        engine.probabilities(task)
        bench.synchronize()
    seconds: dict[str, float] = {}
    for event in trace.key_averages():
        if bench.is_cuda and event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            seconds[event.key] = seconds.get(event.key, 0.0) + event.self_device_time_total / 1e6
        elif not bench.is_cuda:
            seconds[event.key] = seconds.get(event.key, 0.0) + event.self_cpu_time_total / 1e6
    wall = bench.wall_seconds(lambda: engine.probabilities(task))
    total = sum(seconds.values())
    copies = sum(value for name, value in seconds.items() if name.startswith(("Memcpy", "Memset")))
    top = sorted(seconds, key=seconds.__getitem__, reverse=True)[:TOP_KERNELS]
    return {
        "kernel_seconds": total - copies,
        "copy_seconds": copies,
        "wall_seconds": wall,
        "busy_share": total / wall,  # copies run beside kernels, so slightly too much
        "top": {name[:120]: seconds[name] for name in top},
    }


def time_step(bench: Bench, engine: Engine, task: TokenLists) -> dict[str, Any]:
    """Time a full step on the device, launched again and again."""
    backend = engine.backend
    rows = backend.batches(task.lengths)[0]
    with torch.inference_mode():
        seconds = bench.device_seconds(lambda: backend(task, [rows]))
        wall = bench.wall_seconds(lambda: backend(task, [rows]))
    return {"tokens": int(task.lengths[rows].sum()), "device_seconds": seconds, "wall_seconds": wall}


def time_budgets(bench: Bench, engine: Engine, task: TokenLists) -> dict[str, Any]:
    """Time a task in steps of several sizes."""
    own, rates = engine.backend.budget, {}
    try:
        for factor in BUDGET_FACTORS:
            engine.backend.budget = int(own * factor)
            seconds = bench.wall_seconds(lambda: engine.probabilities(task), max(1, bench.scale.repeats // 2))
            rates[str(engine.backend.budget)] = len(task) / seconds
    finally:
        engine.backend.budget = own
    return {"rows_per_second": rates}


def time_requests(bench: Bench, engine: Engine, task: TokenLists) -> dict[str, Any]:
    """Time small requests as a service gets them."""
    milliseconds = {}
    for count in REQUEST_ROWS:
        request = task.take(np.arange(count) % len(task))
        run: Callable[[], Any] = lambda request=request: engine.probabilities(request)  # noqa: E731
        repeats = bench.scale.repeats if bench.is_small else REQUEST_REPEATS
        milliseconds[str(count)] = 1e3 * bench.wall_seconds(run, repeats)
    return {"milliseconds": milliseconds}


def measure_task_sizes(bench: Bench) -> None:
    """Record rates of larger tasks, and of two engines on one GPU."""
    engine = bench.load("load", lambda: load_engine(bench.bundle("minilm-l6")))
    for factor in TASK_FACTORS:
        task = draw_sentences(factor * bench.scale.task_rows, bench.scale.longest)
        if engine is not None:
            bench.measure(f"task of {len(task)} rows", time_busy, bench, engine, task)
    del engine
    bench.free_memory()
    bench.measure("two engines", run_two_engines, bench)


def time_busy(bench: Bench, engine: Engine, task: TokenLists) -> dict[str, Any]:
    """Time a task of this size; return its rate and the share of the time in which the GPU computes."""
    figures = profile_task(bench, engine, task)
    rate = len(task) / figures["wall_seconds"]
    return {"rows_per_second": rate, "busy_share": figures["busy_share"], "seconds": figures["wall_seconds"]}


def run_two_engines(bench: Bench) -> dict[str, Any]:
    """Run an engine here and one in a process of its own at the same time; return their rates."""
    seconds = SMALL_TWO_ENGINES_S if bench.is_small else TWO_ENGINES_S
    arguments = (bench.bundle("minilm-l6"), bench.scale.task_rows, bench.scale.longest)
    process = ContenderProcess(make_loop, *arguments)
    try:
        run_here = make_loop(*arguments)
        process.wait_until_made(max(1.0, bench.ends - time.monotonic()))
        alone = run_here(seconds)
        process.send(seconds)
        here = run_here(seconds)
        there = process.receive(max(1.0, bench.ends - time.monotonic()))
    finally:
        process.kill()
    return {"rows_per_second": here + there, "of_each": [here, there], "one_engine_rows_per_second": alone}


def make_loop(folder: str, rows: int, longest: int) -> Callable[[float], float]:
    """Make a function that scores tasks for so many seconds and returns rows per second."""
    engine, task = load_engine(folder), draw_sentences(rows, longest)
    engine.probabilities(task)

    def run(seconds: float) -> float:
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            engine.probabilities(task)
            done += len(task)
        return done / (time.perf_counter() - started)

    return run
