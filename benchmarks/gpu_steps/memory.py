"""Take memory away from the engine: it must halve its steps and give the same probabilities."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from gpu_steps.bench import Bench
from gpu_steps.engine import load_engine
from gpu_steps.inputs import draw_sentences
from sentiment_core.inference.tolerances import RESCORED_BF16_TOLERANCE

SHARE_OF_STEP = 0.6  # of a full step's memory: half of it fits, not all
SHAPE = "bert-base"


def check_memory(bench: Bench) -> None:
    """Record what the engine does when memory runs out, in a task and when it is loaded."""
    bench.measure("in a task", run_out_in_task, bench)
    bench.free_memory()
    bench.measure("when loading", run_out_when_loading, bench)
    bench.free_memory()


@contextmanager
def limited_memory(limit_bytes: float) -> Iterator[None]:
    """Limit this process's memory on the GPU inside the block."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def run_out_in_task(bench: Bench) -> dict[str, Any]:
    """Compute a task with memory enough, then with too little."""
    bench.require_gpu()
    engine = load_engine(bench.bundle(SHAPE))
    task = draw_sentences(bench.scale.task_rows, bench.scale.longest)
    bench.free_memory()
    loaded = torch.cuda.memory_allocated()
    expected, _ = engine.probabilities(task)
    needed = torch.cuda.max_memory_allocated() - loaded
    budget = engine.backend.budget
    with limited_memory(loaded + SHARE_OF_STEP * needed):
        probabilities, _ = engine.probabilities(task)
    difference = float(np.abs(probabilities - expected).max())
    return {
        "right": engine.backend.budget < budget and difference <= RESCORED_BF16_TOLERANCE and bool(engine.remarks),
        "budget": budget,
        "budget_with_little_memory": engine.backend.budget,
        "remarks": engine.remarks,
        "largest_difference": difference,
        "model_mb": loaded / 2**20,
        "step_mb": needed / 2**20,
    }


def run_out_when_loading(bench: Bench) -> dict[str, Any]:
    """Load the engine with memory for the model's two copies and a small step, then compute."""
    bench.require_gpu()
    folder = bench.bundle(SHAPE)
    bench.free_memory()
    engine = load_engine(folder)
    loading = torch.cuda.max_memory_allocated()
    del engine
    with limited_memory(1.1 * loading):
        engine = load_engine(folder)
        engine.probabilities(draw_sentences(bench.scale.task_rows // 4, bench.scale.longest))
    return {
        "right": engine.backend.name.startswith("packed"),
        "computed_by": engine.backend.name,
        "budget": engine.backend.budget,
        "passed_over": engine.passed_over,
        "loading_mb": loading / 2**20,
    }
