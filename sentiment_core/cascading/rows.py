"""Read the rows that choose the threshold of a cascade: rows that neither of its models has seen."""

from dataclasses import dataclass, field, replace

import numpy as np

from sentiment_core.cascading.settings import CascadeSettings
from sentiment_core.data import labelled
from sentiment_core.data.column_search import find_file_with
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import parse_mapping, renumber
from sentiment_core.data.origin import DataOrigin
from sentiment_core.data.readers import Columns, MissingColumn
from sentiment_core.errors import UserError
from sentiment_core.evaluation import is_same_data
from sentiment_core.model import cascade
from sentiment_core.model.bundle import LARGE, SMALL
from sentiment_core.model.known_texts import find_seen
from sentiment_core.model.source import OpenedModel


@dataclass(frozen=True)
class Rows:
    """The rows that choose the threshold."""

    texts: list[str]
    labels: np.ndarray | None  # (n,) class numbers of the small model; None: they are not labelled
    origin: DataOrigin
    fingerprint: str = ""  # of the labelled data as a whole
    remarks: list[str] = field(default_factory=list)

    def take(self, rows: np.ndarray) -> "Rows":
        """Select rows."""
        return replace(
            self, texts=[self.texts[i] for i in rows], labels=None if self.labels is None else self.labels[rows]
        )


def choose_text_columns(settings: CascadeSettings, models: dict[str, OpenedModel]) -> tuple[str, ...]:
    """Return the columns with the texts. Raises `UserError` where the models read different ones."""
    small, large = (model.info.text_columns for model in models.values())
    if not settings.text_column and small != large:
        raise UserError(
            f"{settings.name(LARGE)} reads the text columns {','.join(large)}; {settings.name(SMALL)} reads "
            f"{','.join(small)}; choose with --text-column"
        )
    return settings.text_column or small


def read_rows(settings: CascadeSettings, models: dict[str, OpenedModel], texts: tuple[str, ...]) -> Rows:
    """Read the rows, labelled if they have a label column. Raises `UserError`, also for rows that a model has seen."""
    columns = Columns(texts, settings.label_column or "label", settings.csv_separator, settings.csv_encoding)
    own = models[SMALL].info.label_scheme
    scheme = replace(own, mapping=own.mapping | parse_mapping(settings.label_map))
    try:
        data = labelled.read(settings.data, columns, scheme)
    except MissingColumn as missing:
        has_flags = settings.label_column or settings.label_map
        if has_flags or missing.column != columns.label or find_file_with(columns, settings.data):
            raise
        unlabelled = labelled.read_texts(settings.data, columns)
        remark = f"no column {columns.label!r}: the rows are held to the large model's answers"
        origin = DataOrigin(
            settings.data, rows=len(unlabelled), numbered=own.numbered, label_map=own.mapping, remarks=[remark]
        )
        data = LabelledTexts(unlabelled, np.zeros(0, np.int64), own.names or [], origin)
    if data.samples:
        raise UserError(
            f"--data {settings.data} is a sample of sentiment-core sample, whose rows weigh differently; give rows "
            "that were drawn evenly"
        )
    is_labelled = len(data.labels) > 0
    for part, model in models.items():
        training, fingerprint = model.info.training, _fingerprint(data, model.info.labels) if is_labelled else None
        taught = model.info.distillation.texts
        for kind, seen in (("training", training.data), ("evaluation", training.eval_data), ("taught", taught)):
            if is_same_data(seen, data.origin.place, fingerprint):
                raise UserError(
                    f"--data {settings.data} holds the {kind} rows of {settings.name(part)}, which promise nothing for "
                    "other rows; give rows that neither model has seen"
                )
    if not is_labelled:
        return Rows(data.texts, None, data.origin, remarks=data.origin.remarks)
    return Rows(data.texts, data.labels, data.origin, data.fingerprint(), data.origin.remarks)


def _fingerprint(data: LabelledTexts, label_names: list[str]) -> str:
    """Fingerprint labelled rows as a model with these labels numbers them."""
    numbers = renumber(data.labels, data.label_names, label_names)
    return replace(data, labels=numbers, label_names=label_names).fingerprint()


def leave_out_known(settings: CascadeSettings, models: dict[str, OpenedModel], rows: Rows) -> Rows:
    """Leave out rows whose text is among those that a model was made with, where these are at hand."""
    seen, unread = find_seen(rows.texts, {settings.name(part): model.info for part, model in models.items()})
    remark = f"{seen.sum():,} rows were left out: a model was trained or evaluated on their texts"
    remarks = [*rows.remarks, *[remark] * bool(seen.any()), *unread]
    return replace(rows.take(np.flatnonzero(~seen)), remarks=remarks)


def check_number(settings: CascadeSettings, rows: int) -> None:
    """Refuse too few rows. Raises `UserError`."""
    needed = cascade.required_rows(settings.max_loss, settings.certainty)
    if rows < needed:
        raise UserError(
            f"--data {settings.data} has {rows:,} rows that neither model has seen; --max-loss {settings.max_loss:g} "
            f"with certainty {settings.certainty:g} needs at least {needed:,}, and with more of them fewer rows go to "
            "the large model"
        )
