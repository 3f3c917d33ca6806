"""The training loop that Ray Train runs in every worker: plain PyTorch, data-parallel.

Each worker takes its share of the rows of every global batch, so the batches, and but for dropout the losses, are the
same whatever the number of workers. All that the rest of a run depends on is in its checkpoints: one that goes on from
there ends as if nothing had happened.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import safetensors.torch
import torch
import torch.distributed
from ray.train import Checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PretrainedConfig

from sentiment_core.errors import UserError
from sentiment_core.model import bundle, classifier, metrics
from sentiment_core.model.classifier import Classifier
from sentiment_core.runtime import connection, hardware, storage
from sentiment_core.text.batching import batches_by_length, batches_by_tokens, pad
from sentiment_core.text.token_lists import TokenLists
from sentiment_core.training import cpu

if TYPE_CHECKING:
    from sentiment_core.training.job import TrainSettings

STATE, LOGITS = "state-{}.pt", "eval_logits.npy"  # in a checkpoint: of each worker; beside the best epoch's weights
TELL_EVERY = 0.5  # seconds between two words to the driver
AGREE_EVERY = 10  # steps after which the workers agree whether it is time for a checkpoint
AVERAGE_EVERY = 10  # steps between two updates of the averaged weights, besides those at each epoch's end
SCORE = "score"  # by which Ray keeps the best checkpoint, besides the latest
NOT_BEST = -1e30  # the score of a checkpoint without an epoch that is the best so far
# Tokens computed at a time, padding included: on a CPU what its caches hold, on a GPU more than most fit; halved until
# the memory suffices.
TRAIN_TOKENS = {"cpu": 2048, "cuda": 131072}
LEAST_TOKENS = 512
EVAL_TOKENS = 8192  # of an evaluation batch: fits any GPU, and a CPU's caches do not mind


@dataclass(frozen=True)
class Tokenised:
    tokens: TokenLists
    labels: np.ndarray  # (n,) int64

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """What the driver hands to every worker."""

    settings: "TrainSettings"
    label_names: list[str]
    model_config: PretrainedConfig
    pad_id: int
    used_ids: np.ndarray  # of the vocabulary: the tokens are numbered by their place in it
    threads: int  # on a CPU
    encoder: ray.ObjectRef  # the files of its folder
    data: ray.ObjectRef  # training and evaluation part, `Tokenised`
    monitor: Any  # the actor that is told how far the run is, and its curves


def train_loop(config: dict) -> list[dict] | UserError:
    """Train on this worker's share; returns the log of the epochs, or what was wrong with the settings. Leaves the best
    epoch's weights as a checkpoint."""
    return Fit(ray.get(config["task"])).run()


class Diverged(Exception):
    """The model gives no finite numbers any more."""


class Fit:
    """One worker's part of a training run."""

    def __init__(self, task: Task) -> None:
        connection.leave_background()
        self.task, self.settings = task, task.settings
        self.train_part, self.eval_part = ray.get(task.data)
        self.lengths = self.train_part.tokens.lengths
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.dtype = hardware.compute_dtype(self.device)
        if self.device.type == "cpu":
            torch.set_num_threads(task.threads)
        settings = self.settings
        torch.manual_seed(settings.seed)
        with storage.unpack_files(ray.get(task.encoder)) as folder:
            self.model = classifier.from_encoder(folder, task.model_config, settings.head)
        classifier.spare_other_tokens(self.model.eval(), self.model.encoder)
        if settings.classifier_dropout is not None:
            classifier.set_head_dropout(self.model, settings.classifier_dropout)
        if self.device.type == "cpu":
            cpu.prepare(self.model)
        if settings.gradient_checkpointing:
            self.model.pretrained.gradient_checkpointing_enable(  # type: ignore[operator]
                {"use_reentrant": False}
            )
        self.vocabulary = Vocabulary(self.model, task.used_ids)
        self.model.to(self.device)
        shares = np.bincount(self.train_part.labels, minlength=len(task.label_names)) / len(self.train_part)
        weights = 1 / (shares * np.count_nonzero(shares)) if settings.class_weights == "balanced" else shares**0
        self.class_weights = torch.tensor(weights, dtype=torch.float32, device=self.device)
        self.optimizer = make_optimizer(self.model, settings)
        self.average = Average(self.model, settings.ema_decay) if settings.ema_decay else None
        self.budget = fitting_budget(self._try, TRAIN_TOKENS[self.device.type], self.device)
        # not among several workers, who exchange gradients within their backward pass, nor where what is computed anew
        # would be dropped anew
        alone = self.world == 1 and not settings.gradient_checkpointing
        self.streams: cpu.Streams | None = None
        if self.device.type == "cpu" and task.threads > 1 and alone and cpu.is_plain(self.model):
            self.streams = cpu.Streams(self.model, self.dtype, task.threads)
        self.wrapped: nn.Module = self.model
        if self.world > 1:
            self.wrapped = DistributedDataParallel(self.model, find_unused_parameters=self.some_unused)
        torch.manual_seed(settings.seed + self.rank)  # from here on for dropout: each worker its own
        self.epoch, self.step = 1, 0  # that comes next; steps are counted from 0 in each epoch
        self.pruning = Pruning(len(self.train_part), settings, self.device)
        self.losses = torch.zeros(self.steps, device=self.device)  # of this epoch; this worker's shares
        self.seconds = 0.0  # that this epoch has taken
        self.log: list[dict] = []
        self.told, self.told_step = 0.0, 0  # when the driver last heard of progress, and up to which step of the epoch
        self.saved = time.monotonic()

    def run(self) -> list[dict] | UserError:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint:
            self._restore(checkpoint)
        if self.rank == 0:
            self._tell({})
        try:
            while self.epoch <= self.settings.epochs and self._since_best() < self.settings.patience:
                self._train_epoch()
                self._end_epoch()
        except Diverged:  # which all workers find at the same moment
            if not self.log:
                return UserError("the training diverged: its logits are not finite; lower --lr or --head-lr")
            self.log[-1]["diverged_after"] = True
        return self.log

    def _train_epoch(self) -> None:
        self.wrapped.train()
        order = np.random.default_rng([self.settings.seed, self.epoch])
        kept = self.pruning.kept
        batches = batches_by_length(self.lengths[kept], self.settings.batch_size, order)
        for batch in batches[self.step :]:
            started = time.monotonic()
            self.losses[self.step] = self._train_step(kept[batch])
            self.step += 1
            self.seconds += time.monotonic() - started
            self._tell_progress()
            if self.step < self.steps and self.step % AGREE_EVERY == 0 and self._time_to_save():
                self._save(NOT_BEST)

    def _train_step(self, rows: np.ndarray) -> torch.Tensor:
        """One optimiser step on a global batch; returns this worker's share of its mean loss."""
        loss = self._backward(rows)
        if self.settings.adversarial:
            with perturbed(self.vocabulary.embedding, self.settings.adversarial):
                self._backward(rows)
        clip(self.optimizer, self.settings.max_grad_norm)
        rate = self._rate(self.step + 0.5)  # amid the step, or the first or the last would be lost
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average and ((self._steps_done + 1) % AVERAGE_EVERY == 0 or self.step + 1 == self.steps):
            self.average.update()
        return loss

    def _backward(self, rows: np.ndarray) -> torch.Tensor:
        """Add the gradients of the mean loss of a global batch, on all workers the same; returns this one's share of
        the loss."""
        # neighbours in a batch are of similar length, so every world-th row keeps the workers equally busy
        mine = rows[self.rank :: self.world]
        # a last batch smaller than the number of workers: take part in the exchange with weight 0
        weight = 1.0 / len(rows) if len(mine) else 0.0
        mine = mine if len(mine) else rows[:1]

        def loss(model: nn.Module, part: np.ndarray) -> torch.Tensor:
            return self.pruning.weigh(mine[part], self._losses(model, mine[part])).sum() * weight

        budget = self.budget
        if self.device.type == "cpu":
            longest = min(int(self.lengths[mine].max()), self.settings.max_length)
            budget = cpu.budget(budget, self.task.model_config, longest)
        if self.streams:
            parts = self.streams.parts(self.lengths[mine], budget)
            return self.streams.backward(loss, parts)
        parts = batches_by_tokens(self.lengths[mine], budget)
        shares = []
        for i, part in enumerate(parts):
            alone = self.world > 1 and i < len(parts) - 1  # the last part brings the workers' gradients together
            with self.wrapped.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
                share = loss(self.wrapped, part)
                # DDP averages gradients over the workers; the sum over all rows is wanted
                (share * self.world).backward()
            shares.append(share.detach())
        return torch.stack(shares).sum()

    def _losses(self, model: nn.Module, rows: np.ndarray) -> torch.Tensor:
        """(rows,) the loss of each."""
        labels = torch.from_numpy(self.train_part.labels[rows]).to(self.device)
        with hardware.autocast(self.device, self.dtype):
            logits = self._logits(model, self.train_part.tokens, rows)
        settings = self.settings
        each = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=settings.label_smoothing)
        if settings.focal_gamma:
            right = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
            each = each * (1 - right).clamp(min=1e-6) ** settings.focal_gamma
        return each * self.class_weights[labels]

    def _logits(self, model: nn.Module, tokens: TokenLists, rows: np.ndarray) -> torch.Tensor:
        """(rows, classes) float32; those of a text in several pieces are averaged."""
        pieces, first = tokens.take(rows).windows(self.settings.max_length)
        found = model(*hardware.to_device(self.device, *pad(pieces, np.arange(len(pieces)), self.task.pad_id))).float()
        if len(pieces) == len(rows):
            return found
        counts = np.diff(np.append(first, len(pieces)))
        of, divisor = hardware.to_device(self.device, np.repeat(np.arange(len(rows)), counts), counts[:, None])
        return found.new_zeros(len(rows), found.shape[1]).index_add(0, of, found) / divisor

    def _try(self, budget: int) -> None:
        """Forward and backward of the longest rows, beside as much memory as the optimiser will take."""
        reserve = [torch.empty_like(p) for p in self.model.parameters() for _ in range(4)]
        rows = batches_by_tokens(self.lengths, budget)[0][: self.settings.batch_size]
        self._losses(self.model.train(), rows).sum().backward()
        # some heads leave the encoder's pooler without a gradient
        self.some_unused = any(p.grad is None for p in self.model.parameters())
        self.optimizer.zero_grad(set_to_none=True)
        del reserve

    def _end_epoch(self) -> None:
        losses = self.losses.clone()
        if self.world > 1:
            torch.distributed.all_reduce(losses)
        with self.average.in_place() if self.average else contextlib.nullcontext():
            logits = self._predict()
            if not np.isfinite(logits).all():
                raise Diverged
            scores = metrics.evaluate(metrics.softmax(logits), self.eval_part.labels, self.task.label_names)
            scores["loss"] = metrics.cross_entropy(logits, self.eval_part.labels)
            by = self.settings.select_by
            self.log.append(
                {
                    "epoch": self.epoch,
                    "losses": losses.tolist(),
                    "seconds": self.seconds,
                    "rows": len(self.pruning.kept),
                    "eval": {name: scores[name] for name in ("loss", "accuracy", "macro_f1", "ece")},
                    "selected_by": -scores["loss"] if by == "loss" else scores[by],
                    "device": hardware.device_name(self.device),
                    "dtype": hardware.dtype_name(self.dtype),
                }
            )
            if self.rank == 0:
                found = {f"eval/{name}": value for name, value in self.log[-1]["eval"].items()}
                self._tell(found | {"epoch": self.epoch})
            best = self._since_best() == 0
            weights = self.vocabulary.whole_state(self.model) if best and self.rank == 0 else {}
        self.epoch, self.step, self.told_step, self.seconds = self.epoch + 1, 0, 0, 0.0
        self.pruning.choose(self.epoch)
        self.losses = torch.zeros(self.steps, device=self.device)
        self._save(self.log[-1]["selected_by"] if best else NOT_BEST, (weights, logits) if best else None)

    def _since_best(self) -> int:
        """Epochs since the best one; of equal ones the first is the best."""
        values = [record["selected_by"] for record in self.log]
        return len(values) - 1 - int(np.argmax(values)) if values else 0

    def _predict(self) -> np.ndarray:
        """Logits (n, classes) float32 of the evaluation part, computed in shares and exchanged: every worker gets the
        same."""
        self.model.eval()
        rows, found = [], []
        with torch.inference_mode(), hardware.autocast(self.device, self.dtype):
            for batch in batches_by_tokens(self.eval_part.tokens.lengths, EVAL_TOKENS)[self.rank :: self.world]:
                rows.append(batch)
                found.append(self._logits(self.model, self.eval_part.tokens, batch).cpu().numpy())
        shares = [(rows, found)]
        if self.world > 1:
            shares = [None] * self.world  # type: ignore[list-item]
            torch.distributed.all_gather_object(shares, (rows, found))
        rows, found = [r for share in shares for r in share[0]], [f for share in shares for f in share[1]]
        logits = np.empty((len(self.eval_part), len(self.task.label_names)), np.float32)
        logits[np.concatenate(rows)] = np.concatenate(found)
        return logits

    @property
    def steps(self) -> int:
        """Of this epoch."""
        return -(-len(self.pruning.kept) // self.settings.batch_size)

    @property
    def _steps_done(self) -> int:
        return sum(len(record["losses"]) for record in self.log[: self.epoch - 1]) + self.step

    def _epochs_done(self, step: float) -> float:
        """When so many steps of this epoch are."""
        return self.epoch - 1 + step / self.steps

    def _rate(self, step: float) -> float:
        """The learning rate when so many steps of this epoch are done, as a share of its peak: climbs and falls
        linearly."""
        done, warmup = self._epochs_done(step) / self.settings.epochs, self.settings.warmup
        if done < warmup:
            return done / warmup
        return (1 - done) / (1 - warmup) if done < 1 else 0.0

    def _tell_progress(self) -> None:
        if self.rank == 0 and (time.monotonic() - self.told > TELL_EVERY or self.step == self.steps):
            loss = self.world * float(self.losses[self.told_step : self.step].mean())  # about: its own shares
            lr = self.settings.lr * self._rate(self.step)
            self._tell({"train/loss": loss, "train/learning_rate": lr})
            self.told, self.told_step = time.monotonic(), self.step

    def _tell(self, values: dict[str, float]) -> None:
        rows = round(self._epochs_done(self.step) * len(self.train_part))
        self.task.monitor.put.remote(rows, self._steps_done, values)

    def _time_to_save(self) -> bool:
        """Whether the first worker finds it is time; all take part."""
        due = torch.tensor(time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes, device=self.device)
        if self.world > 1:
            torch.distributed.broadcast(due, 0)
        return bool(due)

    def _save(self, score: float, best: tuple[dict, np.ndarray] | None = None) -> None:
        """Leave a checkpoint: what this worker goes on with and, of the best epoch so far, weights and logits."""
        state = {
            "model": self.model.state_dict() if self.rank == 0 else None,  # all workers have the same
            "optimizer": self.optimizer.state_dict() if self.rank == 0 else None,
            "average": self.average.state() if self.average and self.rank == 0 else None,
            "pruning": self.pruning.state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "at": [self.epoch, self.step, self.seconds],
            "losses": self.losses,
            "budget": self.budget,
            "log": self.log,
        }
        with tempfile.TemporaryDirectory(prefix="sentiment-core-") as folder:
            torch.save(state, os.path.join(folder, STATE.format(self.rank)))
            if best and self.rank == 0:
                safetensors.torch.save_file(best[0], os.path.join(folder, bundle.WEIGHTS))
                np.save(os.path.join(folder, LOGITS), best[1])
            ray.train.report({SCORE: score}, checkpoint=Checkpoint.from_directory(folder))
        self.saved = time.monotonic()

    def _restore(self, checkpoint: Checkpoint) -> None:
        with checkpoint.as_directory() as folder:

            def load(rank: int) -> dict:
                return torch.load(os.path.join(folder, STATE.format(rank)), map_location="cpu", weights_only=True)

            own, shared = load(self.rank), load(0)
        self.model.load_state_dict(shared["model"])
        self.optimizer.load_state_dict(shared["optimizer"])
        if self.average:
            self.average.restore(shared["average"])
        self.pruning.restore(own["pruning"])
        torch.set_rng_state(own["random"])
        if own["random_cuda"] is not None:
            torch.cuda.set_rng_state(own["random_cuda"], self.device)
        self.epoch, self.step, self.seconds = own["at"]
        self.told_step = self.step
        self.budget = own["budget"]  # other parts would draw other dropout
        self.losses, self.log = own["losses"].to(self.device), own["log"]


def fitting_budget(attempt: Callable[[int], None], tokens: int, device: torch.device) -> int:
    """The most tokens, `tokens` or that halved, for which `attempt` does not run out of memory; on all workers the
    same."""
    while True:
        try:
            attempt(tokens)
            break
        except torch.OutOfMemoryError:
            if tokens <= LEAST_TOKENS:
                raise
        torch.cuda.empty_cache()
        tokens //= 2
    if torch.distributed.is_initialized():
        found = torch.tensor(tokens, device=device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
        tokens = int(found)
    return tokens


def make_optimizer(model: Classifier, settings: "TrainSettings") -> torch.optim.AdamW:
    """AdamW with the head's own rate, the encoder's decaying from its last layer to its first (`initial_lr` is the
    peak), and no weight decay on biases and norms, the parameters of one dimension."""
    depth = classifier.depths(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        in_encoder = name.startswith(model.encoder_prefix)
        lr = settings.lr * settings.layer_decay ** depth[name] if in_encoder else settings.head_lr
        groups.setdefault((lr, settings.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": some, "lr": lr, "initial_lr": lr, "weight_decay": decay} for (lr, decay), some in groups.items()],
        fused=True,
    )


def clip(optimizer: torch.optim.AdamW, norm: float) -> None:
    """As `nn.utils.clip_grad_norm_`, but the fused optimiser's next step divides where it reads the gradients anyway:
    it takes this number from torch's GradScaler, which multiplies losses."""
    found = nn.utils.get_total_norm(
        [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    )
    optimizer.grad_scale = (found / norm).clamp(min=1)  # type: ignore[attr-defined]


class Pruning:
    """Which rows an epoch trains on: all in the first, and then, of those whose loss was last below the mean, all but a
    share taken at random each time, for which the others of them count more, so that the gradient is the same in the
    mean (Qin et al. 2024, InfoBatch, https://arxiv.org/abs/2303.04947). An epoch has fewer steps so."""

    def __init__(self, rows: int, settings: "TrainSettings", device: torch.device) -> None:
        self.share, self.seed, self.device = settings.data_pruning, settings.seed, device
        # when a row was last trained on; 0: not in this epoch yet, or by another worker
        self.losses = torch.zeros(rows, device=device)
        self.restore([self.losses, torch.ones(rows)])

    def choose(self, epoch: int) -> None:
        """The rows of this epoch; on all workers the same."""
        if not self.share:
            return
        exchanging = torch.distributed.is_initialized()
        if exchanging:
            torch.distributed.all_reduce(self.losses, torch.distributed.ReduceOp.MAX)
        mean = self.losses.mean()
        if exchanging:  # chips of another kind may add up in another order
            torch.distributed.broadcast(mean, 0)
        learned = (self.losses < mean).cpu().numpy()
        left_out = learned & (np.random.default_rng([self.seed, epoch, 1]).random(len(learned)) < self.share)
        weights = np.where(left_out, 0.0, np.where(learned, 1 / (1 - self.share), 1.0))
        self.restore([self.losses, torch.from_numpy(weights / weights[~left_out].mean()).float()])
        self.losses[torch.from_numpy(self.kept)] = 0

    def weigh(self, rows: np.ndarray, losses: torch.Tensor) -> torch.Tensor:
        """The rows' losses, (rows,), times what each counts."""
        if not self.share:
            return losses
        (where,) = hardware.to_device(self.device, rows)
        self.losses[where] = losses.detach()
        return losses * self.weights[where]

    def state(self) -> list:
        return [self.losses, self.weights]

    def restore(self, state: list) -> None:
        self.losses, self.weights = (tensor.to(self.device) for tensor in state)
        self.kept = np.flatnonzero(state[1].cpu().numpy())


class Average:
    """Exponential moving average of the weights (Polyak averaging), which often does better than the last ones."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = decay**AVERAGE_EVERY
        self.updates = 0

    def update(self) -> None:
        """The first updates forget faster, or the weights of the beginning would stay for long."""
        self.updates += 1
        decay = min(self.decay, self.updates / (10 + self.updates))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights meanwhile."""
        kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
            try:
                yield
            finally:
                torch._foreach_copy_(self.parameters, kept)

    def state(self) -> list:
        return [self.updates, self.average]

    def restore(self, state: list) -> None:
        self.updates, average = state
        with torch.no_grad():
            torch._foreach_copy_(self.average, average)


def used_ids(keep: int, *parts: TokenLists) -> np.ndarray:
    """The token ids that the data has, in order, and all up to `keep`."""
    seen = np.zeros(max(keep, *(int(part.ids.max()) for part in parts)) + 1, bool)
    seen[: keep + 1] = True
    for part in parts:
        seen[part.ids] = True
    return np.flatnonzero(seen)


def renumbered(tokens: TokenLists, used: np.ndarray) -> TokenLists:
    """The lists with the place of each id among those `used`."""
    number = np.zeros(used[-1] + 1, np.int32)
    number[used] = np.arange(len(used), dtype=np.int32)
    return TokenLists(number[tokens.ids], tokens.offsets)


class Vocabulary:
    """Of the embeddings only those of the `used` token ids are trained, which spares the optimiser most of a large
    vocabulary; no gradient would reach the others. The model is then given `renumbered` tokens."""

    def __init__(self, model: Classifier, used: np.ndarray) -> None:
        self.used = torch.tensor(used)
        module = model.encoder.get_input_embeddings()  # type: ignore[operator]
        self.whole = module.weight.detach().clone()
        self.embedding = module.weight = nn.Parameter(self.whole[self.used])
        module.num_embeddings = len(used)
        self.name = next(name for name, p in model.named_parameters() if p is self.embedding)

    def whole_state(self, model: Classifier) -> dict[str, torch.Tensor]:
        """The model's weights with all embeddings, on the CPU."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        whole = self.whole.clone()
        whole[self.used] = state[self.name]
        return state | {self.name: whole}


@contextlib.contextmanager
def perturbed(embedding: nn.Parameter, length: float) -> Iterator[None]:
    """The embeddings moved meanwhile by a step of this length up their gradient, to where the loss is greater (Miyato
    et al. 2017, Adversarial Training Methods for Semi-Supervised Text Classification)."""
    assert embedding.grad is not None
    kept = embedding.detach().clone()
    with torch.no_grad():
        embedding.add_(embedding.grad * (length / embedding.grad.norm().clamp(min=1e-12)))
    yield
    with torch.no_grad():
        embedding.copy_(kept)
