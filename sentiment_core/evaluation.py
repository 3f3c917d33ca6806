"""Evaluate a bundle on labelled text, on this machine and without Ray."""

import json
import math
from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.analysis import suspects
from sentiment_core.analysis.sample_file import Sample, read_sample
from sentiment_core.api import Classifier
from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.data import labelled
from sentiment_core.data.csv_settings import csv_encoding_setting, csv_separator_setting
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import parse_mapping
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, guarantee, registry, source
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.distillation_record import TaughtTexts
from sentiment_core.model.known_texts import find_seen
from sentiment_core.model.records import Evaluation, EvaluationRows, Guarantee, LabelledRowsMetrics, TrainingRows
from sentiment_core.runtime import preflight, storage
from sentiment_core.runtime.precision import Precision, precision_setting

TARGET_ACCURACIES = (0.9, 0.95, 0.98, 0.99)  # for which `describe_metrics` gives a confidence threshold

SHOWN_GROUPS = 20


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of `evaluate`."""

    model: str = setting(
        REQUIRED,
        "bundle, folder of bundles or Hugging Face classifier: a folder, URI or hub name",
        "MODEL",
        group="model",
    )
    data: str = setting(
        REQUIRED,
        "labelled text: Parquet, CSV or JSON Lines (file, folder, glob, URI), or a hub data set as "
        "owner/name[:config][:split]",
        "D",
        group="data",
    )
    text_column: tuple[str, ...] = setting(
        (),
        "column with the text, or several to join; default: text, or the several columns of the model's training",
        "A,B",
        group="data",
    )
    label_column: str = setting(
        "label", "column with the label: a label name of the bundle, or its number; or a list of them", group="data"
    )
    label_separator: str | None = setting(
        None, "separator of the labels in a text that holds several; default: as in training", group="data"
    )
    label_map: tuple[str, ...] = setting(
        (),
        "labels of the data, and the bundle's names for them, such as pos=positive,neg=negative",
        "A=B",
        group="data",
    )
    csv_separator: str | None = csv_separator_setting()
    csv_encoding: str | None = csv_encoding_setting()
    by: str | None = setting(
        None, "also give the metrics of each value of this column, or key of partition folders", "COLUMN", group="data"
    )
    target_accuracy: float | None = setting(
        None, "find the least --min-confidence that promises this share of right labels", "P", group="output"
    )
    certainty: float = setting(
        guarantee.CERTAINTY, "certainty with which --target-accuracy is promised", "P", group="output"
    )
    guarantee_labels: bool = setting(
        False, "with --target-accuracy also find the threshold of each label for its precision", group="output"
    )
    precision: Precision = precision_setting()  # noqa: RUF009
    suspects: str | None = setting(
        None, "file for rows whose label the model contradicts, the worst first", "FILE.csv", group="output"
    )
    out: str | None = setting(
        None, "file for the metrics; without it they are only printed", "metrics.json", group="output"
    )

    def columns(self, info: BundleInfo) -> Columns:
        """Return the columns of labelled files to read; what is left open is as in the bundle's training."""
        return Columns(
            self.text_column or info.text_columns,
            self.label_column,
            self.csv_separator,
            self.csv_encoding,
            self.by,
            label_separator=self.label_separator or info.label_separator,
        )

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        guarantee.check_settings(self.target_accuracy, self.certainty)
        if self.guarantee_labels and self.target_accuracy is None:
            raise UserError("--guarantee-labels needs --target-accuracy. Give the precision that each label must have.")
        parse_mapping(self.label_map)
        is_csv = self.suspects is None or self.suspects.lower().endswith(".csv")
        check(is_csv, "suspects", self.suspects, "a file that ends in .csv")
        Columns(self.text_column, self.label_column, self.csv_separator, label_separator=self.label_separator)


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Evaluate a bundle on labelled text.

    Writes the metrics to `--out`, if that is given. Raises `UserError`, also for a label that the bundle does not have.

    Returns:
        The objective's metrics, the number of rows left out by reason (`dropped`), and the bundle's digest (`bundle`).
    """
    model = source.open_model(registry.resolve(settings.model))
    info = model.info
    scheme = replace(info.label_scheme, mapping=info.label_scheme.mapping | parse_mapping(settings.label_map))
    data = labelled.read(settings.data, settings.columns(info), scheme)
    sample = _read_sample(settings, data)
    infos = [info, *(bundle.info_of(part) for part in bundle.parts_of(model.files).values() if info.is_cascade)]
    for flag, path in (("--out", settings.out), ("--suspects", settings.suspects)):
        if path:
            preflight.check_file(path, flag)
    unseen, comparisons, unread = _find_unseen(settings, infos, data)
    source.warn_if_uncalibrated(model.path, info)
    classifier = Classifier(model.files, precision=settings.precision)
    probabilities = classifier.predict_proba(data.texts)
    has_score = ~np.isnan(probabilities).any(axis=1)
    if not has_score.any():
        raise UserError(f"{settings.data}: the tokenizer finds no token in any of its texts. Give labelled text.")
    scored_data, scored = data.take(np.flatnonzero(has_score)), probabilities[has_score]
    weights, remarks = _weigh(sample, scored_data) if sample is not None else (None, [])

    def measure(rows: np.ndarray) -> LabelledRowsMetrics:
        row_weights = None if weights is None else weights[rows]
        return info.objective.evaluate(scored[rows], scored_data.labels[rows], info.labels, row_weights)

    metrics = measure(np.ones(len(scored), bool))
    groups = np.array(scored_data.groups, object)
    by = {str(group): measure(groups == group).numbers for group in sorted(set(groups))}
    unseen = unseen[has_score]
    if settings.suspects:
        remarks += _write_suspects(settings.suspects, infos, scored_data, scored)
    if not unseen.all():
        remarks.append(f"{(~unseen).sum():,} rows promise nothing: the model was made with their texts")
    dropped = replace(data.origin.dropped, without_tokens=int((~has_score).sum()))
    promised = _find_guarantee(settings, info, scored[unseen], scored_data.labels[unseen], comparisons)
    remarks = [*data.origin.remarks, *remarks, *unread]
    result = Evaluation(metrics, dropped, classifier.digest, by, remarks, promised)
    if settings.out:
        storage.write_file(settings.out, (json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n").encode())
    return result


def _read_sample(settings: EvaluateSettings, data: LabelledTexts) -> Sample | None:
    """Read the weights if the data is a sample for shares.

    Raises `UserError` for a sample for training, one that was changed, and one beside other files.
    """
    if not data.samples:
        return None
    if settings.target_accuracy is not None:
        raise UserError(
            f"--target-accuracy: {settings.data} is a sample of sentiment-core sample, whose rows weigh differently; "
            "give labelled rows that were drawn evenly"
        )
    if len(data.file_rows) > 1:
        raise UserError(
            f"{settings.data} holds {data.samples[0]}, a sample of sentiment-core sample, beside other files; evaluate "
            "each sample by itself, so that its rows can be weighted"
        )
    separator = Columns(csv_separator=settings.csv_separator).separator
    return read_sample(data.samples[0], separator, settings.csv_encoding)


def _weigh(sample: Sample, data: LabelledTexts) -> tuple[np.ndarray, list[str]]:
    """Return the rows of the corpus that each row of the data stands for, (n,), and what to know about them."""
    used = np.isin(sample.line, data.positions)
    weights_of_lines = np.zeros(data.file_rows[0][1])
    weights_of_lines[sample.line] = sample.spread_weights(used)
    uncovered = sample.uncovered_rows(used)
    remark = (
        f"{uncovered:,.0f} of {sample.weight.sum():,.0f} rows of the corpus are in strata without a labelled row, and "
        "the metrics leave them out; label a row of each stratum"
    )
    skipped = (
        f"{sample.skipped_rows:,} rows of the sample stand before the last labelled one and have no label; if they "
        "were left out because they are hard, or the file was sorted, the metrics are biased: label them too"
    )
    remarks = [remark] * (uncovered > 0) + [skipped] * (sample.skipped_rows > 0)
    return weights_of_lines[data.positions], remarks


def _write_suspects(path: str, infos: list[BundleInfo], data: LabelledTexts, probabilities: np.ndarray) -> list[str]:
    """Write the rows whose label the model contradicts, and return what to say about them.

    `infos`: of the bundle, and of a cascade's models.
    """
    info = infos[0]
    suspected = suspects.find_suspects(info.objective, probabilities, data.labels)
    decisions, _ = info.objective.decide(probabilities)
    storage.write_file(path, suspects.format_suspects(suspected, data, info.objective, decisions))
    lines = [f"{len(suspected.rows):,} of {len(data):,} labels are suspected to be wrong, the worst first in {path}"]
    seen = [rows for part in infos for rows in (part.training.data, part.training.eval_data)]
    fingerprint = data.fingerprint()
    if any(is_same_data(rows, data.origin.place, fingerprint) for rows in seen):
        lines.append(
            "the model was made with this data, and repeats wrong labels that it has seen; suspects of rows that it "
            "has not seen are better"
        )
    return lines


def is_same_data(rows: TrainingRows | EvaluationRows | TaughtTexts, path: str, fingerprint: str | None) -> bool:
    """Return whether a part of a training is the data at a path, or of it, by the path or by the content.

    `fingerprint`: of the data; None: it has no labels.
    """
    is_same_path = bool(rows.place) and source.absolute(rows.place) == source.absolute(path)
    return is_same_path or rows.fingerprint == fingerprint


def _find_unseen(
    settings: EvaluateSettings, infos: list[BundleInfo], data: LabelledTexts
) -> tuple[np.ndarray, int, list[str]]:
    """Find the rows that can promise an accuracy, since the model was not made with their texts.

    `infos`: of the bundle, and of a cascade's models. Without `--target-accuracy` all rows count as unseen. Raises
    `UserError` where the model was trained on the data, or has seen all rows.

    Returns:
        (n,) bool, the number of models that were compared on the data, and a sentence about each place that could not
        be read.
    """
    if settings.target_accuracy is None:
        return np.ones(len(data), bool), 1, []
    made_with = UserError(
        f"--target-accuracy: the model was made with the rows of --data {settings.data}, which promise nothing for "
        "other rows. Give labelled rows that it has not seen."
    )
    path, fingerprint = data.origin.place, data.fingerprint()
    if any(is_same_data(info.training.data, path, fingerprint) for info in infos):
        raise made_with
    names = ["--model", *(f"its model {part}" for part in bundle.PARTS)][: len(infos)]
    by_name = dict(zip(names, infos, strict=True))
    compared = [name for name, info in by_name.items() if is_same_data(info.training.eval_data, path, fingerprint)]
    seen, unread = find_seen(data.texts, by_name, compared)
    if seen.all():
        raise made_with
    trainings = [(by_name[name].training.epochs, by_name[name].guarantee.comparisons) for name in compared]
    return ~seen, math.prod(max(1, *numbers) for numbers in trainings), unread


def _find_guarantee(
    settings: EvaluateSettings, info: BundleInfo, probabilities: np.ndarray, targets: np.ndarray, comparisons: int
) -> Guarantee | None:
    """Find the guarantee of --target-accuracy, if that is given."""
    target, certainty = settings.target_accuracy, settings.certainty
    if target is None:
        return None
    grid = guarantee.make_grid(info.objective, probabilities, targets, comparisons)
    promised = guarantee.promise(grid, target, certainty)
    if not settings.guarantee_labels:
        return promised
    by_label = guarantee.promise_by_label(
        info.objective, probabilities, targets, info.labels, target, certainty, comparisons
    )
    return replace(promised, by_label=by_label)


def describe_evaluation(result: Evaluation) -> str:
    """Describe an evaluation in a few lines for the terminal: its metrics, in all and by group, and what to know."""
    lines = [*describe_metrics(result.metrics), *_describe_groups(result), *result.remarks]
    return "\n".join([*lines, *(_describe_guarantee(result.guarantee) if result.guarantee else [])])


def _describe_guarantee(promised: Guarantee) -> list[str]:
    """Describe a guarantee, and of each label its own."""
    return [
        promised.describe(),
        *(
            f"{label}: {part.reason}"
            if part.min_confidence is None
            else f"{label}: {100 * promised.target:g} % precision from {part.min_confidence!r} on, which "
            f"{100 * part.share_labelled:.0f} % of its {part.rows:,} rows reach"
            for label, part in (promised.by_label or {}).items()
        ),
    ]


def describe_metrics(metrics: LabelledRowsMetrics) -> list[str]:
    """Describe metrics in a few lines: the numbers, a table by label, and thresholds for abstaining."""
    population = metrics.population_rows
    stand_for = "" if population is None else f", weighted to stand for {population:,}"
    return [
        f"{metrics.n:,} rows{stand_for}: {_describe_numbers(metrics.named_numbers)}",
        *metrics.table(),
        *_describe_thresholds(metrics),
    ]


def _describe_numbers(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())


def _describe_groups(result: Evaluation) -> list[str]:
    """Describe the metrics of the largest groups, a line each."""
    largest = sorted(result.by.items(), key=lambda item: -item[1]["n"])
    names = result.metrics.NUMBERS
    lines = [
        f"{group}: {numbers['n']:,} rows, "
        + _describe_numbers({names[name]: value for name, value in numbers.items() if name in names})
        for group, numbers in largest[:SHOWN_GROUPS]
    ]
    return lines + [f"... {len(largest):,} groups in all; --out has them"] * (len(largest) > SHOWN_GROUPS)


def _describe_thresholds(metrics: LabelledRowsMetrics) -> list[str]:
    """Describe the lowest threshold for each target accuracy that abstaining reaches."""
    curve = metrics.risk_coverage
    points = list(zip(curve.accuracy, curve.min_confidence, curve.coverage, strict=True))
    lines = []
    for target in TARGET_ACCURACIES:
        reaching = [point for point in points if point[0] >= target]
        if target > metrics.accuracy and reaching:
            accuracy, confidence, coverage = max(reaching, key=lambda point: point[2])
            threshold = math.floor(confidence * 1e4) / 1e4
            lines.append(
                f"--min-confidence {threshold} labels {100 * coverage:.0f} % of the rows; "
                f"{100 * accuracy:.1f} % of those labels are right"
            )
    note = "these thresholds are estimates from the same rows; evaluate --target-accuracy gives one with a guarantee"
    return [*lines, note] if lines else []
