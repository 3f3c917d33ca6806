"""Settings of `sentiment-core cascade`."""

from dataclasses import dataclass

from sentiment_core.config import REQUIRED, setting
from sentiment_core.data.csv_settings import csv_encoding_setting, csv_separator_setting
from sentiment_core.data.labels import parse_mapping
from sentiment_core.data.readers import Columns
from sentiment_core.model import cascade


@dataclass(frozen=True)
class CascadeSettings:
    """Settings of `cascade`."""

    small: str = setting(REQUIRED, "bundle of the fast model, which computes all rows", "BUNDLE", group="model")
    large: str = setting(
        REQUIRED, "bundle of the accurate model, which computes what is handed over", "BUNDLE", group="model"
    )
    data: str = setting(
        REQUIRED,
        "rows that neither model has seen, to choose the threshold: labelled text as for evaluate; without a label "
        "column the cascade is held to the large model's answers",
        "D",
        group="data",
    )
    out: str = setting(REQUIRED, "folder or URI of the new bundle; must not exist yet", "BUNDLE", group="output")
    text_column: tuple[str, ...] = setting(
        (),
        "column with the text, or several whose texts are joined; default: those of the models, else text",
        "A,B",
        group="data",
    )
    label_column: str | None = setting(
        None,
        "column with the label: a label name of the models, or its number; default: label, if there is one",
        group="data",
    )
    label_map: tuple[str, ...] = setting(
        (), "labels of the data, and the models' names for them, such as pos=positive,neg=negative", "A=B", group="data"
    )
    csv_separator: str | None = csv_separator_setting()
    csv_encoding: str | None = csv_encoding_setting()
    max_loss: float = setting(
        cascade.MAX_LOSS,
        "share of rows that may be lost: right by the large model, wrong by the cascade",
        "P",
        group="output",
    )
    certainty: float = setting(
        cascade.CERTAINTY, "certainty with which no more than --max-loss are lost", "P", group="output"
    )

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        cascade.check_settings(self.max_loss, self.certainty)
        parse_mapping(self.label_map)
        Columns(self.text_column, csv_separator=self.csv_separator)

    def name(self, part: str) -> str:
        """Name one of the two models, for people."""
        return f"--{part} {getattr(self, part)}"
