"""Contenders that score texts: what a user would run instead, and the engine.

Each peer is written as its documentation shows it. A contender is made once from a bundle and then called with texts.
"""

import functools
import os
import time
from collections.abc import Callable

import numpy as np
import torch

from sentiment_core.model import bundle
from sentiment_core.runtime import hardware
from sentiment_core.runtime.precision import Precision
from sentiment_core.text.batching import batches_by_tokens, pad

TUTORIAL_BATCH, CURATOR_BATCH, ONNX_TOKENS = 16, 256, 2_048
RAY_EXAMPLE = "Ray's example"


class Contender:
    """A function from texts to the label number of each, and what the last call cost.

    Attributes:
        computed: Tokens computed in the last call, padding included; None where it cannot be counted. Texts that
            repeat make it too small.
        seconds: How long the last call took, where that is not all of the call.
    """

    def __init__(self, run: Callable[[list[str]], np.ndarray], model: torch.nn.Module | None = None) -> None:
        """Wrap `run`; count the tokens of each forward pass of `model`."""
        self.run = run
        self.computed: int | None = None
        self.seconds: float | None = None
        if model is not None:
            model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self.computed = (self.computed or 0) + kwargs["input_ids"].numel()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Compute the label numbers (rows,)."""
        self.computed = None
        return self.run(texts)


def make_pipeline(folder: str, batch_size: int, dtype: str = "float32") -> Contender:
    """Make `transformers.pipeline`."""
    from transformers import pipeline

    pipe = pipeline(
        "text-classification", folder, batch_size=batch_size, dtype=getattr(torch, dtype), device=hardware.device()
    )

    def run(texts: list[str]) -> np.ndarray:
        ids = pipe.model.config.label2id
        return np.array([ids[prediction["label"]] for prediction in pipe(texts, truncation=True)])

    return Contender(run, pipe.model)


def make_tutorial_loop(folder: str) -> Contender:
    """Make the tutorials' loop: batches in the given order, padded to max_length."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval().to(hardware.device())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    max_length = bundle.read_info(folder).max_length

    def run(texts: list[str]) -> np.ndarray:
        labels = []
        with torch.no_grad():
            for start in range(0, len(texts), TUTORIAL_BATCH):
                batch = tokenizer(
                    texts[start : start + TUTORIAL_BATCH],
                    padding="max_length",
                    truncation=True,
                    max_length=max_length,
                    return_tensors="pt",
                ).to(hardware.device())
                labels.append(model(**batch).logits.argmax(dim=1).cpu())
        return torch.cat(labels).numpy()

    return Contender(run, model)


def make_curator_loop(folder: str) -> Contender:
    """Make NeMo Curator's loop.

    The tokenizer pads all rows to the maximum; rows are sorted by length; batches are cut to their longest row and
    computed with autocast.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = hardware.device()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    max_length = bundle.read_info(folder).max_length

    def run(texts: list[str]) -> np.ndarray:
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
        lengths = tokens["attention_mask"].sum(dim=1)
        labels = torch.empty(len(texts), dtype=torch.int64)
        with torch.inference_mode(), hardware.autocast(device, hardware.number_types(device)[-1]):
            for rows in lengths.argsort().split(CURATOR_BATCH):
                longest = int(lengths[rows].max())
                batch = {name: tokens[name][rows, :longest].to(device) for name in ("input_ids", "attention_mask")}
                labels[rows] = model(**batch).logits.argmax(dim=1).cpu()
        return labels.numpy()

    return Contender(run, model)


def make_ray_example(folder: str, batch_size: int) -> Contender:
    """Make Ray Data's text classification example.

    It runs `transformers.pipeline` in an actor of `map_batches`. Its `seconds` leave out the start of Ray and of the
    actor. Ray runs only meanwhile, as it never lets a CPU rest.
    """
    import ray

    from sentiment_core.runtime import connection

    gpus = 1 if hardware.device().type == "cuda" else 0

    class Predictor:
        def __init__(self) -> None:
            self.run = make_pipeline(folder, batch_size)

        def __call__(self, batch: dict) -> dict:
            began = time.time()
            labels = self.run([str(text) for text in batch["text"]])
            return {
                "row": batch["row"],
                "label": labels,
                "began": [began] * len(labels),
                "ended": [time.time()] * len(labels),
            }

    def run(texts: list[str]) -> np.ndarray:
        connection.connect()
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_items([{"row": i, "text": text} for i, text in enumerate(texts)])
        rows = dataset.map_batches(Predictor, batch_size=1024, concurrency=1, num_gpus=gpus).take_all()
        ray.shutdown()
        contender.seconds = max(row["ended"] for row in rows) - min(row["began"] for row in rows)
        return np.array([row["label"] for row in sorted(rows, key=lambda row: row["row"])])

    contender = Contender(run)
    return contender


def make_onnx_runtime(folder: str) -> Contender:
    """Make ONNX Runtime in float32, with this project's tokenizer and batches.

    On CPUs it has no bfloat16.
    """
    import tempfile

    import onnxruntime

    model, _ = bundle.load(folder)
    example = (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
    with tempfile.TemporaryDirectory() as export_folder:
        path = os.path.join(export_folder, "model.onnx")
        dynamic = {0: "rows", 1: "tokens"}
        torch.onnx.export(
            model,
            example,
            path,
            input_names=["input_ids", "attention_mask"],
            dynamic_axes={"input_ids": dynamic, "attention_mask": dynamic},
            dynamo=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer = bundle.load_tokenizer(folder)

    def run(texts: list[str]) -> np.ndarray:
        tokens, _ = tokenizer.encode(texts)
        labels = np.zeros(len(texts), np.int64)
        contender.computed = 0
        for rows in batches_by_tokens(tokens.lengths, ONNX_TOKENS):
            ids, mask = pad(tokens, rows, 0)
            contender.computed += ids.size
            labels[rows] = session.run(None, {"input_ids": ids, "attention_mask": mask})[0].argmax(axis=1)
        return labels

    contender = Contender(run)
    return contender


def make_sentence_transformer(folder: str, batch_size: int) -> Contender:
    """Make sentence-transformers in the chip's fast type.

    It computes embeddings only, so all its label numbers are 0. It sorts texts by length.
    """
    from sentence_transformers import SentenceTransformer

    device = hardware.device()
    encoder = SentenceTransformer(
        folder, device=device.type, model_kwargs={"torch_dtype": hardware.number_types(device)[-1]}
    )

    def run(texts: list[str]) -> np.ndarray:
        encoder.encode(texts, batch_size=batch_size, show_progress_bar=False)
        return np.zeros(len(texts), np.int64)

    return Contender(run)


def make_engine(
    folder: str, backend: str | None, precision: Precision = "auto", uses_kitoken: bool = True
) -> Contender:
    """Make this project's engine without Ray, tokenizing included."""
    from sentiment_core.inference.engine import Engine

    engine = Engine.load(folder, None, backend, precision=precision)
    tokenizer = bundle.load_tokenizer(folder)
    if not uses_kitoken:
        tokenizer.ascii = None

    def run(texts: list[str]) -> np.ndarray:
        tokens, _ = tokenizer.encode(texts)
        probabilities, padding = engine.probabilities(tokens)
        contender.computed = int(tokens.lengths.sum()) + padding
        return probabilities.argmax(axis=1)

    contender = Contender(run)
    return contender


PEERS: dict[str, Callable[[str], Contender]] = {
    "pipeline batch 1": lambda folder: make_pipeline(folder, 1),
    "pipeline batch 8": lambda folder: make_pipeline(folder, 8),
    "pipeline batch 32": lambda folder: make_pipeline(folder, 32),
    "pipeline bf16 batch 1": lambda folder: make_pipeline(folder, 1, "bfloat16"),
    "pipeline bf16 batch 32": lambda folder: make_pipeline(folder, 32, "bfloat16"),
    "pipeline bf16 batch 256": lambda folder: make_pipeline(folder, 256, "bfloat16"),
    "tutorial loop": make_tutorial_loop,
    "Curator's way": make_curator_loop,
    RAY_EXAMPLE: lambda folder: make_ray_example(folder, 32),
    "ONNX Runtime float32": make_onnx_runtime,
}
CPU_TYPES = [hardware.dtype_name(dtype) for dtype in hardware.number_types(torch.device("cpu"))]
ENGINES: dict[str, Callable[[str], Contender]] = {
    "engine": lambda folder: make_engine(folder, None),
    **{
        f"engine {backend} {precision}": functools.partial(make_engine, backend=backend, precision=precision)
        for backend in ("torch", "openvino", "int8")
        for precision in CPU_TYPES
    },
    "engine packed": lambda folder: make_engine(folder, "packed"),
    "engine compiled": lambda folder: make_engine(folder, "compiled"),
}
ONLY_ON = {
    "cpu": ("ONNX Runtime float32", *(name for name in ENGINES if name.endswith(tuple(CPU_TYPES)))),
    "cuda": ("pipeline bf16 batch 256", "engine packed", "engine compiled"),
}
