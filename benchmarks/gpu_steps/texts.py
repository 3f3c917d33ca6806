"""Score texts, tokenizing included, beside what a user would run instead."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import peers

from gpu_steps.bench import Bench
from gpu_steps.inputs import draw_texts

ONNX_TEXTS = 512  # on CPUs alone
LEAST_SAME_LABELS = 0.97  # random weights decide more narrowly than trained ones, which give 0.995 and more

Make = Callable[[str], peers.Contender]

# The first gives the labels that others are compared with.
SMALL_PEERS: dict[str, Make] = {
    "pipeline float32 batch 32": functools.partial(peers.make_pipeline, batch_size=32),
    "Curator's way": peers.make_curator_loop,
    "engine": functools.partial(peers.make_engine, backend="packed"),
    "engine without kitoken": functools.partial(peers.make_engine, backend="packed", uses_kitoken=False),
}
PEERS: dict[str, Make] = {
    "pipeline float32 batch 32": functools.partial(peers.make_pipeline, batch_size=32),
    "pipeline float16 batch 256": functools.partial(peers.make_pipeline, batch_size=256, dtype="float16"),
    "pipeline bfloat16 batch 256": functools.partial(peers.make_pipeline, batch_size=256, dtype="bfloat16"),
    "sentence-transformers, encoder only": functools.partial(peers.make_sentence_transformer, batch_size=256),
    "Curator's way": peers.make_curator_loop,
    "engine": functools.partial(peers.make_engine, backend=None),
    "engine without kitoken": functools.partial(peers.make_engine, backend=None, uses_kitoken=False),
    "ONNX Runtime float32 on the CPU": peers.make_onnx_runtime,
}
BASE_PEERS = ("pipeline float16 batch 256", "pipeline bfloat16 batch 256", "engine")


def compare_peers(bench: Bench) -> None:
    """Record rows per second of each peer, and whether its labels are those of the pipeline in float32."""
    contenders = SMALL_PEERS if bench.is_small else PEERS
    for shape in bench.compared_shapes:
        is_first = shape == bench.compared_shapes[0]
        rows = bench.scale.texts if is_first else bench.scale.texts // 2
        texts = draw_texts(bench.bundle(shape), rows + bench.scale.warm_up_texts, bench.scale.longest)
        labels: dict[str, np.ndarray] = {}
        for name in contenders if is_first else BASE_PEERS:
            bench.measure(f"{shape}: {name}", time_peer, bench, shape, name, contenders[name], texts, labels)
            bench.free_memory()


def time_peer(
    bench: Bench, shape: str, name: str, make: Make, texts: list[str], labels: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Time a peer on texts, and compare its `labels` with the first one's."""
    warm_up = bench.scale.warm_up_texts
    if "ONNX" in name:
        texts = texts[: warm_up + ONNX_TEXTS]
    started = time.perf_counter()
    contender = make(bench.bundle(shape))
    contender(texts[:warm_up])
    ready = time.perf_counter() - started
    started = time.perf_counter()
    answer = contender(texts[warm_up:])
    seconds = time.perf_counter() - started
    figures = {"rows_per_second": (len(texts) - warm_up) / seconds, "start_seconds": ready}
    if "encoder only" in name:
        return figures
    labels[name] = answer
    expected = next(iter(labels.values()))[: len(answer)]
    same = float((answer == expected).mean())
    return figures | {"same_labels": same, "right": same >= LEAST_SAME_LABELS}
