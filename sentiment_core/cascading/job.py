"""Compute the rows by both models, choose the threshold, and write the bundle of both."""

from dataclasses import asdict, dataclass, replace

import numpy as np

from sentiment_core.cascading.rows import Rows, check_number, choose_text_columns, leave_out_known, read_rows
from sentiment_core.cascading.settings import CascadeSettings
from sentiment_core.data.labels import SHOWN_LABELS
from sentiment_core.errors import UserError
from sentiment_core.evaluation import describe_metrics
from sentiment_core.inference.measured import MeasuredAnswers, measure_answers
from sentiment_core.model import bundle, cascade, guarantee, registry, source
from sentiment_core.model.bundle import CASCADE_FORMAT_VERSION, LARGE, SMALL, BundleInfo
from sentiment_core.model.cascade import CascadeRecord, ThresholdChoice
from sentiment_core.model.objective import SingleLabel
from sentiment_core.model.records import Calibration, EvaluationRows, GuaranteeGrid, Int8Check, TrainingRecord
from sentiment_core.model.source import OpenedModel
from sentiment_core.report.cascade_card import make_cascade_card
from sentiment_core.runtime import preflight, storage
from sentiment_core.training.diagnostics import reference_statistics


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


def make_cascade(settings: CascadeSettings) -> CascadeResult:
    """Make a cascade of two bundles. Raises `UserError`, also where there is nothing to gain."""
    preflight.check_lasting(settings.out)
    bundle.check_free(settings.out)
    preflight.check_writable(storage.parent(settings.out))
    models = {part: _open(settings, part) for part in (SMALL, LARGE)}
    _check_models(settings, models)
    preflight.check_space(
        settings.out, 2 * sum(len(data) for model in models.values() for data in model.files.values())
    )
    columns = choose_text_columns(settings, models)
    rows = leave_out_known(settings, models, read_rows(settings, models, columns))
    check_number(settings, len(rows.texts))
    labels = models[SMALL].info.labels
    measured = {part: _measure(settings, part, model, rows.texts, labels) for part, model in models.items()}
    has_tokens = np.flatnonzero((measured[SMALL].tokens.lengths > 0) & (measured[LARGE].tokens.lengths > 0))
    rows, measured = rows.take(has_tokens), {part: own.take(has_tokens) for part, own in measured.items()}
    check_number(settings, len(rows.texts))
    info = _describe_cascade(settings, models, rows, measured, columns)
    card = {"README.md": make_cascade_card(info, settings.small, settings.large).encode()}
    bundle.write_cascade(settings.out, info, {part: model.files for part, model in models.items()}, card)
    return CascadeResult(settings.out, info, rows.remarks)


def _measure(
    settings: CascadeSettings, part: str, model: OpenedModel, texts: list[str], labels: list[str]
) -> MeasuredAnswers:
    """Compute the rows by one model. Raises `UserError` where that gives no numbers."""
    try:
        return measure_answers(model.files, texts, labels)
    except UserError as error:
        raise UserError(f"{settings.name(part)}: {error}") from None


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
    comparisons = len(cascade.list_thresholds())  # the rows have chosen one of so many cascades
    if rows.labels is None:
        return replace(info, guarantee=GuaranteeGrid(comparisons=comparisons))
    return replace(
        info,
        metrics=objective.evaluate(probabilities, rows.labels, info.labels),
        guarantee=guarantee.make_grid(objective, probabilities, rows.labels, comparisons),
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
            f"nothing to gain: {settings.name(SMALL)} alone keeps to {limit}, and loses "
            f"{100 * is_lost.mean():.2f} % of these rows; use it, or lower --max-loss"
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
