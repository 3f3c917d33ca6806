"""Compare the engine with plain torch in float32: by family, and by what else is in a batch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpu_steps.bench import Bench
from gpu_steps.inputs import CLASSES, FAMILIES, Shape, draw_check_lists, draw_sentences, make_model
from sentiment_core.inference.backends.base import BackendUnavailable
from sentiment_core.inference.engine import Engine
from sentiment_core.inference.tolerances import BF16_TOLERANCE, RESCORED_BF16_TOLERANCE, STATES_TOLERANCE
from sentiment_core.model import bundle
from sentiment_core.model.classifier import Classifier
from sentiment_core.runtime import hardware
from sentiment_core.text.token_lists import TokenLists

SHARE_OF_LOST_ISOLATION = 0.25  # by which rounding may move rows, of what rows that attend to each other would be moved
FAMILY_SHAPE, SMALL_FAMILY_SHAPE = (384, 4, 12, 1_536), (48, 2, 3, 96)
FAMILY_LENGTH = 128
COMPANY_ROWS = 16  # that are also computed alone


def check_families(bench: Bench) -> None:
    """Record, for each family, which backend computes it and how far it is from float32."""
    torch.set_float32_matmul_precision("highest")  # no TF32 in what is compared with
    for family in FAMILIES:
        bench.measure(family, check_family, bench, family)
        bench.free_memory()


def check_family(bench: Bench, family: str) -> dict[str, Any]:
    """Compare states and probabilities of a random model of this family with float32, a batch for each row."""
    longest = min(FAMILY_LENGTH, bench.scale.longest)
    shape = Shape(*(SMALL_FAMILY_SHAPE if bench.is_small else FAMILY_SHAPE), family)
    model = make_model(shape, longest, bench.device)
    lists = draw_check_lists(bench.scale.check_rows, longest)
    alone = [compute_row(model, lists, row, bench.device) for row in range(len(lists))]
    expected_states, expected = (np.stack(parts) for parts in zip(*alone, strict=True))
    joined = [compute_row(model, join_next(lists, row, longest), 0, bench.device)[1] for row in range(len(lists))]
    engine = make_engine(model, longest, bench.is_cuda)
    probabilities, _ = engine.probabilities(lists)
    batches = engine.backend.batches(lists.lengths)
    with torch.inference_mode():
        states = engine.backend(lists, batches).float().cpu().numpy()[np.argsort(np.concatenate(batches))]
    figures = judge(probabilities, expected, float(np.abs(np.stack(joined) - expected).max(axis=1).mean()))
    if states.shape == expected_states.shape:  # else the whole model was computed, head and all
        error = float(np.linalg.norm(states - expected_states) / np.linalg.norm(expected_states))
        figures |= {"states_error": error, "right": figures["right"] and error <= STATES_TOLERANCE}
    return {"backend": engine.backend.name, "passed_over": engine.passed_over, **figures}


def make_engine(model: Classifier, longest: int, chooses: bool) -> Engine:
    """Make the engine: the one that chooses, or the packed one where it runs this family."""
    if chooses:
        return Engine(model, CLASSES, longest)
    try:
        return Engine(model, CLASSES, longest, None, "packed")
    except BackendUnavailable as reason:
        engine = Engine(model, CLASSES, longest, None, "torch")
        engine.passed_over.append(f"packed: {reason}")
        return engine


def judge(probabilities: np.ndarray, expected: np.ndarray, lost_isolation: float) -> dict[str, Any]:
    """Judge probabilities (rows, classes) beside float32's.

    `lost_isolation` is how far rows are moved on average that attend to the next ones. Rounding that moves them nearly
    as far could hide it.
    """
    differences = np.abs(probabilities - expected).max(axis=1)
    right = differences.max() <= BF16_TOLERANCE and differences.mean() <= SHARE_OF_LOST_ISOLATION * lost_isolation
    return {
        "right": bool(right),  # False where it is no number
        "rows": len(expected),
        "largest_difference": float(differences.max()),
        "mean_difference": float(differences.mean()),
        "lost_isolation_difference": lost_isolation,
        "same_labels": float((probabilities.argmax(axis=1) == expected.argmax(axis=1)).mean()),
    }


def compute_row(model: Classifier, lists: TokenLists, row: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Compute a row alone in float32; return its first token's state and its probabilities."""
    ids = lists.take(np.array([row])).ids[None].astype(np.int64)
    with torch.inference_mode():
        inputs, mask = hardware.to_device(device, ids, np.ones_like(ids))
        encoded = model.encoder(input_ids=inputs, attention_mask=mask).last_hidden_state[0, 0]
        probabilities = torch.softmax(model(inputs, mask).float(), dim=1)[0]
    return encoded.float().cpu().numpy(), probabilities.cpu().numpy()


def join_next(lists: TokenLists, row: int, longest: int) -> TokenLists:
    """Return one row: this one with the next ones behind it, as far as the encoder takes them."""
    rows = (row + np.arange(len(lists))) % len(lists)
    ids = lists.take(rows).ids[:longest]
    return TokenLists(ids, np.array([0, len(ids)]))


def check_company(bench: Bench) -> None:
    """Record how much a row's probabilities depend on the rows and the filling beside it."""
    for shape in bench.compared_shapes:
        bench.measure(shape, measure_company, bench, shape)
        bench.free_memory()


def measure_company(bench: Bench, shape: str) -> dict[str, Any]:
    """Compare rows alone with the same rows in a task, and steps of three sizes."""
    engine = Engine(bundle.load(bench.bundle(shape))[0], CLASSES, bench.scale.longest, None, "packed")
    task = draw_sentences(bench.scale.task_rows, bench.scale.longest)
    rows = task.take(np.arange(COMPANY_ROWS))
    own_padding = engine.backend.padding

    def compute(padding: Callable[[np.ndarray], int]) -> np.ndarray:
        engine.backend.padding = padding  # type: ignore[method-assign]
        return engine.probabilities(rows)[0]

    bucketed = compute(own_padding)
    full = compute(lambda lengths: -int(lengths.sum()) % engine.backend.budget)
    exact = compute(lambda lengths: 0)
    engine.backend.padding = own_padding  # type: ignore[method-assign]
    alone = np.concatenate([engine.probabilities(rows.take(np.array([row])))[0] for row in range(COMPANY_ROWS)])
    in_task = engine.probabilities(task)[0][:COMPANY_ROWS]
    differences = {
        "alone_and_in_a_task": _largest(alone, in_task),
        "alone_and_with_few": _largest(alone, bucketed),
        "bucketed_and_full_step": _largest(bucketed, full),
        "bucketed_and_unfilled_step": _largest(bucketed, exact),
    }
    return {"right": max(differences.values()) <= RESCORED_BF16_TOLERANCE, **differences}


def _largest(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max())
