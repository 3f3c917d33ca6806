"""Fine-tuning: a plain PyTorch loop, run data-parallel by Ray Train.

`train` (in the driver) reads and tokenises the data, starts the workers, then calibrates the best epoch's weights and
writes the bundle. `train_loop` runs in every worker: each takes its share of the rows of every global batch, so the
batches, and but for dropout the losses, are the same whatever the number of workers.
"""

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import get_linear_schedule_with_warmup

from sentiment_core import (
    bundle,
    calibration,
    classifier,
    cluster,
    dataset,
    encoder,
    hardware,
    metrics,
    storage,
)
from sentiment_core.backends import Unfit
from sentiment_core.dataset import Labelled
from sentiment_core.errors import BadRequest
from sentiment_core.progress import Progress
from sentiment_core.settings import REQUIRED, check, setting
from sentiment_core.tokenizer import Tokenizer
from sentiment_core.tokens import TokenLists, batches_by_length, batches_by_tokens, pad

LOGITS = "eval_logits.npy"  # beside the weights in a checkpoint
TELL_EVERY = 0.5  # seconds between two words of progress to the driver
# read by Ray when training starts: a worker's report or error is seen at once, and CPUs or GPUs that another job holds
# are waited for this long (those the cluster has not at all are refused before)
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")

# labelled rows, and tokens of them, whose labels are compared with those of 8 bits: 1 in 200 shows, within a minute
INT8_ROWS, INT8_TOKENS = 10_000, 300_000
EVAL_TOKENS = 8192  # tokens of an evaluation batch, padding included: fits any GPU, and a CPU's caches do not mind


@dataclass(frozen=True)
class TrainSettings:
    data: str = setting(
        REQUIRED,
        "labelled text: Parquet, CSV or JSON Lines (file, folder, glob, URI), or a hub data set as owner/name[:config][:split]",
        "D",
    )
    model: str = setting(
        REQUIRED,
        "the encoder to start from: a Hugging Face model folder, or a hub name such as distilbert-base-uncased",
        "NAME_OR_DIR",
    )
    out: str = setting(REQUIRED, "folder (or URI) of the new model bundle; must not exist yet", "BUNDLE")
    eval_data: str | None = setting(
        None,
        "labelled text to evaluate, choose the best epoch and calibrate on; without it a part of --data is held out",
        "D",
    )
    eval_fraction: float = setting(
        0.1, "share of --data held out, each label in proportion, when there is no --eval-data"
    )
    text_column: str = setting("text", "column with the text")
    label_column: str = setting("label", "column with the label: text or a whole number")
    label_names: tuple[str, ...] = setting(
        (), "names for the labels 0, 1, ... of the data, such as negative,positive", "A,B"
    )
    head: classifier.Head = setting(  # noqa: RUF009
        "standard",
        "standard: the encoder's own classification head; mlp: first token, linear to half, GELU, dropout, linear",
    )
    dropout: float | None = setting(None, "dropout inside the encoder; without it the encoder's own", "P")
    classifier_dropout: float | None = setting(None, "dropout before the last layer; without it the encoder's own", "P")
    epochs: int = setting(3, "passes over the training rows, at most (see --patience)")
    batch_size: int = setting(32, "rows in a global batch, shared by all workers")
    lr: float = setting(2e-5, "peak learning rate of the encoder")
    head_lr: float = setting(1e-4, "peak learning rate of the head")
    weight_decay: float = setting(0.01, "AdamW weight decay; biases and norms have none")
    warmup: float = setting(
        0.1, "share of the steps in which the learning rate climbs; it then falls to 0, both linearly"
    )
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm")
    max_length: int = setting(256, "tokens of a text that are used, special tokens included")
    select_by: Literal["accuracy", "macro_f1", "loss"] = setting(
        "accuracy", "what makes an epoch the best on the evaluation rows"
    )
    patience: int = setting(2, "epochs in a row without a better one after which training stops")
    workers: int = setting(1, "data-parallel workers: one GPU each where the cluster has GPUs, else CPUs")
    seed: int = setting(0, "of the split, the order of rows, the head's first weights and dropout")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "workers", "patience", "max_length"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("lr", "head_lr", "max_grad_norm"):
            check(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "a number above 0")
        for name in ("dropout", "classifier_dropout"):
            value = getattr(self, name)
            check(value is None or 0 <= value < 1, name, value, "a share from 0 to below 1")
        check(0 <= self.warmup <= 1, "warmup", self.warmup, "a share from 0 to 1")
        check(0 < self.eval_fraction < 1, "eval_fraction", self.eval_fraction, "a share between 0 and 1")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        check(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        names = self.label_names
        check(len(set(names)) == len(names), "label_names", ",".join(names), "different names")
        check(
            self.batch_size >= self.workers,
            "batch_size",
            self.batch_size,
            f"at least one row for each of {self.workers} workers",
        )


@dataclass(frozen=True)
class Trained:
    """What a training run leaves: the bundle's place and what it says of itself."""

    place: str
    info: bundle.BundleInfo
    log: list[dict]  # one record an epoch: losses of its steps, seconds, evaluation

    def summary(self) -> str:
        """A few lines for the terminal."""
        lines = ["epoch  train loss  eval loss  accuracy  macro-F1  rows/s"]
        rows = self.info.training["data"]["train_rows"]
        for r in self.log:
            best = "  best" if r["epoch"] == self.info.training["best_epoch"] else ""
            lines.append(
                f"{r['epoch']:5}  {np.mean(r['losses']):10.4f}  {r['eval']['loss']:9.4f}  {r['eval']['accuracy']:8.4f}  "
                f"{r['eval']['macro_f1']:8.4f}  {rows / r['seconds']:6.1f}{best}"
            )
        c, m = self.info.calibration, self.info.metrics
        dropped = {  # by place: without --eval-data both parts have the same
            f"{number:,} rows of {origin['place']} dropped: {reason.replace('_', ' ')}": None
            for origin in (self.info.training["data"], self.info.training["eval_data"])
            for reason, number in origin["dropped"].items()
            if number
        }
        lines += dropped
        lines += [
            f"accuracy {m['accuracy']:.4f}, macro-F1 {m['macro_f1']:.4f} on {m['n']:,} held-out rows",
            f"calibration error {c['ece_before']:.4f} -> {c['ece_after']:.4f} at temperature {c['temperature']:.2f}",
            f"bundle: {self.place} ({self.info.training['seconds']:.0f} s, {self.info.training['dtype']} on "
            f"{self.info.training['device']})",
        ]
        return "\n".join(lines)


# --- in the driver ---------------------------------------------------------------------------------------------------


def train(settings: TrainSettings) -> Trained:
    """Fine-tune, calibrate, write the bundle. Raises `BadRequest` before any work if the request cannot be met."""
    started = time.monotonic()
    storage.check_lasting(settings.out)
    bundle.check_free(settings.out)
    start_from = encoder.fetch(settings.model)
    train_part, eval_part = read_parts(settings)
    labels = train_part.label_names
    try:
        model_config = classifier.make_config(start_from.folder, labels, settings.dropout)
        tokenizer = encoder.load_tokenizer(start_from.folder)
    except (OSError, ValueError) as error:
        raise BadRequest(f"--model {settings.model} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    encoder.check_max_length(start_from, tokenizer, model_config, settings.max_length)
    texts_to_tokens = Tokenizer.from_transformers(tokenizer)
    train_part, train_tokens = tokenise(train_part, texts_to_tokens, settings.max_length)
    eval_part, eval_tokens = tokenise(eval_part, texts_to_tokens, settings.max_length)
    files = storage.read_folder(start_from.folder, encoder.WANTED)
    storage.check_space(settings.out, 4 * sum(map(len, files.values())))

    cluster.connect()
    cluster.require(settings.workers)
    beside = storage.parent(settings.out)
    storage.check_writable(beside)
    cluster.check_shared(beside, "--out", writable=True)
    work = storage.join(beside, storage.temporary_name())
    try:
        parts = [Tokenised(train_tokens, train_part.labels), Tokenised(eval_tokens, eval_part.labels)]
        log, checkpoint = run_workers(
            settings,
            work,
            {
                "settings": settings,
                "data": ray.put(parts),
                "encoder": ray.put(files),
                "model_config": model_config,
                "label_names": labels,
                "pad_id": tokenizer.pad_token_id or 0,
            },
            rows=len(train_part),
        )
        model = classifier.from_config(model_config, settings.head)
        with checkpoint.as_directory() as folder:
            safetensors.torch.load_model(model, os.path.join(folder, bundle.WEIGHTS))
            logits = np.load(os.path.join(folder, LOGITS))
    finally:
        storage.delete_folder(work)

    temperature = calibration.fit_temperature(logits, eval_part.labels)
    calibration.fold_temperature(classifier.last_layer(model, len(labels)), temperature)
    before, after = metrics.probabilities_of(logits), metrics.probabilities_of(logits / temperature)
    final = metrics.evaluate(after, eval_part.labels, labels)
    best_epoch = max(log, key=lambda record: record["selected_by"])
    info = bundle.BundleInfo(
        head=settings.head,
        labels=labels,
        max_length=settings.max_length,
        metrics=final,
        calibration={
            "method": "temperature scaling, folded into the last linear layer",
            "temperature": temperature,
            "rows": len(eval_part),
            "ece_before": metrics.expected_calibration_error(before, eval_part.labels),
            "ece_after": final["ece"],
        },
        training={
            "settings": asdict(settings),
            "encoder": {"name": start_from.name, "revision": start_from.revision},
            "data": train_part.origin | {"train_rows": len(train_part), "fingerprint": train_part.fingerprint()},
            "eval_data": eval_part.origin | {"eval_rows": len(eval_part), "fingerprint": eval_part.fingerprint()},
            "label_shares": dataset.label_shares(train_part.labels, labels),
            "best_epoch": best_epoch["epoch"],
            "epochs": len(log),
            "device": best_epoch["device"],
            "dtype": best_epoch["dtype"],
            "rows_per_second": len(train_part) * len(log) / sum(record["seconds"] for record in log),
            "seconds": time.monotonic() - started,
        },
        reference=reference_statistics(eval_tokens, after, labels, tokenizer.unk_token_id),
        int8=check_int8(model, len(labels), eval_tokens, train_tokens),
    )
    from sentiment_core import report  # matplotlib; the workers, which import this file, do without

    extra = report.model_card(info, log)
    extra[bundle.LOG] = "".join(json.dumps(record) + "\n" for record in log).encode()
    bundle.write(settings.out, model, model_config, tokenizer, info, extra)
    return Trained(settings.out, info, log)


def read_parts(settings: TrainSettings) -> tuple[Labelled, Labelled]:
    """Training and evaluation part with the same labels. Raises `BadRequest`."""
    names = list(settings.label_names) or None
    data = dataset.read(settings.data, settings.text_column, settings.label_column, names)
    classes = np.unique(data.labels)
    if len(classes) < 2:
        raise BadRequest(
            f"column {settings.label_column!r} of {settings.data} has the one label "
            f"{data.label_names[classes[0]]!r}; expected two or more"
        )
    if not settings.eval_data:
        return dataset.split(data, settings.eval_fraction, settings.seed)
    held_out = dataset.read(settings.eval_data, settings.text_column, settings.label_column, data.label_names)
    return data, held_out


def check_int8(model: classifier.Classifier, classes: int, *parts: TokenLists) -> dict:
    """On which share of how many rows 8 bits leave the label as it is, or the reason why that is not known. Takes as
    many rows as cost seconds, of the first part before the next."""
    from sentiment_core.engine import Engine

    try:
        engines = [Engine(model.eval(), classes, backend=backend) for backend in ("openvino", "int8")]
    except Unfit as unfit:
        return {"reason": str(unfit)}
    same: list[np.ndarray] = []
    rows_left, tokens_left = INT8_ROWS, INT8_TOKENS
    for tokens in parts:
        many = int(min(len(tokens), rows_left, tokens_left / max(1.0, tokens.lengths.mean())))
        some = tokens.take(np.linspace(0, len(tokens) - 1, many).astype(int))
        whole, small = (engine.probabilities(some)[0].argmax(axis=1) for engine in engines)
        same.append(whole == small)
        rows_left, tokens_left = rows_left - many, max(0, tokens_left - len(some.ids))
    found = np.concatenate(same)
    return {"agreement": float(found.mean()), "rows": len(found)}


def reference_statistics(
    tokens: TokenLists, probabilities: np.ndarray, labels: list[str], unknown_id: int | None
) -> dict:
    """What the evaluation part looks like to the model, to tell later whether a corpus has drifted from it."""
    confidence = probabilities.max(axis=1)
    return {
        "rows": len(tokens),
        "predicted_shares": dataset.label_shares(probabilities.argmax(axis=1), labels),
        "confidence_histogram": np.histogram(confidence, bins=20, range=(0, 1))[0].tolist(),
        "tokens_quantiles": {str(q): float(np.quantile(tokens.lengths, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        "unknown_token_share": 0.0 if unknown_id is None else float((tokens.ids == unknown_id).mean()),
    }


def tokenise(part: Labelled, tokenizer: Tokenizer, max_length: int) -> tuple[Labelled, TokenLists]:
    """The rows' tokens; rows of which the tokenizer leaves nothing (control characters only) are dropped and counted."""
    tokens, _ = tokenizer.encode(part.texts, max_length)
    keep = np.flatnonzero(tokens.lengths)
    if not len(keep):
        raise BadRequest(f"{part.origin['place']} has no text the tokenizer makes anything of; expected labelled text")
    dropped = part.origin["dropped"] | {"without_tokens": len(part) - len(keep)}
    return replace(part.take(keep), origin=part.origin | {"dropped": dropped}), tokens.take(keep)


def run_workers(settings: TrainSettings, work: str, config: dict, rows: int) -> tuple[list[dict], Checkpoint]:
    """Run `train_loop` on all workers; the log of all epochs and the checkpoint of the best one."""
    use_gpu = cluster.device_kind() == "GPU"
    threads = 1 if use_gpu else cluster.cpus_each(settings.workers)
    filesystem, path = storage.locate(work)
    counter = ray.remote(num_cpus=0)(RowCounter).options(scheduling_strategy=cluster.here()).remote()
    trainer = ray.train.torch.TorchTrainer(
        train_loop,  # type: ignore[arg-type]  # may return what it likes
        train_loop_config=config | {"threads": threads, "counter": counter},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": threads} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # ray.train shows checkers the first version's class
            name="run",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),  # type: ignore[call-arg]
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="selected_by", checkpoint_score_order="max"
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with (
            Progress("train", rows * settings.epochs, "rows", cluster.waiting_for) as progress,
            following(counter, progress),
        ):
            result = trainer.fit()
    except ray.train.WorkerGroupError as error:
        raise first_failure(error) from error
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"the training's {settings.workers} workers did not start or were lost: {error}") from error
    except SystemExit:  # Ray's answer to Ctrl-C, with exit code 0
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Ray leaves its own behind
    best = result.get_best_checkpoint("selected_by", "max")
    return result.return_value, best  # type: ignore[attr-defined,return-value]


def first_failure(error: ray.train.WorkerGroupError) -> Exception:
    """Of all workers' exceptions the one that tells most: when one fails, the others lose their connection to it."""

    def lost_connection(failure: Exception) -> bool:
        return any(word in str(failure).lower() for word in ("gloo", "nccl", "connection reset", "connection closed"))

    return min(error.worker_failures.values(), key=lost_connection)


class RowCounter:
    """Rows done, told by the first worker and asked for by the driver."""

    def __init__(self) -> None:
        self.rows = 0

    def put(self, rows: int) -> None:
        self.rows = rows

    def total(self) -> int:
        return self.rows


@contextlib.contextmanager
def following(counter, progress: Progress) -> Iterator[None]:
    """Keeps a progress bar at the counter's total, from a thread: `trainer.fit()` holds the driver until the end."""
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(0.5):
            progress.set(ray.get(counter.total.remote()))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        progress.set(ray.get(counter.total.remote()))


@dataclass(frozen=True)
class Tokenised:
    tokens: TokenLists
    labels: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.labels)


# --- in every worker -------------------------------------------------------------------------------------------------


def train_loop(config: dict) -> list[dict]:
    """Train on this worker's share; returns the log of the epochs. The best epoch's weights are left as a checkpoint."""
    settings: TrainSettings = config["settings"]
    train_part, eval_part = ray.get(config["data"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    dtype = hardware.compute_dtype(device)
    if device.type == "cpu":
        torch.set_num_threads(config["threads"])

    torch.manual_seed(settings.seed)
    with storage.unpacked(ray.get(config["encoder"])) as folder:
        model = classifier.from_encoder(folder, config["model_config"], settings.head).to(device)
    if settings.classifier_dropout is not None:
        classifier.set_head_dropout(model, settings.classifier_dropout)
    optimizer = make_optimizer(model, settings)
    steps = settings.epochs * -(-len(train_part) // settings.batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, round(settings.warmup * steps), steps)
    wrapped: nn.Module = model
    if world > 1:
        # the mlp head leaves the pooler of some encoders without a gradient
        wrapped = DistributedDataParallel(model, find_unused_parameters=settings.head == "mlp")
    torch.manual_seed(settings.seed + rank)  # from here on for dropout: each worker its own

    order = np.random.default_rng(settings.seed)
    best, since_best = None, 0
    done, told = 0, 0.0  # rows trained on; when the driver last heard of it
    log = []
    for epoch in range(1, settings.epochs + 1):
        start = time.monotonic()
        losses = torch.zeros(-(-len(train_part) // settings.batch_size), device=device)
        wrapped.train()
        for step, rows in enumerate(batches_by_length(train_part.tokens.lengths, settings.batch_size, order)):
            losses[step] = train_step(
                wrapped, optimizer, train_part, rows, rank, world, dtype, settings, config["pad_id"]
            )
            schedule.step()
            done += len(rows)
            if rank == 0 and (time.monotonic() - told > TELL_EVERY or step == len(losses) - 1):
                config["counter"].put.remote(done)
                told = time.monotonic()
        if world > 1:
            torch.distributed.all_reduce(losses)
        trained = time.monotonic()
        logits = predict(model, eval_part, rank, world, dtype, config["pad_id"])
        if not np.isfinite(logits).all():
            raise BadRequest(
                f"the training diverged in epoch {epoch}: its logits are not finite; lower --lr or --head-lr"
            )
        scores = metrics.evaluate(metrics.probabilities_of(logits), eval_part.labels, config["label_names"])
        scores["loss"] = metrics.cross_entropy(logits, eval_part.labels)
        value = -scores["loss"] if settings.select_by == "loss" else scores[settings.select_by]
        better = best is None or value > best
        best, since_best = (value, 0) if better else (best, since_best + 1)
        record = {
            "epoch": epoch,
            "losses": losses.tolist(),
            "seconds": trained - start,
            "eval": {name: scores[name] for name in ("loss", "accuracy", "macro_f1", "ece")},
            "selected_by": value,
            "device": hardware.device_name(device),
            "dtype": hardware.short_name(dtype),
        }
        log.append(record)
        with tempfile.TemporaryDirectory(prefix="sentiment-core-") as folder:
            checkpoint = None
            if better and rank == 0:
                safetensors.torch.save_model(model, os.path.join(folder, bundle.WEIGHTS))
                np.save(os.path.join(folder, LOGITS), logits)
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(record, checkpoint=checkpoint)
        if since_best >= settings.patience:
            break
    return log


def train_step(model, optimizer, part, rows, rank, world, dtype, settings, pad_id) -> torch.Tensor:
    """One optimiser step on this worker's rows of a global batch; returns its share of the batch's mean loss."""
    # neighbours in a batch are of similar length, so every world-th row keeps the workers equally busy
    mine = rows[rank::world]
    idle = len(mine) == 0  # a last batch smaller than the number of workers: take part in the exchange with weight 0
    mine = rows[:1] if idle else mine
    device = next(model.parameters()).device
    labels = torch.from_numpy(part.labels[mine]).to(device)
    with hardware.autocast(device, dtype):
        logits = model(*hardware.put(device, *pad(part.tokens, mine, pad_id)))
    loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum") * (0.0 if idle else 1.0 / len(rows))
    # DDP averages gradients over the workers; the sum over all rows is wanted
    (loss * world).backward()
    nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def make_optimizer(model: classifier.Classifier, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with the head's own rate and no decay on biases and norms, the parameters of one dimension."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith(model.encoder_prefix), parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": settings.lr if in_encoder else settings.head_lr,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (in_encoder, decays), parameters in groups.items()
        ],
        fused=True,
    )


def predict(model: nn.Module, part: Tokenised, rank: int, world: int, dtype: torch.dtype, pad_id: int) -> np.ndarray:
    """Logits (n, classes) float32 of all rows, computed in shares and exchanged: every worker gets the same."""
    device = next(model.parameters()).device
    model.eval()
    rows, found = [], []
    with torch.inference_mode(), hardware.autocast(device, dtype):
        for batch in batches_by_tokens(part.tokens.lengths, EVAL_TOKENS)[rank::world]:
            rows.append(batch)
            found.append(model(*hardware.put(device, *pad(part.tokens, batch, pad_id))).float().cpu().numpy())
    shares = [(rows, found)]
    if world > 1:
        shares = [None] * world  # type: ignore[list-item]
        torch.distributed.all_gather_object(shares, (rows, found))
    rows, found = [r for share in shares for r in share[0]], [f for share in shares for f in share[1]]
    logits = np.empty((len(part), found[0].shape[1]), np.float32)
    logits[np.concatenate(rows)] = np.concatenate(found)
    return logits
