"""Settings of `sentiment-core distill`."""

from dataclasses import dataclass

from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.errors import UserError
from sentiment_core.training.settings import TrainSettings


class NothingToLearn(UserError):
    """The texts hold none that has an answer. `reason`: a sentence, if another is known than that there is no text."""

    def __init__(self, settings: "DistillSettings", reason: str = "") -> None:
        columns = ", ".join(map(repr, settings.text_column))
        super().__init__(
            reason
            or f"--texts {settings.texts} has no row with text and an answer in {columns}. Give texts to learn from."
        )


@dataclass(frozen=True, kw_only=True)
class DistillSettings(TrainSettings):
    """Settings of a distillation: those of a training, the teacher, and the texts that it answers."""

    texts: str = setting(
        REQUIRED,
        "texts to learn: with --teacher Parquet or a table, as score takes it; else with answers of someone, as an "
        "output of score --probabilities --keep text, or in a column probabilities or label",
        "P",
        group="data",
    )
    teacher: str | None = setting(
        None,
        "bundle, folder of bundles or Hugging Face classifier that answers the texts; default: --texts has answers",
        "MODEL",
        group="model",
    )
    data: str | None = setting(  # type: ignore[assignment]  # a training must have it, and a distillation may
        None, "labelled text to learn, too, with the teacher's labels; default: learn from the teacher only", "D",
        group="data",
    )  # fmt: skip
    eval_data: str | None = setting(
        None,
        "labelled text to evaluate and calibrate on, and to compare with the teacher; default: a part of --data is "
        "held out, or without it a part of --texts, with the teacher's labels",
        "D",
        group="data",
    )
    eval_fraction: float = setting(  # few rows are held out, too: the texts may be many
        0.1, "share of --data, or without it of --texts, to hold out without --eval-data", group="data"
    )
    text_column: tuple[str, ...] = setting(
        (),
        "column with the text, or several whose texts are joined; default: those of the teacher, else text",
        "A,B",
        group="data",
    )

    @property
    def command(self) -> str:
        """The command that has these settings."""
        return "distill"

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        super().__post_init__()
        rows = self.min_label_rows
        check(rows == 1, "min_label_rows", rows, "1 (leave it out): the teacher says which labels there are")
        if self.teacher and self.label_names:
            raise UserError(
                "--label-names names the labels of answers in --texts, and a --teacher has names of its own. Leave it "
                "out, or map labels of --data with --label-map."
            )
