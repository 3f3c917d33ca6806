"""Fine-tuning: reads and tokenises the data, has Ray Train run `train_loop` on the workers, then calibrates the best
epoch's weights and writes the bundle.

What a run leaves when it is killed lies beside the bundle's place; the same command goes on from there.
"""

import contextlib
import json
import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import ray
import ray.train
import ray.train.torch
import safetensors.torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from sentiment_core.config import REQUIRED, check, command_line, setting
from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import label_shares
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, calibration, classifier, encoder, metrics
from sentiment_core.runtime import cluster, connection, preflight, storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.runtime.progress import Monitor, Progress, repeat_every
from sentiment_core.text.preprocessing import Clean, Preprocessing, Truncation
from sentiment_core.text.status import TRUNCATED
from sentiment_core.text.token_lists import TokenLists, length_histogram
from sentiment_core.text.tokenizer import Tokenizer
from sentiment_core.training import cpu, tracking
from sentiment_core.training.loop import LOGITS, SCORE, Task, Tokenised, renumbered, train_loop, used_ids

# in the folder of a run that is not done: what was asked for, and what Ray writes of its checkpoints
REQUEST, SNAPSHOT = "request.json", "checkpoint_manager_snapshot.json"
# on the outcome: they may change between two starts
OF_NO_EFFECT = ("out", "checkpoint_minutes", "max_failures", "tensorboard")
# read by Ray when training starts: a worker's report or error is seen at once, and CPUs or GPUs that another job holds
# are waited for this long (those the cluster has not at all are refused before); nobody asks what its watcher of
# preemptions sees
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

SHOWN_MISTAKES, SHOWN_CHARACTERS = 25, 400  # in the report
# labelled rows, and tokens of them, whose labels are compared with those of 8 bits: 1 in 200 shows, within a minute
INT8_ROWS, INT8_TOKENS = 10_000, 300_000


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
    ordinal: bool = setting(
        False, "the labels, in their order, are steps of a scale: report the mean absolute error too"
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
        0.1, "share of the training in which the learning rate climbs; it then falls to 0, both linearly"
    )
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm")
    layer_decay: float = setting(1.0, "learning rate of a layer as a share of that of the layer above it")
    label_smoothing: float = setting(0.0, "share of each label that is spread over all labels")
    adversarial: float = setting(
        0.0,
        "also train on embeddings moved by this much to where the loss is greater; 1 is a good value: more accurate, better calibrated, twice the time",
    )
    ema_decay: float = setting(
        0.0,
        "keep the moving average of the weights, of which each step leaves this share, such as 0.999; 0: keep the last",
    )
    data_pruning: float = setting(
        0.0,
        "after the first epoch, leave out this share of the rows whose loss is below the mean, each time others, for which the rest of them count more; 0.5 is a good value: as accurate in less time",
    )
    class_weights: Literal["none", "balanced"] = setting(
        "none", "balanced: rare labels count more, each label as much as any other"
    )
    focal_gamma: float = setting(0.0, "focal loss: the larger, the less a row counts that is already right; 2 is usual")
    max_length: int = setting(256, "tokens that the encoder is given at a time, special tokens included")
    truncation: Truncation = setting(  # noqa: RUF009
        "head",
        "of a longer text use the first tokens, the last, both (head_tail), or all in overlapping windows (window)",
    )
    clean: Clean = setting(  # noqa: RUF009
        "none", "markup: HTML tags and character references are replaced before a text is used"
    )
    select_by: Literal["accuracy", "macro_f1", "loss"] = setting(
        "accuracy", "what makes an epoch the best on the evaluation rows"
    )
    patience: int = setting(2, "epochs in a row without a better one after which training stops")
    workers: int = setting(1, "data-parallel workers: one GPU each where the cluster has GPUs, else CPUs")
    gradient_checkpointing: bool = setting(False, "take less memory and a third more time")
    checkpoint_minutes: float = setting(10.0, "time between two checkpoints within an epoch")
    max_failures: int = setting(10, "how often lost workers are replaced; the run goes on from its last checkpoint")
    tensorboard: str | None = setting(None, "folder for TensorBoard's files: curves to be looked at meanwhile", "DIR")
    seed: int = setting(0, "of the split, the order of rows, the head's first weights and dropout")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "workers", "patience", "max_length"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("lr", "head_lr", "max_grad_norm", "checkpoint_minutes"):
            check(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "a number above 0")
        for name in ("adversarial", "focal_gamma", "max_failures"):
            check(0 <= getattr(self, name) < float("inf"), name, getattr(self, name), "0 or more")
        for name in ("dropout", "classifier_dropout", "label_smoothing", "ema_decay", "data_pruning"):
            value = getattr(self, name)
            check(value is None or 0 <= value < 1, name, value, "a share from 0 to below 1")
        check(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "a share above 0, up to 1")
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
    log: list[dict]  # one record an epoch: losses of its steps, rows, seconds, evaluation

    def summary(self) -> str:
        """A few lines for the terminal."""
        lines = ["epoch  train loss  eval loss  accuracy  macro-F1  rows/s"]
        for r in self.log:
            best = "  best" if r["epoch"] == self.info.training["best_epoch"] else ""
            lines.append(
                f"{r['epoch']:5}  {np.mean(r['losses']):10.4f}  {r['eval']['loss']:9.4f}  {r['eval']['accuracy']:8.4f}  "
                f"{r['eval']['macro_f1']:8.4f}  {r['rows'] / r['seconds']:6.1f}{best}"
            )
        if self.log[-1].get("diverged_after"):
            lines.append(f"epoch {len(self.log) + 1} diverged; the best one before it is kept; lower --lr or --head-lr")
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
            *self.warnings(),
            f"calibration error {c['ece_before']:.4f} -> {c['ece_after']:.4f} at temperature {c['temperature']:.2f}",
            f"bundle: {self.place} ({self.info.training['seconds']:.0f} s, {self.info.training['dtype']} on "
            f"{self.info.training['device']})",
        ]
        return "\n".join(lines)

    def warnings(self) -> list[str]:
        """One, if the model is no better than always giving the label that most evaluation rows have."""
        metrics = self.info.metrics
        of_each = np.sum(metrics["confusion"], axis=1)
        share = of_each.max() / metrics["n"]
        if metrics["accuracy"] > share:
            return []
        return [
            f"no better than always giving {self.info.labels[of_each.argmax()]!r} ({share:.4f}): it has not learnt; "
            f"train longer or faster (--epochs {2 * self.info.training['epochs']}, --lr 1e-4 --head-lr 1e-3), or look at "
            "the labels"
        ]


def train(settings: TrainSettings, place: str | None = None, tracker: tracking.Tracker | None = None) -> Trained:
    """Fine-tune, calibrate, write the bundle. Raises `UserError` before any work if the request cannot be met.

    `place`: where the bundle goes for now, instead of `--out`. `tracker`: one more that follows the curves.
    """
    started = time.monotonic()
    place = place or settings.out
    preflight.check_lasting(place)
    bundle.check_free(place, has_checkpoint(unfinished_place("_training-", place)))
    start_from = encoder.fetch(settings.model)
    train_part, eval_part = read_parts(settings)
    labels = train_part.label_names
    try:
        model_config = classifier.make_config(start_from.folder, labels, settings.dropout)
        tokenizer = encoder.load_tokenizer(start_from.folder)
        classifier.check(model_config, settings.head, labels, settings.gradient_checkpointing)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--model {settings.model} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    encoder.check_max_length(start_from, tokenizer, model_config, settings.max_length)
    rules = Preprocessing(settings.max_length, settings.truncation, settings.clean)
    texts_to_tokens = Tokenizer.from_transformers(tokenizer, rules)
    train_part, train_tokens = tokenise(train_part, texts_to_tokens)
    eval_part, eval_tokens = tokenise(eval_part, texts_to_tokens)
    files = storage.read_folder(start_from.folder, encoder.WANTED)
    # three checkpoints, one of them being written, of weights, their average and the optimiser's two numbers for each
    preflight.check_space(place, 12 * sum(map(len, files.values())))

    connection.connect_for(settings.workers, storage.parent(place))
    pad_id = tokenizer.pad_token_id or 0
    # up to the padding, the configuration's too, by whose number some families count positions
    used = used_ids(max(pad_id, getattr(model_config, "pad_token_id", None) or 0), train_tokens, eval_tokens)
    request = asdict(settings) | {
        "encoder_sha256": storage.hash_files(files),
        "data_sha256": train_part.fingerprint(),
        "eval_data_sha256": eval_part.fingerprint(),
    }
    with (
        unfinished("_training-", place, request, has_checkpoint) as work,
        tracking.logging_to(tracking.wanted(asdict(settings), work, tracker)) as track,
    ):
        log, checkpoint = run_workers(
            settings,
            work,
            track,
            Task(
                settings,
                labels,
                model_config,
                pad_id,
                used,
                cluster.cpus_per_worker(settings.workers),
                ray.put(files),
                ray.put(
                    [
                        Tokenised(renumbered(train_tokens, used), train_part.labels),
                        Tokenised(renumbered(eval_tokens, used), eval_part.labels),
                    ]
                ),
                ray.remote(num_cpus=0)(Monitor).options(scheduling_strategy=cluster.pin_to_this_node()).remote(),
            ),
            rows=len(train_part),
        )
        model = classifier.from_config(model_config, settings.head)
        with checkpoint.as_directory() as folder:
            safetensors.torch.load_model(model, os.path.join(folder, bundle.WEIGHTS))
            logits = np.load(os.path.join(folder, LOGITS))
        temperature = calibration.fit_temperature(logits, eval_part.labels)
        calibration.fold_temperature(classifier.last_layer(model, len(labels)), temperature)
        before, after = metrics.softmax(logits), metrics.softmax(logits / temperature)
        final = metrics.evaluate(after, eval_part.labels, labels, settings.ordinal)
        steps = sum(len(record["losses"]) for record in log)
        track(steps, {f"calibrated/{name}": final[name] for name in ("ece", "brier")})
        best_epoch = max(log, key=lambda record: record["selected_by"])
        info = bundle.BundleInfo(
            head=settings.head,
            labels=labels,
            max_length=settings.max_length,
            truncation=settings.truncation,
            clean=settings.clean,
            ordinal=settings.ordinal,
            metrics=final,
            calibration={
                "method": "temperature scaling, folded into the last linear layer",
                "temperature": temperature,
                "rows": len(eval_part),
                "ece_before": metrics.expected_calibration_error(before, eval_part.labels),
                "ece_after": final["ece"],
                "ece_cross_fitted": metrics.expected_calibration_error(
                    calibration.cross_fit(logits, eval_part.labels), eval_part.labels
                ),
            },
            training={
                "settings": asdict(settings),
                "encoder": {"name": start_from.name, "revision": start_from.revision},
                "data": train_part.origin.to_json()
                | {"train_rows": len(train_part), "fingerprint": request["data_sha256"]},
                "eval_data": eval_part.origin.to_json()
                | {"eval_rows": len(eval_part), "fingerprint": request["eval_data_sha256"]},
                "label_shares": label_shares(train_part.labels, labels),
                "best_epoch": best_epoch["epoch"],
                "epochs": len(log),
                "device": best_epoch["device"],
                "dtype": best_epoch["dtype"],
                "rows_per_second": sum(record["rows"] for record in log) / sum(record["seconds"] for record in log),
                "seconds": time.monotonic() - started,
            },
            reference=reference_statistics(eval_tokens, after, labels, texts_to_tokens.unknown_id),
            int8=check_int8(model, len(labels), settings.max_length, eval_tokens, train_tokens),
        )
        # matplotlib, which the workers, who import this file, do without
        from sentiment_core.report import training_report

        extra = training_report.make_files(info, log, command_line("train", settings), worst_mistakes(after, eval_part))
        extra[bundle.LOG] = "".join(json.dumps(record) + "\n" for record in log).encode()
        bundle.write(place, model, model_config, tokenizer, info, extra)
    return Trained(place, info, log)


def read_parts(settings: TrainSettings) -> tuple[LabelledTexts, LabelledTexts]:
    """Training and evaluation part with the same labels. Raises `UserError`."""
    names = list(settings.label_names) or None
    data = labelled.read(settings.data, settings.text_column, settings.label_column, names)
    classes = np.unique(data.labels)
    if len(classes) < 2:
        raise UserError(
            f"column {settings.label_column!r} of {settings.data} has the one label "
            f"{data.label_names[classes[0]]!r}; expected two or more"
        )
    if not settings.eval_data:
        return labelled.split(data, settings.eval_fraction, settings.seed)
    numbered = data.origin.numbered
    held_out = labelled.read(
        settings.eval_data, settings.text_column, settings.label_column, data.label_names, numbered
    )
    if new := set(held_out.labels.tolist()) - set(classes.tolist()):
        raise UserError(
            f"--eval-data {settings.eval_data} has the label {data.label_names[min(new)]!r}, of which {settings.data} has "
            "no row; expected the labels that are trained on; remove those rows or add some to train on"
        )
    return data, held_out


def check_int8(model: classifier.Classifier, classes: int, max_length: int, *parts: TokenLists) -> dict:
    """On which share of how many rows 8 bits leave the label as it is, or the reason why that is not known. Takes as
    many rows as cost seconds, of the first part before the next."""
    from sentiment_core.inference.engine import Engine

    try:
        engines = [Engine(model.eval(), classes, max_length, backend=backend) for backend in ("openvino", "int8")]
    except Exception as error:  # a conversion may fail in many ways, and the training is done
        return {"reason": describe_error(error)}
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
        "predicted_shares": label_shares(probabilities.argmax(axis=1), labels),
        "confidence_histogram": np.histogram(confidence, bins=20, range=(0, 1))[0].tolist(),
        "length_histogram": length_histogram(tokens.lengths),
        "tokens": len(tokens.ids),
        "tokens_quantiles": {str(q): float(np.quantile(tokens.lengths, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        "unknown_token_share": 0.0 if unknown_id is None else float((tokens.ids == unknown_id).mean()),
    }


def worst_mistakes(probabilities: np.ndarray, part: LabelledTexts) -> list[dict]:
    """The rows that got a wrong label with the most confidence: label, predicted, confidence, text."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != part.labels)
    return [
        {
            "label": part.label_names[part.labels[row]],
            "predicted": part.label_names[predicted[row]],
            "confidence": float(confidence[row]),
            "text": textwrap.shorten(part.texts[row], SHOWN_CHARACTERS, placeholder=" ..."),
        }
        for row in wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN_MISTAKES]
    ]


def tokenise(part: LabelledTexts, tokenizer: Tokenizer) -> tuple[LabelledTexts, TokenLists]:
    """The rows' tokens; rows of which the tokenizer leaves nothing (control characters only) are dropped and counted."""
    tokens, status = tokenizer.encode(part.texts)
    keep = np.flatnonzero(tokens.lengths)
    if not len(keep):
        raise UserError(f"{part.origin.place} has no text the tokenizer makes anything of; expected labelled text")
    dropped = replace(part.origin.dropped, without_tokens=len(part) - len(keep))
    origin = replace(part.origin, dropped=dropped, truncated_rows=int((status == TRUNCATED).sum()))
    return replace(part.take(keep), origin=origin), tokens.take(keep)


def unfinished_place(kind: str, out: str) -> str:
    """Of what a run for the bundle `out` leaves until it is done."""
    return storage.join(storage.parent(out), kind + storage.absolute(out).rpartition("/")[2])


@contextlib.contextmanager
def unfinished(kind: str, out: str, request: dict, begun: Callable[[str], bool]) -> Iterator[str]:
    """The folder of a run until it is done, beside the bundle's place; its name begins with `kind`. Afterwards it is
    deleted, but for that of a run that broke off with what it had `begun` to go on with. Raises `UserError` if such a
    one asked for something else."""
    work = unfinished_place(kind, out)
    place = storage.join(work, REQUEST)
    request = json.loads(json.dumps(request))  # as it is read again
    if begun(work):
        try:
            before = json.loads(storage.read_file(place))
        except (OSError, ValueError):
            before = {}
        different = [name for name in request if before.get(name) != request[name] and name not in OF_NO_EFFECT]
        if different:
            told = ", ".join(f"{name} {request[name]!r}, then {before.get(name)!r}" for name in different)
            raise UserError(
                f"{work} holds an unfinished run for this --out that was asked for something else ({told}); ask "
                "for the same to go on with it, or delete that folder to begin anew"
            )
    else:
        storage.delete_folder(work)
        storage.write_file(place, json.dumps(request, indent=2).encode())
    try:
        yield work
    except BaseException:
        with contextlib.suppress(OSError, UserError):  # what happened is worth more than what the store says
            if not begun(work):
                storage.delete_folder(work)
        raise
    storage.delete_folder(work)


def has_checkpoint(work: str) -> bool:
    """Whether a training can go on from there. Raises `UserError` if what Ray left of it is damaged."""
    if not storage.exists(work) or not any(SNAPSHOT in stamp.path for stamp in storage.list_stamps(work)):
        return False
    try:
        json.loads(storage.read_file(storage.join(work, "run", SNAPSHOT)))
    except (OSError, ValueError):  # written in place: a run that died just then leaves half of it
        raise UserError(
            f"{work} holds an unfinished training for this --out that cannot be gone on with: its {SNAPSHOT} is "
            "damaged; delete that folder to begin anew"
        ) from None
    return True


def run_workers(
    settings: TrainSettings, work: str, track: Callable[[int, dict], None], task: Task, rows: int
) -> tuple[list[dict], Checkpoint]:
    """Run `train_loop` on all workers, anew where some are lost; the log of all epochs and the checkpoint of the best
    one. `track` is given the curves. Raises `UserError` where the settings lead nowhere."""
    use_gpu = cluster.device_kind() == "GPU"
    filesystem, path = storage.locate(work)
    on_interrupt = signal.getsignal(signal.SIGINT)
    lost = 0
    task_ref = ray.put(task)  # Ray's own processes, which look into the configuration, need not import what is in it
    try:
        with (
            Progress("train", rows * settings.epochs, "rows", cluster.describe_wait) as progress,
            following(task.monitor, progress, track),
        ):
            while True:
                trainer = ray.train.torch.TorchTrainer(
                    train_loop,  # type: ignore[arg-type]  # may return what it likes
                    train_loop_config={"task": task_ref},
                    scaling_config=ScalingConfig(
                        num_workers=settings.workers,
                        use_gpu=use_gpu,
                        resources_per_worker={"CPU": 1, "GPU": 1} if use_gpu else {"CPU": task.threads},
                    ),
                    run_config=RunConfig(  # type: ignore[call-arg]  # ray.train shows checkers the first version's class
                        name="run",  # the same each time: it goes on from the latest checkpoint there
                        storage_path=path,
                        storage_filesystem=filesystem,
                        failure_config=FailureConfig(  # type: ignore[call-arg]
                            max_failures=0, controller_failure_limit=0, max_preemption_failures=0
                        ),
                        checkpoint_config=CheckpointConfig(
                            num_to_keep=1, checkpoint_score_attribute=SCORE, checkpoint_score_order="max"
                        ),
                        logging_config=LoggingConfig(log_level="ERROR"),
                        worker_runtime_env={"env_vars": {} if use_gpu else cpu.environment()},
                    ),
                )
                try:
                    result = trainer.fit()
                    break
                except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
                    failure = first_failure(error)
                    lost += 1
                    if not is_loss(failure):
                        raise failure from error
                    if lost > settings.max_failures:
                        raise RuntimeError(f"workers were lost {lost} times, the last time by: {failure}") from error
                    progress.say(
                        f"train: a worker was lost ({describe_error(failure)[:200]}); going on from the last checkpoint"
                    )
    except SystemExit:  # Ray's answer to Ctrl-C, with exit code 0
        raise KeyboardInterrupt from None
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: nor has Ray set one then
            signal.signal(signal.SIGINT, on_interrupt)  # Ray leaves its own behind
    log = result.return_value  # type: ignore[attr-defined]
    if isinstance(log, UserError):
        storage.delete_folder(work)  # there is nothing in it to go on with
        raise log
    return log, result.get_best_checkpoint(SCORE, "max")  # type: ignore[return-value]


def first_failure(error: Exception) -> Exception:
    """Of all workers' exceptions the one that tells most: when one fails, the others lose their connection to it."""
    failures = getattr(error, "worker_failures", {}).values()
    return min(failures, key=lost_connection, default=getattr(error, "controller_failure", error))


def lost_connection(failure: Exception) -> bool:
    return any(word in str(failure).lower() for word in ("gloo", "nccl", "connection reset", "connection closed"))


def is_loss(failure: Exception) -> bool:
    """Whether a worker or its node went away, rather than that its code failed."""
    return type(failure).__module__.partition(".")[0] == "ray" or lost_connection(failure)


@contextlib.contextmanager
def following(monitor, progress: Progress, track: Callable[[int, dict], None]) -> Iterator[None]:
    """Passes on what the monitor is told, from a thread: `trainer.fit()` holds the driver until the end."""

    def pass_on() -> None:
        before, rows, curves = ray.get(monitor.take.remote())
        progress.resume_at(before)
        progress.set(rows)
        for step, values in curves:
            track(step, values)

    with repeat_every(0.5, pass_on):
        yield
    pass_on()
