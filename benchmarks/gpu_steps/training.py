"""Train without Ray by the real loop: rates, a break and a resumption, memory, clipping; and transformers' Trainer."""

import copy
import time
import warnings
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from gpu_steps.bench import Bench, Skipped
from gpu_steps.inputs import CLASSES, draw_sentences
from gpu_steps.local_session import Broken, LocalSession, replace_ray
from gpu_steps.memory import limited_memory
from sentiment_core.model import bundle, classifier, encoder
from sentiment_core.runtime import storage
from sentiment_core.text.batching import pad

SHAPE = "minilm-l6"
EVAL_SHARE = 8  # training rows for each evaluation row
AT_ONCE = 1e-9  # minutes until a checkpoint is due: at the loop's next look, after 10 steps
LOSS_TOLERANCE, CLIP_TOLERANCE = 1e-2, 1e-5
CLIP_WIDTH, CLIP_NORM = 256, 0.1
SHARE_OF_MEMORY = 0.6  # of what a batch needs


def measure_training(bench: Bench) -> None:
    """Record rates of the loop and of the Trainer, and check what a GPU may do in its own way."""
    for rows in bench.scale.training_batches:
        bench.measure(f"Trainer, batch of {rows}", train_with_trainer, bench, rows)
        bench.free_memory()
    session = LocalSession(bench.folder / "checkpoint", bench.device)
    replace_ray(session)  # behind the Trainer, which looks for Ray
    for rows in bench.scale.training_batches:
        bench.measure(f"loop, batch of {rows}", time_training, bench, session, rows)
        bench.free_memory()
    bench.measure("resumption", check_resumption, bench, session)
    bench.measure("waits in a step", count_waits, bench, session)
    bench.measure("clipping", check_clipping, bench)
    bench.measure("little memory", fit_memory, bench, session)
    bench.free_memory()


def make_task(bench: Bench, batch_rows: int, checkpoint_minutes: float = 10.0) -> Any:
    """Make a task of one epoch on random sentences, whose labels are those of their first tokens."""
    from sentiment_core.training import recipe, settings, task, vocabulary

    folder = bench.bundle(SHAPE)
    info = bundle.read_info(folder)
    config: Any = classifier.make_config(folder, info.labels)
    pad_id = config.pad_token_id or 0
    rows = bench.scale.training_rows
    drawn = [draw_sentences(n, bench.scale.longest, seed) for seed, n in enumerate((rows, rows // EVAL_SHARE))]
    token_ids = vocabulary.ids_in(pad_id, *drawn)
    parts = [
        task.TokenizedPart(vocabulary.remap(tokens, token_ids), (tokens.ids[tokens.offsets[:-1]] % CLASSES).astype(int))
        for tokens in drawn
    ]
    return task.TrainingTask(
        settings=settings.TrainSettings(
            "", "", "", max_length=bench.scale.longest, checkpoint_minutes=checkpoint_minutes
        ),
        recipe=replace(recipe.FIXED, epochs=1, batch_size=batch_rows),
        objective=info.objective,
        label_names=info.labels,
        label_counts=np.bincount(parts[0].labels, minlength=CLASSES),
        model_config=config,
        pad_id=pad_id,
        token_ids=token_ids,
        threads=torch.get_num_threads(),
        encoder=storage.read_folder(folder, encoder.WANTED),
        data=parts,
        folds=None,
        monitor=mock.MagicMock(),
    )


def train(session: LocalSession, task: Any) -> list[Any]:
    """Run the loop, from the session's checkpoint if it has one; return the epochs' records."""
    from sentiment_core.training.loop import TrainingLoop

    log = TrainingLoop(task, *task.data).run(session.latest)
    if isinstance(log, Exception):
        raise log
    return log


def time_training(bench: Bench, session: LocalSession, batch_rows: int) -> dict[str, Any]:
    """Train one epoch, twice on a GPU, where the first is slow; return the last one's rate."""
    seconds, log = [], []
    for _ in range(2 if bench.is_cuda else 1):
        session.latest = None
        started = time.perf_counter()
        log = train(session, make_task(bench, batch_rows))
        seconds.append(time.perf_counter() - started)
    record = log[0]
    return {
        "rows_per_second": record.rows / record.seconds,
        "whole_run_seconds": seconds[-1],
        "number_type": record.dtype,
        "steps": len(record.losses),
        "first_loss": record.losses[0],
        "last_loss": record.losses[-1],
        "right": bool(np.isfinite(record.losses).all()),
    }


def check_resumption(bench: Bench, session: LocalSession) -> dict[str, Any]:
    """Compare the losses of an undisturbed run with those of one that broke and was resumed."""
    rows = bench.scale.training_batches[0]
    session.latest = None
    expected = train(session, make_task(bench, rows))[0].losses
    session.latest, session.breaks = None, True
    try:
        train(session, make_task(bench, rows, AT_ONCE))
    except Broken:
        pass
    finally:
        session.breaks = False
    checkpoint: Any = session.latest
    state = torch.load(f"{checkpoint.folder}/state-0.pt", map_location="cpu", weights_only=True)
    losses = train(session, make_task(bench, rows))[0].losses
    difference = float(np.abs(np.array(losses) - np.array(expected)).max())
    broken_at = state["own"]["progress"]["at"][1]
    right = difference <= LOSS_TOLERANCE and 0 < broken_at < len(losses) == len(expected)
    return {"right": right, "broken_at_step": broken_at, "steps": len(losses), "largest_difference": difference}


def count_waits(bench: Bench, session: LocalSession) -> dict[str, Any]:
    """Count how often the host waits for the GPU within a step, and how long launching takes."""
    bench.require_gpu()
    from sentiment_core.training.loop import TrainingLoop

    session.latest = None
    rows = np.arange(bench.scale.training_batches[0])
    task = make_task(bench, len(rows))
    loop = TrainingLoop(task, *task.data)
    loop.model.train()
    seconds = bench.wall_seconds(lambda: loop._train_step(rows), warm_up=3)
    started = time.perf_counter()
    loop._train_step(rows)
    launched = time.perf_counter() - started
    bench.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            loop._train_step(rows)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    reasons = sorted({str(warning.message).partition("\n")[0] for warning in waits})
    return {"waits": len(waits), "reasons": reasons, "step_seconds": seconds, "launch_seconds": launched}


def check_clipping(bench: Bench) -> dict[str, Any]:
    """Compare clipping within the fused optimizer with torch's own, on the same gradients.

    AdamW makes whole steps of gradients next to nothing, which are rounding: computed twice, they would differ.
    """
    from sentiment_core.training.optimizer import clip_at_next_step

    torch.manual_seed(0)
    clipped = nn.Linear(CLIP_WIDTH, CLIP_WIDTH, device=bench.device)
    expected = copy.deepcopy(clipped)
    inputs = torch.randn(CLIP_WIDTH, CLIP_WIDTH, device=bench.device)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01, fused=True) for model in (clipped, expected)]
    for _ in range(3):
        expected.zero_grad()
        expected(inputs).square().sum().backward()
        for ours, theirs in zip(clipped.parameters(), expected.parameters(), strict=True):
            ours.grad = theirs.grad.clone()
        clip_at_next_step(optimizers[0], CLIP_NORM)
        nn.utils.clip_grad_norm_(expected.parameters(), CLIP_NORM)
        for optimizer in optimizers:
            optimizer.step()
    difference = float((clipped.weight - expected.weight).abs().max() / expected.weight.abs().max())
    return {"right": difference <= CLIP_TOLERANCE, "largest_difference": difference}


def fit_memory(bench: Bench, session: LocalSession) -> dict[str, Any]:
    """Find the budget of tokens with memory enough, and with less than a batch needs."""
    bench.require_gpu()
    from sentiment_core.training.loop import TrainingLoop
    from sentiment_core.training.token_budget import TRAIN_TOKENS, find_token_budget

    session.latest = None
    task = make_task(bench, bench.scale.training_batches[-1])
    loop = TrainingLoop(task, *task.data)
    bench.free_memory()
    loaded = torch.cuda.memory_allocated()
    loop._probe_memory(TRAIN_TOKENS["cuda"])
    needed = torch.cuda.max_memory_allocated() - loaded
    with limited_memory(loaded + SHARE_OF_MEMORY * needed):
        budget = find_token_budget(loop._probe_memory, TRAIN_TOKENS["cuda"], bench.device)
    right = loop.budget.tokens == TRAIN_TOKENS["cuda"] > budget
    return {"right": right, "budget": loop.budget.tokens, "budget_with_little_memory": budget, "needed_bytes": needed}


def train_with_trainer(bench: Bench, batch_rows: int) -> dict[str, Any]:
    """Train one epoch with the Trainer on the same rows, grouped by length."""
    if bench.is_small:
        raise Skipped("takes seconds to import")
    return run_trainer(bench, batch_rows)


def run_trainer(bench: Bench, batch_rows: int) -> dict[str, Any]:
    """Run the Trainer; return its rate."""
    from transformers import Trainer, TrainingArguments

    model = AutoModelForSequenceClassification.from_pretrained(bench.bundle(SHAPE), dtype=torch.float32)
    tokens = draw_sentences(bench.scale.training_rows, bench.scale.longest)
    rows = [{"input_ids": ids, "labels": int(ids[0]) % CLASSES} for ids in np.split(tokens.ids, tokens.offsets[1:-1])]
    numbers = {id(row): number for number, row in enumerate(rows)}

    def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
        ids, mask = pad(tokens, np.array([numbers[id(row)] for row in batch]), model.config.pad_token_id or 0)
        labels = torch.tensor([row["labels"] for row in batch])
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask), "labels": labels}

    arguments = TrainingArguments(
        str(bench.folder / "trainer"),
        per_device_train_batch_size=batch_rows,
        num_train_epochs=1,
        learning_rate=2e-5,
        weight_decay=0.01,
        bf16=bench.half == torch.bfloat16,
        use_cpu=not bench.is_cuda,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)  # type: ignore[arg-type]
    seconds = trainer.train().metrics["train_runtime"]
    return {"rows_per_second": len(rows) / seconds}
