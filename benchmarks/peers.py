"""What a user would run instead of this project, each as its documentation shows it, and this project's engine.

A contender is made once from a bundle and then called with texts.
"""

import os
import time
from collections.abc import Callable

import numpy as np
import torch

from sentiment_core.model import bundle
from sentiment_core.runtime import connection, hardware
from sentiment_core.text.batching import batches_by_tokens, pad


class Contender:
    """Called with texts, gives the label number of each. Afterwards `computed` tells the tokens computed for them, with
    padding, if that can be known (of texts all different), and `seconds` how long it took, if not all of the call."""

    def __init__(self, run: Callable[[list[str]], np.ndarray], model: torch.nn.Module | None = None) -> None:
        self.run = run
        self.computed: int | None = None
        self.seconds: float | None = None
        if model is not None:
            model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self.computed = (self.computed or 0) + kwargs["input_ids"].numel()

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.computed = None
        return self.run(texts)


def pipeline_api(folder: str, batch_size: int, dtype: str = "float32") -> Contender:
    """`transformers.pipeline`."""
    from transformers import pipeline

    pipe = pipeline(
        "text-classification", folder, batch_size=batch_size, dtype=getattr(torch, dtype), device=hardware.device()
    )

    def run(texts: list[str]) -> np.ndarray:
        ids = pipe.model.config.label2id
        return np.array([ids[found["label"]] for found in pipe(texts, truncation=True)])

    return Contender(run, pipe.model)


def tutorial_loop(folder: str) -> Contender:
    """The loop of the tutorials: batches of 16 in the given order, padded to max_length."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval().to(hardware.device())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    longest = bundle.read_info(folder).max_length

    def run(texts: list[str]) -> np.ndarray:
        found = []
        with torch.no_grad():
            for start in range(0, len(texts), 16):
                batch = tokenizer(
                    texts[start : start + 16],
                    padding="max_length",
                    truncation=True,
                    max_length=longest,
                    return_tensors="pt",
                ).to(hardware.device())
                found.append(model(**batch).logits.argmax(dim=1).cpu())
        return torch.cat(found).numpy()

    return Contender(run, model)


def curator_way(folder: str) -> Contender:
    """As NeMo Curator does: the tokenizer pads all to the maximum, rows are sorted by length, batches of 256 clipped to
    their longest row; autocast."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = hardware.device()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval().to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    longest = bundle.read_info(folder).max_length

    def run(texts: list[str]) -> np.ndarray:
        tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        lengths = tokens["attention_mask"].sum(dim=1)
        found = torch.empty(len(texts), dtype=torch.int64)
        with torch.inference_mode(), hardware.autocast(device, hardware.compute_dtype(device)):
            for rows in lengths.argsort().split(256):
                clip = int(lengths[rows].max())
                batch = {name: tokens[name][rows, :clip].to(device) for name in ("input_ids", "attention_mask")}
                found[rows] = model(**batch).logits.argmax(dim=1).cpu()
        return found.numpy()

    return Contender(run, model)


def ray_documentation_way(folder: str, batch_size: int) -> Contender:
    """`transformers.pipeline` in an actor of `map_batches`, as in Ray Data's text classification example. Its `seconds`
    leave out what starting Ray and the actor took; Ray runs for that time only, for it keeps a CPU from resting."""
    import ray

    gpus = 1 if hardware.device().type == "cuda" else 0

    class Predictor:
        def __init__(self) -> None:
            self.run = pipeline_api(folder, batch_size)

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
        rows = ray.data.from_items([{"row": i, "text": text} for i, text in enumerate(texts)])
        found = rows.map_batches(Predictor, batch_size=1024, concurrency=1, num_gpus=gpus).take_all()
        ray.shutdown()
        contender.seconds = max(row["ended"] for row in found) - min(row["began"] for row in found)
        return np.array([row["label"] for row in sorted(found, key=lambda row: row["row"])])

    contender = Contender(run)
    return contender


def onnx_runtime(folder: str) -> Contender:
    """ONNX Runtime in float32 (it has no bf16 on CPUs), given this project's token lists and batches."""
    import tempfile

    import onnxruntime

    model, _ = bundle.load(folder)
    example = (torch.ones(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64))
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, "model.onnx")
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
        found = np.zeros(len(texts), np.int64)
        contender.computed = 0
        for rows in batches_by_tokens(tokens.lengths, 2_048):
            ids, mask = pad(tokens, rows, 0)
            contender.computed += ids.size
            found[rows] = session.run(None, {"input_ids": ids, "attention_mask": mask})[0].argmax(axis=1)
        return found

    contender = Contender(run)
    return contender


def engine(folder: str, backend: str | None) -> Contender:
    """This project without Ray, tokenising included."""
    from sentiment_core.inference.engine import Engine

    loaded = Engine.load(folder, None, backend)
    tokenizer = bundle.load_tokenizer(folder)

    def run(texts: list[str]) -> np.ndarray:
        tokens, _ = tokenizer.encode(texts)
        probabilities, padding = loaded.probabilities(tokens)
        contender.computed = int(tokens.lengths.sum()) + padding
        return probabilities.argmax(axis=1)

    contender = Contender(run)
    return contender


PEERS: dict[str, Callable[[str], Contender]] = {
    "pipeline batch 1": lambda folder: pipeline_api(folder, 1),
    "pipeline batch 8": lambda folder: pipeline_api(folder, 8),
    "pipeline batch 32": lambda folder: pipeline_api(folder, 32),
    "pipeline bf16 batch 1": lambda folder: pipeline_api(folder, 1, "bfloat16"),
    "pipeline bf16 batch 32": lambda folder: pipeline_api(folder, 32, "bfloat16"),
    "pipeline bf16 batch 256": lambda folder: pipeline_api(folder, 256, "bfloat16"),
    "tutorial loop": tutorial_loop,
    "Curator's way": curator_way,
    "Ray's example": lambda folder: ray_documentation_way(folder, 32),
    "ONNX Runtime float32": onnx_runtime,
}
ENGINES: dict[str, Callable[[str], Contender]] = {
    "engine torch": lambda folder: engine(folder, "torch"),
    "engine openvino": lambda folder: engine(folder, "openvino"),
    "engine int8": lambda folder: engine(folder, "int8"),
    "engine packed": lambda folder: engine(folder, "packed"),
    "engine compiled": lambda folder: engine(folder, "compiled"),
}
ONLY_ON = {
    "cpu": ("ONNX Runtime float32", "engine openvino", "engine int8"),
    "cuda": ("pipeline bf16 batch 256", "engine packed", "engine compiled"),
}
