"""Settings of `sentiment-core train`."""

from dataclasses import dataclass
from typing import Literal

from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.data.csv_settings import csv_encoding_setting, csv_separator_setting
from sentiment_core.data.labels import parse_mapping
from sentiment_core.data.readers import Columns
from sentiment_core.text.preprocessing import Clean, Truncation

SelectBy = Literal["accuracy", "macro_f1", "loss", "last"]


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training: data, model, optimization, and the path of the bundle."""

    data: str = setting(
        REQUIRED,
        "labelled text: Parquet, CSV or JSON Lines (file, folder, glob, URI), or a hub data set as owner/name[:config][:split]",
        "D",
        group="data",
    )
    model: str = setting(
        REQUIRED,
        "encoder to start from: a Hugging Face model folder, or a hub name such as distilbert-base-uncased",
        "NAME_OR_DIR",
        group="model",
    )
    out: str = setting(REQUIRED, "folder or URI of the new model bundle; must not exist yet", "BUNDLE", group="output")
    eval_data: str | None = setting(
        None,
        "labelled text to evaluate and calibrate on and to choose the best epoch; default: see --eval-fraction",
        "D",
        group="data",
    )
    eval_fraction: float | None = setting(
        None,
        "share of --data to hold out without --eval-data, each label in proportion; default: 0.1, but nothing of fewer "
        "than 300 rows, which are evaluated by cross-validation",
        group="data",
    )
    text_column: tuple[str, ...] = setting(
        ("text",),
        "column with the text, or several whose texts are joined; a field of a struct as review.text (default: text)",
        "A,B",
        group="data",
    )
    label_column: str = setting(
        "label",
        "column with the label, text or a whole number, or a list of them (several labels a row); or the key of folders "
        "named label=...",
        group="data",
    )
    label_separator: str | None = setting(
        None,
        "separator of the labels in a text that holds several; a row with the separator alone has none",
        group="data",
    )
    label_names: tuple[str, ...] = setting(
        (), "names of the labels 0, 1, ... of the data, such as negative,positive", "A,B", group="data"
    )
    label_map: tuple[str, ...] = setting(
        (), "labels of the data, and the names to train them by, such as pos=positive,neg=negative", "A=B", group="data"
    )
    min_label_rows: int = setting(
        1, "leave out the rows of a label that has fewer; default: keep all labels", "N", group="data"
    )
    csv_separator: str | None = csv_separator_setting()
    csv_encoding: str | None = csv_encoding_setting()
    ordinal: bool = setting(
        False, "the labels, in their order, are the steps of a scale: also report the mean absolute error", group="data"
    )
    head: Literal["standard", "mlp"] = setting(
        "standard", "standard: the encoder's own classification head; mlp: two layers on the first token", group="model"
    )
    layers: int | None = setting(
        None,
        "use so many of the encoder's layers, evenly spread, the last among them; default: all",
        "N",
        group="model",
    )
    dropout: float | None = setting(
        None, "dropout inside the encoder; default: see --recipe, mostly the encoder's own", "P", group="model"
    )
    classifier_dropout: float | None = setting(
        None, "dropout before the last layer; default: the encoder's own", "P", group="model"
    )
    recipe: Literal["auto", "none"] = setting(
        "auto",
        "auto: epochs, batch size, rates and what helps besides, by encoder, rows and labels; none: 3, 32, 2e-5 and 1e-4",
        group="optimization",
    )
    epochs: int | None = setting(
        None, "passes over the training rows, at most (see --patience); default: see --recipe", group="optimization"
    )
    batch_size: int | None = setting(
        None, "rows in a global batch, shared by all workers; default: see --recipe", group="optimization"
    )
    lr: float | None = setting(None, "peak learning rate of the encoder; default: see --recipe", group="optimization")
    head_lr: float | None = setting(None, "peak learning rate of the head; default: see --recipe", group="optimization")
    weight_decay: float = setting(0.01, "AdamW weight decay; biases and norms have none", group="optimization")
    warmup: float = setting(
        0.1,
        "share of the steps in which the learning rate rises linearly; afterwards it falls to 0",
        group="optimization",
    )
    max_grad_norm: float = setting(1.0, "clip gradients to this norm", group="optimization")
    layer_decay: float = setting(
        1.0, "learning rate of a layer as a share of that of the layer above it", group="optimization"
    )
    label_smoothing: float = setting(0.0, "share of each label that is spread over all labels", group="optimization")
    adversarial: float | None = setting(
        None,
        "FGM adversarial training: perturb embeddings by this L2 norm (0 = off, 1 works well, twice the time); "
        "default: see --recipe",
        group="optimization",
    )
    ema_decay: float | None = setting(
        None,
        "average the weights over steps with this decay, such as 0.999 (0 = off: keep the last); default: see --recipe",
        group="optimization",
    )
    data_pruning: float | None = setting(
        None,
        "InfoBatch: after epoch 1 skip this share of the rows with below-average loss and up-weight the rest (0.5 works "
        "well, 0 = off); default: see --recipe",
        group="optimization",
    )
    class_weights: Literal["none", "balanced"] = setting(
        "none", "balanced: weight rows so that each label counts as much as any other", group="optimization"
    )
    focal_gamma: float = setting(
        0.0, "focal loss: the larger, the less a row counts that is already right; 2 is usual", group="optimization"
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "number type of the products; auto: the fastest on the chip, as measured", group="optimization"
    )
    max_length: int = setting(
        256, "tokens that the encoder reads at a time, special tokens included", group="long texts"
    )
    truncation: Truncation = setting(  # noqa: RUF009
        "head",
        "of a longer text read the first tokens, the last, both (head_tail), or all in overlapping windows (window)",
        group="long texts",
    )
    clean: Clean = setting(  # noqa: RUF009
        "none", "markup: replace HTML tags and character references before a text is read", group="long texts"
    )
    select_by: SelectBy | None = setting(  # noqa: RUF009
        None,
        "metric on the evaluation rows that chooses the best epoch (of several labels a row accuracy means micro-F1), or "
        "last: train all epochs and take the last; default: see --recipe, accuracy unless these rows are few",
        group="optimization",
    )
    patience: int = setting(2, "early stopping: epochs in a row without a better one", group="optimization")
    workers: int = setting(1, "data-parallel workers: one GPU each where the cluster has GPUs, else CPUs")
    device: Literal["auto", "cpu", "gpu"] = setting("auto", "what to train on; auto: GPUs where the cluster has any")
    gradient_checkpointing: bool = setting(False, "use less memory and a third more time")
    checkpoint_minutes: float = setting(10.0, "time between two checkpoints, besides those at the end of an epoch")
    max_failures: int = setting(10, "how often lost workers are replaced; training resumes from the last checkpoint")
    tensorboard: str | None = setting(None, "folder for TensorBoard files, written while it trains", "DIR")
    seed: int = setting(0, "seed of the split, the order of rows, the new head's weights and dropout")

    @property
    def command(self) -> str:
        """The command that has these settings."""
        return "train"

    @property
    def columns(self) -> Columns:
        """The columns of labelled files to read."""
        return Columns(
            self.text_column,
            self.label_column,
            self.csv_separator,
            self.csv_encoding,
            label_separator=self.label_separator,
        )

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "workers", "patience", "max_length", "layers"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, value, "1 or more")
        for name in ("lr", "head_lr", "max_grad_norm", "checkpoint_minutes"):
            value = getattr(self, name)
            check(value is None or 0 < value < float("inf"), name, value, "a number above 0")
        for name in ("adversarial", "focal_gamma", "max_failures"):
            value = getattr(self, name)
            check(value is None or 0 <= value < float("inf"), name, value, "0 or more")
        for name in ("dropout", "classifier_dropout", "label_smoothing", "ema_decay", "data_pruning"):
            value = getattr(self, name)
            check(value is None or 0 <= value < 1, name, value, "a share from 0 to below 1")
        check(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "a share above 0, up to 1")
        check(0 <= self.warmup <= 1, "warmup", self.warmup, "a share from 0 to 1")
        is_share = self.eval_fraction is None or 0 < self.eval_fraction < 1
        check(is_share, "eval_fraction", self.eval_fraction, "a share between 0 and 1")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        check(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        names = self.label_names
        check(len(set(names)) == len(names), "label_names", ",".join(names), "different names")
        parse_mapping(self.label_map)
        _ = self.columns  # which checks them
        check(self.min_label_rows >= 1, "min_label_rows", self.min_label_rows, "1 or more")
        check(
            self.batch_size is None or self.batch_size >= self.workers,
            "batch_size",
            self.batch_size,
            f"at least one row for each of {self.workers} workers",
        )
