"""Train a classifier: prepare the data, run the loop on Ray Train's workers, then calibrate and write the bundle."""

import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
import safetensors.torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sentiment_core.config import command_line, defaults_of
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import count_labels, label_shares
from sentiment_core.inference.int8 import LabelledTokens, prepare_int8
from sentiment_core.model import bundle, classifier, encoder, guarantee, layer_cut
from sentiment_core.model.distillation_record import Distillation
from sentiment_core.model.objective import MultiLabel, Objective, SingleLabel
from sentiment_core.model.records import (
    EncoderOrigin,
    EpochRecord,
    EvaluationRows,
    GuaranteeGrid,
    TrainingRecord,
    TrainingRows,
)
from sentiment_core.runtime import cluster, preflight, storage
from sentiment_core.text.preprocessing import Preprocessing
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.text.tokenizer import Tokenizer
from sentiment_core.training import checkpoint, tracking, vocabulary
from sentiment_core.training.checkpoint import LOGITS
from sentiment_core.training.data import deal_folds, read_parts, tokenize_part
from sentiment_core.training.diagnostics import find_warnings, reference_statistics, worst_mistakes
from sentiment_core.training.encoder_check import check_cluster, check_encoder
from sentiment_core.training.monitor import start_monitor
from sentiment_core.training.ray_workers import run_workers
from sentiment_core.training.recipe import Recipe
from sentiment_core.training.resume import ResumableRun
from sentiment_core.training.settings import TrainSettings
from sentiment_core.training.task import TokenizedPart, TrainingTask, count_folds
from sentiment_core.training.unseen import find_unseen

SHOWN_EPOCHS = 20  # at most, in the terminal


@dataclass(frozen=True)
class TrainResult:
    """A finished training: the bundle's path, what it says of itself, and a record for each epoch."""

    place: str
    info: bundle.BundleInfo
    log: list[EpochRecord]

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics on the evaluation rows, after calibration."""
        return self.info.metrics.to_json()

    @property
    def warnings(self) -> list[str]:
        """Sentences to read before the model is trusted."""
        diverged = f"epoch {len(self.log) + 1} diverged; the best one before it is kept. Lower --lr or --head-lr."
        dropped = {  # by path: without --eval-data both parts have the same
            f"{number:,} rows of {origin.place} dropped: {reason.replace('_', ' ')}": None
            for origin in (self.info.training.data, self.info.training.eval_data)
            for reason, number in origin.dropped.to_json().items()
            if number
        }
        remarks = dict.fromkeys([*self.info.training.data.remarks, *self.info.training.eval_data.remarks])
        return [*([diverged] if self.log[-1].diverged_after else []), *dropped, *remarks, *find_warnings(self.info)]

    def summary(self) -> str:
        """Return a few lines for the terminal."""
        names = "  ".join(f"{name:>8}" for name in self.log[0].eval.shown)
        lines = [f"epoch  train loss  eval loss  {names}  rows/s"]
        folds, shown_every = self.info.training.eval_data.folds, -(-len(self.log) // SHOWN_EPOCHS)
        for record in self.log:
            if (len(self.log) - record.epoch) % shown_every and record.epoch != self.info.training.best_epoch:
                continue
            best = "  best" if record.epoch == self.info.training.best_epoch else ""
            shown = "  ".join(f"{value:8.4f}" for value in record.eval.shown.values())
            lines.append(
                f"{record.epoch:5}  {np.mean(record.losses):10.4f}  {record.eval.loss:9.4f}  {shown}  "
                f"{record.rows / record.seconds:6.1f}{best}"
            )
        fitted, scores = self.info.calibration, self.info.metrics
        first, second, *_ = (f"{name} {value:.4f}" for name, value in scores.named_numbers.items())
        lines += [
            f"{first}, {second} on {scores.n:,} {'rows by cross-validation' if folds else 'held-out rows'}",
            *self.warnings,
            f"calibration error {fitted.ece_before:.4f} -> {fitted.ece_after:.4f} ({fitted.parameters})",
            f"bundle: {self.place} ({self.info.training.seconds:.0f} s, {self.info.training.dtype} on "
            f"{self.info.training.device})",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class PreparedTraining:
    """All that a training needs, checked and tokenized, before a cluster is asked for."""

    settings: TrainSettings
    recipe: Recipe
    path: str  # of the new bundle
    run: ResumableRun
    encoder: encoder.Encoder  # whose folder may be gone
    encoder_files: dict[str, bytes]
    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    unknown_id: int | None
    train_part: LabelledTexts
    train_tokens: TokenLists
    eval_part: LabelledTexts
    eval_tokens: TokenLists
    folds: np.ndarray | None  # (training rows,) of cross-validation, by which the evaluation part is made
    unseen: np.ndarray  # (evaluation rows,) bool, with texts that no model of this training has seen

    @property
    def labels(self) -> list[str]:
        """The labels, in the order of the logits."""
        return self.train_part.label_names

    @property
    def label_counts(self) -> np.ndarray:
        """Training rows that have each label, (classes,) int; of a teacher's probabilities the labels it decides."""
        return count_labels(self.train_part.labels, len(self.labels))

    @property
    def objective(self) -> Objective:
        """The objective of the training."""
        return choose_objective(self.settings, self.train_part)

    @property
    def chosen_settings(self) -> dict[str, Any]:
        """The settings with what the recipe chose."""
        return asdict(self.settings) | asdict(self.recipe)

    @functools.cached_property  # hashes all texts and weights
    def request(self) -> dict[str, Any]:
        """Return what decides the result: a resumed run must have the same."""
        return self.chosen_settings | {
            "checkpoint_format": checkpoint.FORMAT,
            "encoder_sha256": storage.hash_files(self.encoder_files),
            "data_sha256": self.train_part.fingerprint(),
            "eval_data_sha256": self.eval_part.fingerprint(),
        }


@dataclass(frozen=True)
class TrainedWeights:
    """Result of the workers.

    The best epoch's model, its logits on the evaluation rows, and the records of all epochs.
    """

    model: classifier.Classifier
    logits: np.ndarray  # (n, classes) float32
    log: list[EpochRecord]


def train(
    settings: TrainSettings,
    path: str | None = None,
    tracker: tracking.Tracker | None = None,
    parts: tuple[LabelledTexts, LabelledTexts | None] | None = None,
    trials: int = 1,
    distillation: Distillation = Distillation(),  # noqa: B008 (frozen)
) -> TrainResult:
    """Fine-tune, calibrate and write the bundle.

    Args:
        settings: What to do.
        path: Where the bundle goes for now, instead of `--out`.
        tracker: Gets the curves, besides TensorBoard and MLflow.
        parts: The rows to train and to evaluate on, if they are read already; as from `data.divide`.
        trials: Trainings of a search that are compared on the evaluation rows, this one among them.
        distillation: Who taught the rows, if a teacher did.

    Raises:
        UserError: The request cannot be carried out; nothing was started.
    """
    started = time.monotonic()
    prepared = prepare(settings, path or settings.out, parts)
    check_cluster(settings, prepared.path)
    with (
        prepared.run.open(prepared.request, defaults_of(settings)) as folder,
        tracking.log_curves(tracking.requested_trackers(prepared.chosen_settings, folder, tracker)) as track,
    ):
        weights = run(prepared, folder, track)
        return finish(prepared, weights, track, started, trials, distillation)


def prepare(
    settings: TrainSettings, path: str, parts: tuple[LabelledTexts, LabelledTexts | None] | None = None
) -> PreparedTraining:
    """Read, check and tokenize everything; start nothing. Raises `UserError`."""
    preflight.check_lasting(path)
    resumable = ResumableRun.of_training(path)
    bundle.check_free(path, resumable.has_checkpoint)
    start_from = encoder.fetch(settings.model)
    train_part, eval_part = parts or read_parts(settings)
    with layer_cut.cut_layers(start_from, settings.layers) as start_from:
        return _prepare_from(settings, path, resumable, start_from, train_part, eval_part)


def _prepare_from(
    settings: TrainSettings,
    path: str,
    resumable: ResumableRun,
    start_from: encoder.Encoder,
    train_part: LabelledTexts,
    eval_part: LabelledTexts | None,
) -> PreparedTraining:
    """Check an encoder for the rows, and tokenize these. Raises `UserError`."""
    objective = choose_objective(settings, train_part)
    names, evaluation_rows = train_part.label_names, len(eval_part) if eval_part else None
    checked = check_encoder(settings, start_from, names, objective, len(train_part), evaluation_rows)
    rules = Preprocessing(settings.max_length, settings.truncation, settings.clean)
    text_tokenizer = Tokenizer.from_transformers(checked.tokenizer, rules)
    train_part, train_tokens = tokenize_part(train_part, text_tokenizer)
    folds = None
    if eval_part is not None:
        eval_part, eval_tokens = tokenize_part(eval_part, text_tokenizer)
    else:
        folds, train_part, eval_part, eval_tokens = deal_folds(train_part, train_tokens, settings.seed)
    eval_part, unseen = find_unseen(start_from, train_part if folds is None else None, eval_part)
    files = storage.read_folder(start_from.folder, encoder.WANTED)
    # three checkpoints, one of them being written, of weights, their average and the optimizer's two numbers for each
    preflight.check_space(path, 12 * sum(map(len, files.values())))
    return PreparedTraining(
        settings=settings,
        recipe=checked.recipe,
        path=path,
        run=resumable,
        encoder=start_from,
        encoder_files=files,
        model_config=checked.model_config,
        tokenizer=checked.tokenizer,
        unknown_id=text_tokenizer.unknown_id,
        train_part=train_part,
        train_tokens=train_tokens,
        eval_part=eval_part,
        eval_tokens=eval_tokens,
        folds=folds,
        unseen=unseen,
    )


def choose_objective(settings: TrainSettings, data: LabelledTexts) -> Objective:
    """Return what a model of this data is trained for: several labels a row where the data has lists of them."""
    return MultiLabel() if data.several else SingleLabel(settings.ordinal)


def run(prepared: PreparedTraining, folder: str, track: Callable[[int, dict[str, float]], None]) -> TrainedWeights:
    """Train on the cluster's workers and load the best epoch's weights. Raises `UserError` if the training diverges."""
    settings, model_config = prepared.settings, prepared.model_config
    pad_id = prepared.tokenizer.pad_token_id or 0
    # up to the padding, the configuration's too, by whose number some families count positions
    keep = max(pad_id, getattr(model_config, "pad_token_id", None) or 0)
    token_ids = vocabulary.ids_in(keep, prepared.train_tokens, prepared.eval_tokens)
    parts = [
        TokenizedPart(vocabulary.remap(prepared.train_tokens, token_ids), prepared.train_part.targets),
        TokenizedPart(vocabulary.remap(prepared.eval_tokens, token_ids), prepared.eval_part.labels),
    ]
    task = TrainingTask(
        settings=settings,
        recipe=prepared.recipe,
        objective=prepared.objective,
        label_names=prepared.labels,
        label_counts=prepared.label_counts,
        model_config=model_config,
        pad_id=pad_id,
        token_ids=token_ids,
        threads=cluster.cpus_per_worker(settings.workers),
        encoder=ray.put(prepared.encoder_files),
        data=ray.put(parts),
        folds=prepared.folds,
        monitor=start_monitor(),
    )
    log, best = run_workers(folder, task, len(prepared.train_part), track)
    model = classifier.from_config(model_config, settings.head)
    with best.as_directory() as best_folder:
        safetensors.torch.load_model(model, os.path.join(best_folder, bundle.WEIGHTS))
        return TrainedWeights(model, np.load(os.path.join(best_folder, LOGITS)), log)


def finish(
    prepared: PreparedTraining,
    weights: TrainedWeights,
    track: Callable[[int, dict[str, float]], None],
    started: float,
    trials: int,
    distillation: Distillation,
) -> TrainResult:
    """Calibrate the weights, evaluate them, and write the bundle.

    Args:
        prepared: The training.
        weights: What the workers made.
        track: Gets the calibrated metrics.
        started: When the training began, by `time.monotonic()`.
        trials: As for `train`.
        distillation: As for `train`.
    """
    settings, labels, targets = prepared.settings, prepared.labels, prepared.eval_part.labels
    logits, log = weights.logits, weights.log
    objective = prepared.objective
    fitted = objective.fit_calibration(logits, prepared.eval_part.targets)
    objective.fold_calibration(classifier.last_layer(weights.model, len(labels)), fitted)
    probabilities = objective.activate(objective.calibrate(logits, fitted))
    objective = objective.fit_decision(probabilities, targets)
    scores = objective.evaluate(probabilities, targets, labels)
    track(
        sum(len(record.losses) for record in log),
        {"calibrated/ece": scores.ece, "calibrated/brier": scores.brier},
    )
    unseen = np.arange(len(targets) if prepared.folds is None else 0)
    evaluation = LabelledTokens(prepared.eval_tokens.take(unseen), targets[unseen])
    int8, int8_files = prepare_int8(
        weights.model, len(labels), settings.max_length, objective, evaluation, prepared.train_tokens
    )
    info = bundle.BundleInfo(
        head=settings.head,
        labels=labels,
        max_length=settings.max_length,
        truncation=settings.truncation,
        clean=settings.clean,
        **objective.settings,
        metrics=scores,
        calibration=fitted,
        training=_describe_training(prepared, log, started),
        reference=reference_statistics(objective, prepared.eval_tokens, probabilities, labels, prepared.unknown_id),
        int8=int8,
        guarantee=_make_grid(prepared, objective, probabilities, trials),
        distillation=distillation,
    )
    from sentiment_core.report import training_report  # matplotlib: seconds that workers, who import this file, save

    mistakes = worst_mistakes(objective, probabilities, prepared.eval_part)
    extra = training_report.make_files(
        info, log, command_line(settings.command, replace(settings, **asdict(prepared.recipe))), mistakes
    )
    extra[bundle.LOG] = "".join(json.dumps(record.to_json()) + "\n" for record in log).encode()
    extra |= int8_files
    bundle.write(prepared.path, weights.model, prepared.model_config, prepared.tokenizer, info, extra)
    return TrainResult(prepared.path, info, log)


def _make_grid(
    prepared: PreparedTraining, objective: Objective, probabilities: np.ndarray, trials: int
) -> GuaranteeGrid:
    """Return what the evaluation rows promise that the model was not trained on.

    Rows of samples promise nothing: they were not drawn evenly. Neither does cross-validation, whose answers are
    those of other models. All planned epochs count as compared, unless the last is taken anyway: how many of them early
    stopping left out depends on the same rows.
    """
    rows = np.flatnonzero(prepared.unseen)
    if prepared.eval_part.samples or prepared.folds is not None or not len(rows):
        return GuaranteeGrid()
    comparisons = trials * (1 if prepared.recipe.select_by == "last" else prepared.recipe.epochs)
    return guarantee.make_grid(objective, probabilities[rows], prepared.eval_part.labels[rows], comparisons)


def _describe_training(prepared: PreparedTraining, log: list[EpochRecord], started: float) -> TrainingRecord:
    """Return what the bundle says of its training."""
    request, train_part, eval_part = prepared.request, prepared.train_part, prepared.eval_part
    best = max(log, key=lambda record: record.selected_by)
    return TrainingRecord(
        settings=prepared.chosen_settings,
        encoder=EncoderOrigin(prepared.encoder.name, prepared.encoder.revision),
        data=TrainingRows(**vars(train_part.origin), train_rows=len(train_part), fingerprint=request["data_sha256"]),
        eval_data=EvaluationRows(
            **vars(eval_part.origin),
            eval_rows=len(eval_part),
            folds=count_folds(prepared.folds),
            fingerprint=request["eval_data_sha256"],
        ),
        label_shares=label_shares(train_part.labels, prepared.labels),
        best_epoch=best.epoch,
        epochs=len(log),
        device=best.device,
        dtype=best.dtype,
        rows_per_second=sum(record.rows for record in log) / sum(record.seconds for record in log),
        seconds=time.monotonic() - started,
    )
