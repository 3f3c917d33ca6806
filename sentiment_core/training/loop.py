"""The training loop that Ray Train runs in every worker: plain PyTorch, data-parallel.

Each worker takes its share of the rows of every global batch, so the batches, and but for dropout the losses, are the
same whatever the number of workers. Everything that the rest of a run depends on is in its checkpoints: a resumed run
ends as if nothing had happened.

To add a training trick, write it in a file of its own and call it here: a term of the loss in `_row_losses`, a change
of the step in `_train_step`, a choice of rows in `_end_epoch`. A trick that keeps state has `state_dict` and
`load_state_dict`, and is named in `self.shared` or `self.own`. One that draws random numbers draws them before
`_add_gradients`, since `cpu.ShardedBackward` knows of no others than those of dropout. Its flag is in `settings.py`.
"""

import functools
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import nn

from sentiment_core.errors import UserError
from sentiment_core.inference import timing
from sentiment_core.model import classifier
from sentiment_core.model.classifier import Classifier
from sentiment_core.model.records import EpochRecord
from sentiment_core.runtime import connection, hardware, storage
from sentiment_core.text.batching import batches_by_length, batches_by_tokens
from sentiment_core.training import cpu
from sentiment_core.training.adversarial import perturb
from sentiment_core.training.checkpoint import (
    NOT_BEST,
    BestEpoch,
    RandomState,
    Stateful,
    load_checkpoint,
    save_checkpoint,
)
from sentiment_core.training.data_pruning import DataPruning
from sentiment_core.training.epochs import RunProgress
from sentiment_core.training.forward import Forward, can_expand_mask
from sentiment_core.training.gradients import Backward, DistributedBackward, PlainBackward
from sentiment_core.training.number_type import NumberType, choose_number_type
from sentiment_core.training.optimizer import (
    clip_at_next_step,
    learning_rate_share,
    make_optimizer,
    set_learning_rates,
)
from sentiment_core.training.task import TokenizedPart, TrainingTask
from sentiment_core.training.token_budget import TRAIN_TOKENS, TokenBudget, find_token_budget
from sentiment_core.training.vocabulary import TrimmedVocabulary
from sentiment_core.training.weight_averaging import WeightAverage

REPORT_EVERY_S = 0.5  # between two reports to the driver
DIVERGED = UserError("the training diverged: its logits are not finite. Lower --lr or --head-lr.")
AGREE_EVERY_STEPS = 10  # after which the workers agree whether it is time for a checkpoint


class Diverged(Exception):
    """The model gives no finite numbers any more."""


class TrainingLoop:
    """One worker's part of a training run."""

    def __init__(
        self,
        task: TrainingTask,
        train_part: TokenizedPart,
        eval_part: TokenizedPart,
        rows_before: int = 0,
        fold_logits: np.ndarray | None = None,
    ) -> None:
        """Prepare the run.

        Args:
            task: The training.
            train_part: Rows to train on.
            eval_part: Rows to evaluate on.
            rows_before: Training rows that cross-validation has gone through.
            fold_logits: (epochs, rows, classes) of the evaluation rows by cross-validation; None: by this model.
        """
        connection.leave_background()
        self.task, self.settings, self.recipe = task, task.settings, task.recipe
        self.objective = task.objective
        self.train_part, self.eval_part, self.rows_before = train_part, eval_part, rows_before
        self.lengths = self.train_part.tokens.lengths
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(task.threads)
        torch.manual_seed(self.settings.seed)
        self.model = load_model(task, self.device)
        self.vocabulary = TrimmedVocabulary(self.model, task.token_ids)
        self.model.to(self.device)
        balanced = self.settings.class_weights == "balanced"
        counts, rows = task.label_counts, len(self.train_part)
        weights = self.objective.balance(counts, rows) if balanced else np.ones(len(counts))
        if not balanced:  # or the head is to say yes to each label as often as no
            start_head(self.model, task, self.objective.initial_bias(counts, rows))
        self.class_weights = torch.tensor(weights, dtype=torch.float32, device=self.device)  # (classes,)
        self.number_type = NumberType(self._choose_number_type())
        self.forward = self._make_forward(self.number_type.dtype)
        self.optimizer = make_optimizer(self.model, self.settings, self.recipe)
        self.average = WeightAverage(self.model, self.recipe.ema_decay)
        self.pruning = DataPruning(len(self.train_part), self.recipe.data_pruning, self.settings.seed, self.device)
        tokens = find_token_budget(self._probe_memory, TRAIN_TOKENS[self.device.type], self.device)
        self.budget = TokenBudget(tokens)
        self.backward = self._choose_backward(self.number_type.dtype)
        torch.manual_seed(self.settings.seed + self.rank)  # from here on for dropout: each worker its own
        self.progress = RunProgress(self._count_steps(), self.device, fold_logits)
        # what is in a checkpoint: parts that are the same on all workers, and parts of each worker's own
        self.shared: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "average": self.average,
        }
        self.own: dict[str, Stateful] = {
            "pruning": self.pruning,
            "random": RandomState(self.device),
            "progress": self.progress,
            "number_type": self.number_type,
            "budget": self.budget,  # other parts of a batch would draw other dropout
        }
        self.unused_memory = cpu.UnusedMemory()
        self.reported_at, self.reported_step = 0.0, 0  # when, and up to which step of the epoch
        self.saved_at = time.monotonic()

    def run(self, checkpoint: ray.train.Checkpoint | None) -> list[EpochRecord] | UserError:
        """Train all epochs, from a checkpoint if there is one."""
        if checkpoint:
            load_checkpoint(checkpoint, self.rank, self.shared, self.own)
            self._go_on_in(self.number_type.dtype)
            self.reported_step = self.progress.step
        self._report({})
        log = self.progress.log
        try:
            while (
                self.progress.epoch <= self.recipe.epochs and self.progress.epochs_since_best < self.settings.patience
            ):
                self._train_epoch()
                self._end_epoch()
        except Diverged:  # which all workers find at the same moment
            if not log or self.recipe.select_by == "last":  # the weights of other epochs are not kept
                return DIVERGED
            log[-1] = replace(log[-1], diverged_after=True)
        return log

    def _train_epoch(self) -> None:
        self.model.train()
        progress, order = self.progress, np.random.default_rng([self.settings.seed, self.progress.epoch])
        rows = self.pruning.rows
        batches = batches_by_length(self.lengths[rows], self.recipe.batch_size, order)
        for batch in batches[progress.step :]:
            started = time.monotonic()
            progress.losses[progress.step] = self._train_step(rows[batch])
            progress.step += 1
            self.unused_memory.give_back()
            self._report_progress()  # waits for what a GPU still computes
            progress.seconds += time.monotonic() - started
            if progress.step < progress.steps and progress.step % AGREE_EVERY_STEPS == 0 and self._is_time_to_save():
                self._save(NOT_BEST)

    def _train_step(self, rows: np.ndarray) -> torch.Tensor:
        """Take one optimizer step on a global batch; return this worker's share of its mean loss."""
        loss = self._add_gradients(rows)
        if self.recipe.adversarial:
            with perturb(self.vocabulary.embedding, self.recipe.adversarial):
                self._add_gradients(rows)
        clip_at_next_step(self.optimizer, self.settings.max_grad_norm)
        # amid the step, or the first or the last would be lost
        set_learning_rates(self.optimizer, self._learning_rate_share(self.progress.step + 0.5))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.after_step(self.progress.steps_done + 1, self.progress.step + 1 == self.progress.steps)
        return loss

    def _add_gradients(self, rows: np.ndarray) -> torch.Tensor:
        """Add the gradients of the mean loss of a global batch, on all workers the same; return this worker's share."""
        # neighbors in a batch are of similar length, so every n-th row keeps n workers equally busy
        mine = rows[self.rank :: self.workers]
        # a last batch smaller than the number of workers: take part in the exchange with weight 0
        weight = 1.0 / len(rows) if len(mine) else 0.0
        mine = mine if len(mine) else rows[:1]

        def loss(model: nn.Module, part: np.ndarray) -> torch.Tensor:
            return self.pruning.weigh(mine[part], self._row_losses(model, mine[part])).sum() * weight

        tokens = self.budget.tokens
        if self.device.type == "cpu":
            longest = min(int(self.lengths[mine].max()), self.settings.max_length)
            tokens = cpu.limit_budget(tokens, self.task.model_config, longest)
        return self.backward.add_gradients(loss, self.lengths[mine], tokens)

    def _row_losses(self, model: nn.Module, rows: np.ndarray, forward: Forward | None = None) -> torch.Tensor:
        """Compute the loss of each row, (rows,); by this run's forward pass unless another is given."""
        (targets,) = hardware.to_device(self.device, self.train_part.labels[rows])
        logits = (forward or self.forward).logits(model, self.train_part.tokens, rows)
        settings = self.settings
        return self.objective.row_losses(
            logits, targets, self.class_weights, settings.label_smoothing, settings.focal_gamma
        )

    def _end_epoch(self) -> None:
        """Evaluate the epoch, record it, choose the next one's rows, and leave a checkpoint."""
        progress = self.progress
        losses = progress.losses.clone()
        if self.workers > 1:
            torch.distributed.all_reduce(losses)
        with self.average.in_place():
            logits = self._answer()
            if progress.fold_logits is not None:
                logits = progress.fold_logits[progress.epoch - 1]
            progress.log.append(self._evaluate(logits, losses.tolist()))
            record, best = progress.log[-1], None
            may_be_best = self.recipe.select_by != "last" or record.epoch == self.recipe.epochs
            if may_be_best and progress.epochs_since_best == 0:
                best = BestEpoch(self.vocabulary.restore(self.model) if self.rank == 0 else {}, logits)
        self._report({f"eval/{name}": value for name, value in asdict(record.eval).items()} | {"epoch": record.epoch})
        self._begin_epoch()
        if may_be_best or self._is_time_to_save():
            self._save(record.selected_by if best else NOT_BEST, best)

    def _answer(self) -> np.ndarray:
        """Return the logits of the evaluation rows, (rows, classes) float32. Raises `Diverged`."""
        classes = len(self.task.label_names)
        logits = self.forward.predict(self.model, self.eval_part.tokens, classes, self.rank, self.workers)
        if not np.isfinite(logits).all():
            raise Diverged
        return logits

    def _begin_epoch(self) -> None:
        self.pruning.choose(self.progress.epoch + 1)
        self.progress.begin_epoch(self._count_steps())
        self.reported_step = 0

    def _evaluate(self, logits: np.ndarray, losses: list[float]) -> EpochRecord:
        scores = self.objective.score_epoch(logits, self.eval_part.labels, self.task.label_names)
        select_by = self.recipe.select_by
        return EpochRecord(
            epoch=self.progress.epoch,
            losses=losses,
            seconds=self.progress.seconds,
            rows=len(self.pruning.rows),
            eval=scores,
            selected_by=self.progress.epoch if select_by == "last" else scores.value_of(select_by),
            device=hardware.device_name(self.device),
            dtype=hardware.dtype_name(self.forward.dtype),
        )

    def _make_forward(self, dtype: torch.dtype) -> Forward:
        expands_mask = self.device.type == "cuda" and can_expand_mask(self.model)
        return Forward(self.device, dtype, self.settings.max_length, self.task.pad_id, expands_mask)

    def _choose_number_type(self) -> torch.dtype:
        """Choose the number type by steps of the model's first layers on a batch of rows of middle length."""
        middle = len(self.lengths) // 2
        rows = np.argsort(self.lengths)[max(0, middle - self.recipe.batch_size // 2) :][: self.recipe.batch_size]

        @functools.cache  # most chips have one number type, and need no copy
        def cut() -> Classifier:
            return timing.cut_layers(self.model).train()

        @functools.cache
        def backward(dtype: torch.dtype) -> Backward:
            return self._own_backward(cut(), dtype)

        def step(dtype: torch.dtype) -> None:
            forward = self._make_forward(dtype)

            def loss(model: nn.Module, part: np.ndarray) -> torch.Tensor:
                return self._row_losses(model, rows[part], forward).mean()

            try:
                backward(dtype).add_gradients(loss, self.lengths[rows], TRAIN_TOKENS[self.device.type])
            finally:
                self.model.zero_grad(set_to_none=True)  # the copy shares its parameters

        config: Any = self.task.model_config
        shape = {
            "family": config.model_type,
            "hidden_size": getattr(config, "hidden_size", None),
            "tokens": timing.work_length(float(self.lengths[rows].mean()), self.settings.max_length),
            "batch_size": self.recipe.batch_size,
            "threads": self.task.threads,
        }
        return choose_number_type(self.device, self.settings.precision, step, shape)

    def _go_on_in(self, dtype: torch.dtype) -> None:
        """Compute in a checkpoint's number type, if this chip has it: a resumed run then ends as if it had not stopped."""
        if dtype != self.forward.dtype and dtype in hardware.number_types(self.device):
            self.forward, self.backward = self._make_forward(dtype), self._choose_backward(dtype)
        self.number_type.dtype = self.forward.dtype

    def _choose_backward(self, dtype: torch.dtype) -> Backward:
        """Choose how gradients are computed here."""
        if self.workers > 1:
            return DistributedBackward(self.model, self.workers, self._leaves_parameters_unused())
        return self._own_backward(self.model, dtype)

    def _own_backward(self, model: Classifier, dtype: torch.dtype) -> Backward:
        """Return how a single worker computes gradients."""
        # not with gradient checkpointing: the recomputed forward pass would draw another dropout
        sharded = self.device.type == "cpu" and self.task.threads > 1 and not self.settings.gradient_checkpointing
        if sharded and cpu.has_fast_attention(model):
            return cpu.ShardedBackward(model, dtype, self.task.threads)
        return PlainBackward(model)

    def _probe_memory(self, tokens: int) -> None:
        """Run forward and backward of a worker's longest rows, beside as much memory as the optimizer will take."""
        share = -(-self.recipe.batch_size // self.workers)
        reserve = [torch.empty_like(p) for p in self.model.parameters() for _ in range(4)]
        rows = batches_by_tokens(self.lengths, tokens)[0][:share]
        self._row_losses(self.model.train(), rows).sum().backward()
        self.optimizer.zero_grad(set_to_none=True)
        del reserve

    def _leaves_parameters_unused(self) -> bool:
        """Tell whether some parameters get no gradient: some heads leave the encoder's pooler without one."""
        self._row_losses(self.model.train(), np.arange(1)).sum().backward()
        unused = any(parameter.grad is None for parameter in self.model.parameters())
        self.optimizer.zero_grad(set_to_none=True)
        return unused

    def _count_steps(self) -> int:
        """Count the optimizer steps of an epoch on the rows that pruning has chosen."""
        return -(-len(self.pruning.rows) // self.recipe.batch_size)

    def _learning_rate_share(self, step: float) -> float:
        return learning_rate_share(self.progress.epochs_done(step) / self.recipe.epochs, self.settings.warmup)

    def _report_progress(self) -> None:
        """Report loss and learning rate now and then."""
        progress, now = self.progress, time.monotonic()
        if self.rank == 0 and (now - self.reported_at > REPORT_EVERY_S or progress.step == progress.steps):
            # about: of this worker's own shares
            loss = self.workers * float(progress.losses[self.reported_step : progress.step].mean())
            lr = self.recipe.lr * self._learning_rate_share(progress.step)
            self._report({"train/loss": loss, "train/learning_rate": lr})
            self.reported_at, self.reported_step = now, progress.step

    def _report(self, values: dict[str, float]) -> None:
        """Report to the driver's monitor, from the first worker."""
        if self.rank == 0:
            rows = self.rows_before + round(self.progress.epochs_done(self.progress.step) * len(self.train_part))
            self.task.monitor.put.remote(rows, self.progress.steps_done, values)

    def _is_time_to_save(self) -> bool:
        """Tell whether the first worker finds that a checkpoint is due; all workers take part."""
        due = time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes
        if self.workers == 1:
            return due
        answer = torch.tensor(due, device=self.device)
        torch.distributed.broadcast(answer, 0)
        return bool(answer)

    def _save(self, score: float, best: BestEpoch | None = None) -> None:
        save_checkpoint(self.rank, self.shared, self.own, score, best)
        self.saved_at = time.monotonic()


def load_model(task: TrainingTask, device: torch.device) -> classifier.Classifier:
    """Load the encoder with a new head, and prepare it for training on the device's kind. Stays on the CPU."""
    settings = task.settings
    with storage.unpack_files(ray.get(task.encoder)) as folder:
        model = classifier.from_encoder(folder, task.model_config, settings.head)
    classifier.compute_first_token_only(model.eval(), model.encoder)
    if settings.classifier_dropout is not None:
        classifier.set_head_dropout(model, settings.classifier_dropout)
    if device.type == "cpu":
        cpu.prepare(model)
    if settings.gradient_checkpointing:
        model.pretrained.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    return model


def start_head(model: classifier.Classifier, task: TrainingTask, bias: np.ndarray) -> None:
    """Set the bias of a new head's last layer; one that the encoder's folder holds stays as it is."""
    layer = classifier.last_layer(model, len(task.label_names))
    if layer.bias is not None and not layer.bias.any():
        with torch.no_grad():
            layer.bias.copy_(torch.from_numpy(bias))
