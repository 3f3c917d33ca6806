"""Make a cascade of two bundles: the large model answers the rows that the small one is less sure of.

On this machine and without Ray. Rows that neither model has seen choose the threshold, see `model.cascade`.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np

from sentiment_core.analysis import known_texts
from sentiment_core.config import REQUIRED, setting
from sentiment_core.data import labelled
from sentiment_core.data.csv_settings import csv_encoding_setting, csv_separator_setting
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import SHOWN_LABELS, parse_mapping
from sentiment_core.data.origin import DataOrigin
from sentiment_core.data.readers import Columns, MissingColumn
from sentiment_core.errors import UserError
from sentiment_core.evaluation import describe_metrics, is_same_data
from sentiment_core.inference.measured import MeasuredAnswers, measure_answers
from sentiment_core.model import bundle, cascade, guarantee, registry, source
from sentiment_core.model.bundle import CASCADE_FORMAT_VERSION, LARGE, SMALL, BundleInfo
from sentiment_core.model.cascade import CascadeRecord, ThresholdChoice
from sentiment_core.model.objective import SingleLabel
from sentiment_core.model.records import Calibration, EvaluationRows, Int8Check, TrainingRecord
from sentiment_core.model.source import OpenedModel
from sentiment_core.report.cascade_card import make_cascade_card
from sentiment_core.runtime import preflight
from sentiment_core.training.diagnostics import reference_statistics


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
        cascade.MAX_LOSS, "share of rows that may be lost: right with the large model alone", "P", group="output"
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


@dataclass(frozen=True)
class CascadeResult:
    """A new cascade: its path and what it says of itself."""

    place: str
    info: BundleInfo
    remarks: list[str]

    def summary(self) -> str:
        """Return a few lines for the terminal."""
        record = self.info.cascade
        metrics = describe_metrics(self.info.metrics) if self.info.metrics.n else []
        return "\n".join([*cascade.describe(record), *self.remarks, *metrics, f"bundle: {self.place}"])


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


def make_cascade(settings: CascadeSettings) -> CascadeResult:
    """Make a cascade of two bundles. Raises `UserError`, also where there is nothing to gain."""
    preflight.check_lasting(settings.out)
    bundle.check_free(settings.out)
    models = {part: _open(settings, part) for part in (SMALL, LARGE)}
    _check_models(settings, models)
    preflight.check_space(
        settings.out, 2 * sum(len(data) for model in models.values() for data in model.files.values())
    )
    columns = _text_columns(settings, models)
    rows = _leave_out_known(models, _read_rows(settings, models, columns))
    _check_number(settings, len(rows.texts))
    labels = models[SMALL].info.labels
    measured = {part: measure_answers(model.files, rows.texts, labels) for part, model in models.items()}
    has_tokens = np.flatnonzero((measured[SMALL].tokens.lengths > 0) & (measured[LARGE].tokens.lengths > 0))
    rows, measured = rows.take(has_tokens), {part: own.take(has_tokens) for part, own in measured.items()}
    _check_number(settings, len(rows.texts))
    info = _describe_cascade(settings, models, rows, measured, columns)
    card = {"README.md": make_cascade_card(info, settings.small, settings.large).encode()}
    bundle.write_cascade(settings.out, info, {part: model.files for part, model in models.items()}, card)
    return CascadeResult(settings.out, info, rows.remarks)


def _open(settings: CascadeSettings, part: str) -> OpenedModel:
    try:
        return source.open_model(registry.resolve(getattr(settings, part)))
    except UserError as error:
        raise UserError(str(error).replace("--model", f"--{part}")) from None


def _check_models(settings: CascadeSettings, models: dict[str, OpenedModel]) -> None:
    """Refuse models that make no cascade. Raises `UserError`."""
    small, large = models[SMALL].info, models[LARGE].info
    for part, model in models.items():
        if model.info.is_cascade:
            raise UserError(
                f"{settings.name(part)} is a cascade itself; expected a bundle with one model, such as those in its "
                f"folders {SMALL} and {LARGE}"
            )
        if model.info.objective.several:
            raise UserError(
                f"{settings.name(part)} gives several labels a row; expected one label a row from both models. Score "
                "with one of the models alone."
            )
    if set(small.labels) != set(large.labels):
        own, others = (", ".join(info.labels[:SHOWN_LABELS]) for info in (large, small))
        raise UserError(
            f"{settings.name(LARGE)} has the labels {own}; expected those of {settings.name(SMALL)}, {others}. Train "
            "both on the same labels, or adopt a ready classifier with --label-names."
        )
    if len({bundle.digest_of(model.files) for model in models.values()}) == 1:
        raise UserError(
            f"{settings.name(SMALL)} and {settings.name(LARGE)} are the same model; expected a fast one and one that "
            "is more accurate"
        )


def _text_columns(settings: CascadeSettings, models: dict[str, OpenedModel]) -> tuple[str, ...]:
    """Return the columns with the texts. Raises `UserError` where the models read different ones."""
    small, large = (model.info.text_columns for model in models.values())
    if not settings.text_column and small != large:
        raise UserError(
            f"{settings.name(LARGE)} reads the text columns {','.join(large)}; {settings.name(SMALL)} reads "
            f"{','.join(small)}; choose with --text-column"
        )
    return settings.text_column or small


def _read_rows(settings: CascadeSettings, models: dict[str, OpenedModel], texts: tuple[str, ...]) -> Rows:
    """Read the rows, labelled if they have a label column. Raises `UserError`, also for rows that a model has seen."""
    columns = Columns(texts, settings.label_column or "label", settings.csv_separator, settings.csv_encoding)
    own = models[SMALL].info.label_scheme
    scheme = replace(own, mapping=own.mapping | parse_mapping(settings.label_map))
    try:
        data = labelled.read(settings.data, columns, scheme)
    except MissingColumn:
        if settings.label_column:
            raise
        unlabelled = labelled.read_texts(settings.data, columns)
        origin = DataOrigin(settings.data, rows=len(unlabelled), numbered=own.numbered, label_map=own.mapping)
        data = LabelledTexts(unlabelled, np.zeros(0, np.int64), own.names or [], origin)
    if data.samples:
        raise UserError(
            f"--data {settings.data} is a sample of sentiment-core sample, whose rows weigh differently; give rows "
            "that were drawn evenly"
        )
    is_labelled = len(data.labels) > 0
    for part, model in models.items():
        training = model.info.training
        for kind, seen in (("training", training.data), ("evaluation", training.eval_data)):
            if is_same_data(seen, data.origin.place, data.fingerprint() if is_labelled else None):
                raise UserError(
                    f"--data {settings.data} holds the {kind} rows of {settings.name(part)}, which promise nothing for "
                    "other rows; give rows that neither model has seen"
                )
    if not is_labelled:
        return Rows(data.texts, None, data.origin)
    return Rows(data.texts, data.labels, data.origin, data.fingerprint(), data.origin.remarks)


def _leave_out_known(models: dict[str, OpenedModel], rows: Rows) -> Rows:
    """Leave out rows whose text is among those that a model was made with, where these are at hand."""
    seen: set[bytes] = set()
    for model in models.values():
        seen |= known_texts.read_training_texts(model.info, with_taught=True)[0]
    is_new = np.array([known_texts.hash_text(text) not in seen for text in rows.texts], bool)
    left_out = int((~is_new).sum())
    remark = f"{left_out:,} rows were left out: a model was trained or evaluated on their texts"
    return replace(rows.take(np.flatnonzero(is_new)), remarks=[*rows.remarks, *[remark] * (left_out > 0)])


def _check_number(settings: CascadeSettings, rows: int) -> None:
    """Refuse too few rows. Raises `UserError`."""
    needed = cascade.required_rows(settings.max_loss, settings.certainty)
    if rows < needed:
        raise UserError(
            f"--data {settings.data} has {rows:,} rows that neither model has seen; --max-loss {settings.max_loss:g} "
            f"with certainty {settings.certainty:g} needs at least {needed:,}, and with more of them fewer rows go to "
            "the large model"
        )


def _describe_cascade(
    settings: CascadeSettings,
    models: dict[str, OpenedModel],
    rows: Rows,
    measured: dict[str, MeasuredAnswers],
    text_columns: tuple[str, ...],
) -> BundleInfo:
    """Choose the threshold, and return the record of the new bundle. Raises `UserError` for nothing to gain."""
    small, large = (models[part].info for part in (SMALL, LARGE))
    objective = SingleLabel(ordinal=small.ordinal and large.ordinal and small.labels == large.labels)
    answers = {part: own.probabilities for part, own in measured.items()}
    right = None
    if rows.labels is not None:
        right = {part: objective.is_right(objective.decide(own)[0], rows.labels) for part, own in answers.items()}
    is_lost = _find_lost(settings, objective, answers, right)
    confidence = objective.decide(answers[SMALL])[1]
    choice = _choose_threshold(settings, confidence, is_lost)
    escalated = confidence < np.float32(choice.threshold)
    probabilities = np.where(escalated[:, None], answers[LARGE], answers[SMALL])
    origin = EvaluationRows(**vars(rows.origin), eval_rows=len(escalated), fingerprint=rows.fingerprint)
    calibrated = [info.calibration.rows for info in (small, large)]
    info = BundleInfo(
        "cascade",
        small.labels,
        max(small.max_length, large.max_length),
        calibration=Calibration(method="of its models", rows=min(calibrated)) if all(calibrated) else Calibration(),
        training=TrainingRecord(settings=asdict(settings) | {"text_column": text_columns}, eval_data=origin),
        reference=reference_statistics(
            objective, measured[SMALL].tokens, probabilities, small.labels, measured[SMALL].unknown_id
        ),
        int8=Int8Check(reason="it is a cascade"),
        cascade=_record(settings, measured, choice, escalated, is_lost, right),
        **objective.settings,
        format_version=CASCADE_FORMAT_VERSION,
    )
    if rows.labels is None:
        return info
    return replace(
        info,
        metrics=objective.evaluate(probabilities, rows.labels, info.labels),
        # the rows have chosen one of so many cascades
        guarantee=guarantee.make_grid(objective, probabilities, rows.labels, len(cascade.list_thresholds())),
    )


def _find_lost(
    settings: CascadeSettings,
    objective: SingleLabel,
    answers: dict[str, np.ndarray],
    right: dict[str, np.ndarray] | None,
) -> np.ndarray:
    """Mark the rows that are lost if the small model keeps them, (n,) bool.

    `right`: by model, which rows it gets right; None: that is not known. Raises `UserError` for nothing to gain.
    """
    if right is None:
        disagrees = ~objective.same_decision(answers[SMALL], answers[LARGE])
        if not disagrees.any():
            raise UserError(
                f"nothing to gain: {settings.name(SMALL)} and {settings.name(LARGE)} give all {len(disagrees):,} rows "
                f"of --data {settings.data} the same label; use the small model alone"
            )
        return disagrees
    small, large = (int(right[part].sum()) for part in (SMALL, LARGE))
    if large <= small:
        raise UserError(
            f"nothing to gain: of {len(right[SMALL]):,} rows of --data {settings.data} {settings.name(LARGE)} gets "
            f"{large:,} right and {settings.name(SMALL)} {small:,}; use the small model alone, or give a more accurate "
            "large one"
        )
    return right[LARGE] & ~right[SMALL]


def _choose_threshold(settings: CascadeSettings, confidence: np.ndarray, is_lost: np.ndarray) -> ThresholdChoice:
    """Choose the threshold. Raises `UserError` for one that hands over all rows or none."""
    choice = cascade.choose_threshold(confidence, is_lost, settings.max_loss, settings.certainty)
    limit = f"--max-loss {settings.max_loss:g} with certainty {settings.certainty:g}"
    if choice is None or choice.escalated_share == 1:
        raise UserError(
            f"nothing to gain: with {len(is_lost):,} rows of --data {settings.data} no threshold keeps rows with "
            f"{settings.name(SMALL)} and keeps to {limit}; use the large model alone, give more rows, or raise "
            "--max-loss"
        )
    if choice.escalated_share == 0:
        raise UserError(
            f"nothing to gain: {settings.name(SMALL)} alone keeps to {limit}, and loses at most "
            f"{100 * choice.loss_bound:.2f} % of the rows; use it, or lower --max-loss"
        )
    return choice


def _record(
    settings: CascadeSettings,
    measured: dict[str, MeasuredAnswers],
    choice: ThresholdChoice,
    escalated: np.ndarray,
    is_lost: np.ndarray,
    right: dict[str, np.ndarray] | None,
) -> CascadeRecord:
    small, large = measured[SMALL], measured[LARGE]
    accuracies: list[float | None] = [None] * 3
    if right:
        answered = (right[SMALL], right[LARGE], np.where(escalated, right[LARGE], right[SMALL]))
        accuracies = [float(part.mean()) for part in answered]
    lengths = large.tokens.lengths
    work_share = float(lengths[escalated].sum() / lengths.sum())  # of the large model's time
    return CascadeRecord(
        threshold=choice.threshold,
        max_loss=settings.max_loss,
        certainty=settings.certainty,
        rows=len(escalated),
        labelled=right is not None,
        loss=choice.lost_rows / len(escalated),
        loss_bound=choice.loss_bound,
        escalated_share=choice.escalated_share,
        small_accuracy=accuracies[0],
        large_accuracy=accuracies[1],
        accuracy=accuracies[2],
        agreement=None if right else float(1 - is_lost.mean()),
        small_rows_per_second=small.rows_per_second,
        large_rows_per_second=large.rows_per_second,
        rows_per_second=1 / (1 / small.rows_per_second + work_share / large.rows_per_second),
        small_computed_by=small.computed_by,
        large_computed_by=large.computed_by,
        chip=small.chip,
        threads=small.threads,
    )
