"""Contenders of `gpu.py`: engine backends, padded transformers, training steps.

Each is made in a process of its own. All take token ids, never texts: what is compared is the model's work, not the
tokenizer's. Nothing here needs Ray.
"""

import gc
import statistics
import time
from typing import Any

import numpy as np
import torch
from gpu_inputs import MAX_LENGTH, Sample
from timing import peak_memory_mb
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from sentiment_core.inference.engine import Engine
from sentiment_core.model import classifier
from sentiment_core.runtime import hardware
from sentiment_core.text.batching import batches_by_length, pad
from sentiment_core.text.token_lists import TokenLists

CLASSES = 3
PAD_ID = 0
TRAIN_MAX_LENGTH, TRAIN_BATCH_ROWS = 256, 32  # the defaults of the train command
# What a scoring task on a GPU holds at most: rows, and tokens of 8 MiB of English text.
TASK_ROWS, TASK_TOKENS = 16_384, 1_700_000
ROWS_ALONE = 16  # that are also computed one by one
REQUEST_ROWS, REQUEST_REPEATS, REQUEST_SECONDS = (1, 8, 64), 20, 0.5
PROBE_BATCHES = 4  # by which a padded contender compares batch sizes


def half_dtype(device: torch.device) -> torch.dtype:
    """Return the GPU's 16-bit type; on a CPU the type that the engine takes."""
    return hardware.number_types(device)[-1]


class Contender:
    """A way to compute one model at a time.

    The first argument of a call names the method.
    """

    def __init__(self) -> None:
        self.device = hardware.device()
        self.lists: dict[Sample, TokenLists] = {}
        self.timed_rows: dict[Sample, int] = {}

    def __call__(self, action: str, *arguments: Any) -> Any:
        """Call the method of this name."""
        return getattr(self, action)(*arguments)

    def load(self, folder: str) -> dict:
        """Load the model; return what is worth recording about it."""
        started = time.perf_counter()
        facts = self.load_model(folder)
        return {**facts, "load_seconds": time.perf_counter() - started}

    def load_model(self, folder: str) -> dict:
        """Load the model; return facts about it."""
        raise NotImplementedError

    def unload(self) -> None:
        """Give the model's memory back."""
        for name in set(vars(self)) & {"model", "engine", "optimizer"}:
            delattr(self, name)
        self.timed_rows.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def run(self, lists: TokenLists) -> dict:
        """Compute all rows and wait until it is done; return facts about how."""
        raise NotImplementedError

    def warm_up_rows(self, lists: TokenLists) -> int:
        """Return how many rows show the rate."""
        raise NotImplementedError

    def measure(self, sample: Sample, seconds: float) -> dict:
        """Time one pass of about so many seconds over the sample's first rows.

        A few rows warm up before it.
        """
        lists = self.lists.setdefault(sample, sample.draw())
        first_time = sample not in self.timed_rows
        if first_time:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.prepare(lists)
        first = lists.take(np.arange(min(self.warm_up_rows(lists), len(lists))))
        for _ in range(1 + first_time):  # the very first pass chooses kernels
            started = time.perf_counter()
            self.run(first)
            warm_up_seconds = time.perf_counter() - started
        if first_time:
            rows = int(len(first) * max(1.0, seconds / warm_up_seconds))
            self.timed_rows[sample] = min(rows, len(lists))
        part = lists.take(np.arange(self.timed_rows[sample]))
        started = time.perf_counter()
        facts = self.run(part)
        elapsed = time.perf_counter() - started
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the other processes want that memory
        return {
            **facts,
            "rows": len(part),
            "tokens": int(part.lengths.sum()),
            "seconds": elapsed,
            "peak_memory_mb": peak_memory_mb(self.device),
        }

    def prepare(self, lists: TokenLists) -> None:
        """Choose what depends on the lengths, before the first pass."""


class Scorer(Contender):
    """A contender that gives probabilities."""

    def probabilities(self, lists: TokenLists) -> tuple[np.ndarray, int]:
        """Compute probabilities in the order of `lists`, and count tokens of padding.

        Returns (rows, classes) float32 and the count.
        """
        raise NotImplementedError

    def run(self, lists: TokenLists) -> dict:
        """Compute all rows."""
        return {"padding": self.probabilities(lists)[1]}

    def check(self, lists: TokenLists) -> tuple[np.ndarray, np.ndarray]:
        """Compute probabilities of all rows together, and of a few of them each alone."""
        alone = [self.probabilities(lists.take(np.array([row])))[0] for row in range(ROWS_ALONE)]
        return self.probabilities(lists)[0], np.concatenate(alone)

    def time_requests(self, sample: Sample) -> dict[str, float]:
        """Time small requests as a service gets them: median milliseconds by rows."""
        lists = self.lists.setdefault(sample, sample.draw())
        medians = {}
        for rows in REQUEST_ROWS:
            seconds: list[float] = []
            for repeat in range(REQUEST_REPEATS):
                request = lists.take((np.arange(rows) + repeat * rows) % len(lists))
                started = time.perf_counter()
                self.probabilities(request)
                seconds.append(time.perf_counter() - started)
                if sum(seconds) > REQUEST_SECONDS:
                    break
            medians[str(rows)] = 1e3 * statistics.median(seconds)
        return medians


class EngineScorer(Scorer):
    """This project's engine with one backend, or the one that it chooses."""

    def __init__(self, backend: str | None) -> None:
        super().__init__()
        self.backend = backend

    def load_model(self, folder: str) -> dict:
        """Build the engine; facts are the backend that it took and those it passed over."""
        model = load_classifier(folder)
        self.engine = Engine(model, CLASSES, MAX_LENGTH, None, self.backend)
        return {"computed_by": self.engine.backend.name, "passed_over": list(self.engine.passed_over)}

    def probabilities(self, lists: TokenLists) -> tuple[np.ndarray, int]:
        """Compute the rows task by task, as a scoring actor gets them."""
        results = [self.engine.probabilities(task) for task in tasks(lists)]
        return np.concatenate([result for result, _ in results]), sum(padding for _, padding in results)

    def warm_up_rows(self, lists: TokenLists) -> int:
        """Take one task."""
        return len(tasks(lists)[0])


def tasks(lists: TokenLists) -> list[TokenLists]:
    """Cut the rows into tasks as large as in scoring on a GPU, as views."""
    number = (np.cumsum(lists.lengths) - 1) // TASK_TOKENS
    cuts = [*np.flatnonzero(np.diff(number)) + 1, len(lists)]
    bounds, start = [], 0
    for stop in cuts:
        bounds += [(first, min(first + TASK_ROWS, stop)) for first in range(start, stop, TASK_ROWS)]
        start = stop
    return [slice_rows(lists, start, stop) for start, stop in bounds]


def slice_rows(lists: TokenLists, start: int, stop: int) -> TokenLists:
    """Return a view of consecutive rows."""
    offsets = lists.offsets[start : stop + 1]
    return TokenLists(lists.ids[offsets[0] : offsets[-1]], offsets - offsets[0])


class PaddedScorer(Scorer):
    """Transformers' model with padded batches and torch's attention.

    Written as a careful user would: copies do not wait and results are fetched once, at the end. Without a
    `batch_size` it measures which is fastest.
    """

    def __init__(self, dtype: str | None, batch_size: int | None, by_length: bool) -> None:
        super().__init__()
        self.dtype = getattr(torch, dtype) if dtype else half_dtype(self.device)
        self.fixed_batch_size, self.by_length = batch_size, by_length
        self.batch_size = batch_size or 32

    def load_model(self, folder: str) -> dict:
        """Load transformers' own class."""
        self.model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=self.dtype, attn_implementation="sdpa", local_files_only=True
        )
        self.model.eval().to(self.device)
        return {"computed_by": f"transformers {hardware.dtype_name(self.dtype)}"}

    def probabilities(self, lists: TokenLists) -> tuple[np.ndarray, int]:
        """Compute the rows in batches, sorted by length or in their own order."""
        order = np.argsort(-lists.lengths, kind="stable") if self.by_length else np.arange(len(lists))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        logits, computed = [], 0
        with torch.inference_mode():
            for rows in batches:
                ids, mask = hardware.to_device(self.device, *pad(lists, rows, PAD_ID))
                computed += ids.numel()
                logits.append(self.model(input_ids=ids, attention_mask=mask).logits)
            result = torch.softmax(torch.cat(logits).float(), dim=1).cpu().numpy()
        return result[np.argsort(order)], computed - int(lists.lengths.sum())

    def warm_up_rows(self, lists: TokenLists) -> int:
        """Take a few batches."""
        return PROBE_BATCHES * self.batch_size

    def prepare(self, lists: TokenLists) -> None:
        """Choose the batch size that is fastest at these lengths."""
        if self.fixed_batch_size is not None:
            return
        rates: dict[int, float] = {}
        for batch_size in (32, 128, 512, 2_048) if self.device.type == "cuda" else (8, 32):
            part = lists.take(np.arange(min(PROBE_BATCHES * batch_size, len(lists))))
            self.batch_size = batch_size
            try:
                self.probabilities(part)
                started = time.perf_counter()
                self.probabilities(part)
                rates[batch_size] = len(part) / (time.perf_counter() - started)
            except torch.OutOfMemoryError:
                break
        if not rates:
            raise torch.OutOfMemoryError("no batch size fits")
        self.batch_size = max(rates, key=lambda size: rates[size])

    def run(self, lists: TokenLists) -> dict:
        """Compute all rows."""
        return super().run(lists) | {"batch_size": self.batch_size}


class Trainer(Contender):
    """Training steps on one GPU, without Ray.

    As in the training loop: autocast, fused AdamW, clipped gradients. Left out: the loop's book-keeping, evaluation,
    checkpoints and the trimmed vocabulary.
    """

    def __init__(self, batch_rows: int) -> None:
        super().__init__()
        self.batch_rows = batch_rows

    def load_model(self, folder: str) -> dict:
        """Load the model and make an optimizer."""
        self.model = load_classifier(folder)
        classifier.compute_first_token_only(self.model, self.model.encoder)
        self.model.train().to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-5, weight_decay=0.01, fused=True)
        self.dtype = half_dtype(self.device)
        return {"computed_by": f"training {hardware.dtype_name(self.dtype)}", "batch_size": self.batch_rows}

    def run(self, lists: TokenLists) -> dict:
        """Take one step for each batch of the rows."""
        rng = np.random.default_rng(0)
        labels = rng.integers(0, CLASSES, len(lists))
        lengths = np.minimum(lists.lengths, TRAIN_MAX_LENGTH)
        batches = batches_by_length(lengths, self.batch_rows, rng)
        computed, loss = 0, torch.zeros(())
        for rows in batches:
            ids, mask = (array[:, :TRAIN_MAX_LENGTH].copy() for array in pad(lists, rows, PAD_ID))
            computed += ids.size
            inputs, attention_mask, targets = hardware.to_device(self.device, ids, mask, labels[rows])
            with hardware.autocast(self.device, self.dtype):
                logits = self.model(inputs, attention_mask).float()
            loss = nn.functional.cross_entropy(logits, targets)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if not np.isfinite(loss.item()):  # also waits for the GPU
            raise FloatingPointError("the loss is not finite")
        used = int(lengths.sum())
        return {"padding": computed - used, "steps": len(batches), "used_tokens": used}

    def warm_up_rows(self, lists: TokenLists) -> int:
        """Take a few steps."""
        return PROBE_BATCHES * self.batch_rows


def load_classifier(folder: str) -> classifier.Classifier:
    """Load this project's classifier in float32 on the CPU, in evaluation mode."""
    return classifier.from_encoder(folder, AutoConfig.from_pretrained(folder), "standard").eval()
