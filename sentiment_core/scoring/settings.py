"""Settings of `sentiment-core score`."""

from dataclasses import dataclass
from typing import Literal

from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.errors import UserError
from sentiment_core.model import guarantee
from sentiment_core.model.naming import Models
from sentiment_core.runtime.precision import Precision, precision_setting

TASK_MINUTES = 60.0  # that a task may take, which is seconds of work on most chips
MINUTES_PER_WEEK = 7 * 24 * 60


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Flags of `sentiment-core score`; those of `nightly` are these and more."""

    input: str = setting(
        REQUIRED,
        "Parquet to score: file, folder (nested, Hive-partitioned), glob or URI; or a table of Delta Lake or Iceberg",
        "P",
        group="data",
    )
    input_version: int | None = setting(
        None, "version of the table, or id of the snapshot; default: the current one", "N", group="data"
    )
    text_column: tuple[str, ...] = setting(
        (),
        "column with the text, or several to join; default: text, or the several columns of the model's training",
        "A,B",
        group="data",
    )
    keep: tuple[str, ...] | None = setting(
        None, "input columns to keep in the output; default: all but the text; '' keeps none", "A,B", group="data"
    )
    limit: int | None = setting(
        None,
        "score only the first N rows, into the folder OUT-limit-N, for a first look",
        "N",
        group="data",
    )
    model: Models = setting(  # noqa: RUF009
        REQUIRED,
        "bundle, folder of bundles or Hugging Face classifier: a folder, URI or hub name; several with names",
        "MODEL or A=MODEL,B=MODEL",
        group="model",
    )
    precision: Precision = precision_setting()  # noqa: RUF009
    int8: bool = setting(
        False,
        "compute in int8 on CPUs; refused if more than 0.5 % of the bundle's labels change",
        group="model",
    )
    out: str = setting(
        REQUIRED, "folder or URI for the scored Parquet; rerun the same command to resume", "DIR", group="output"
    )
    probabilities: bool = setting(False, "also write the probabilities of all labels", group="output")
    min_confidence: float = setting(
        0.0, "leave rows below this confidence without a label (status abstained)", "P", group="output"
    )
    target_accuracy: float | None = setting(
        None, "take the threshold with which the bundle promises this share of right labels", "P", group="output"
    )
    certainty: float = setting(
        guarantee.CERTAINTY, "certainty with which --target-accuracy is promised", "P", group="output"
    )
    prefix: str = setting(
        "", "begin the names of the scored columns with this, so that an input's own label can be kept", group="output"
    )
    prune: bool = setting(
        False,
        "delete outputs whose input file is gone; default: keep and count those whose rows are not found again",
        group="output",
    )
    reuse: bool = setting(
        True,
        "take scores of known texts from outputs of changed or gone files; --no-reuse leaves text_hash out",
        group="output",
    )
    workers: int | None = setting(
        None, "actors that hold the model; default: one for each GPU, or for each two CPUs", group="run"
    )
    device: Literal["auto", "cpu", "gpu"] = setting(
        "auto", "what the model runs on; auto: GPUs where the cluster has any", group="run"
    )
    task_minutes: float = setting(
        TASK_MINUTES, "stop and retry a task that takes longer; most take seconds", group="run"
    )
    dry_run: bool = setting(False, "only print what would be done", group="run")

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        names = self.text_column
        check(len(set(names)) == len(names), "text_column", ",".join(names), "different names")
        check(self.input_version is None or self.input_version >= 0, "input_version", self.input_version, "0 or more")
        for name in ("workers", "limit"):
            value = getattr(self, name)
            check(value is None or value >= 1, name, value, "1 or more")
        check(0 <= self.min_confidence <= 1, "min_confidence", self.min_confidence, "a probability from 0 to 1")
        guarantee.check_settings(self.target_accuracy, self.certainty)
        if self.target_accuracy is not None and self.min_confidence:
            raise UserError("--target-accuracy and --min-confidence are both given. Give one of them.")
        if self.target_accuracy is not None and self.int8:
            raise UserError(
                "--target-accuracy is promised for the bundle's own numbers, and --int8 changes labels. Drop one of "
                "them."
            )
        in_range = 0 < self.task_minutes <= MINUTES_PER_WEEK
        check(in_range, "task_minutes", self.task_minutes, f"more than 0 and at most {MINUTES_PER_WEEK}")
