"""Report the shares of labels in a scored corpus, with intervals from a labelled sample.

Counting predicted labels is biased as soon as shares shift. With a sample for shares the bias is measured and removed,
see `estimation`. Without one it is corrected by the errors on the model's evaluation rows, see `quantification`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sentiment_core.analysis.estimation import Design, estimate_mean, tune_power
from sentiment_core.analysis.population import GroupSums, Population, SampledRows, sum_up
from sentiment_core.analysis.quantification import correct_binary, correct_counts
from sentiment_core.analysis.records import Estimate, Share
from sentiment_core.analysis.sample_file import LABEL_SEPARATOR, Sample, read_sample
from sentiment_core.analysis.scored_rows import Group, OpenedOutput, check_keys, open_output
from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.data.labels import LabelScheme
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.multi_label_records import MultiLabelMetrics
from sentiment_core.runtime import preflight, storage

SAMPLED = "prediction-powered, labelled sample"
CORRECTED = "corrected by confusion of evaluation rows"
NOT_ESTIMATED = "none"
MIN_LABELLED = 10  # labelled rows of a group, below which it gets no interval
FEW_LABELLED = 50  # below which a group's interval comes with a note
LEAST_OF_STRATUM = 2  # labelled rows, without which it has no variance
SHOWN_LINES = 30


@dataclass(frozen=True)
class SharesSettings:
    """Flags of `sentiment-core shares`."""

    scored: str = setting(REQUIRED, "output folder or URI of sentiment-core score", "OUT", group="data")
    labelled: str | None = setting(
        None, "sample of sentiment-core sample --for shares, with labels filled in", "FILE.csv", group="data"
    )
    by: tuple[str, ...] = setting(
        (), "also give the shares of each value of these partition keys or kept columns", "KEY,...", group="data"
    )
    label_separator: str = setting(
        LABEL_SEPARATOR, "separator of the labels in a cell that holds several", group="data"
    )
    name: str | None = setting(None, "name of the model, where several scored the corpus", "MODEL", group="model")
    certainty: float = setting(0.95, "certainty with which an interval holds the true share", "P", group="run")
    to: str | None = setting(None, "file for the shares as JSON", "FILE.json", group="output")

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        check(0.5 <= self.certainty < 1, "certainty", self.certainty, "0.5 or more, and less than 1")
        check(len(set(self.by)) == len(self.by), "by", ",".join(self.by), "different keys")


@dataclass(frozen=True)
class Shares:
    """The shares of all labels and groups."""

    shares: list[Share]
    certainty: float
    remarks: list[str]  # sentences about output and sample that their user should read

    def to_json(self) -> list[dict[str, Any]]:
        """Return the content of the file that `--to` names."""
        return [asdict(share) for share in self.shares]

    def report(self) -> str:
        """Return a few lines for the terminal: a statement a share, the accuracy, and what to know."""
        shown = self.shares[:SHOWN_LINES]
        lines = [_describe(share, self.certainty) for share in shown]
        if len(shown) < len(self.shares):
            lines.append(f"... {len(self.shares) - len(shown):,} more; --to FILE.json writes all")
        accuracy = next((share.accuracy for share in self.shares if not share.by and share.accuracy), None)
        if accuracy is not None:
            between = f"{_percent(accuracy.low)} to {_percent(accuracy.high)}"
            lines.append(f"the model's labels: {_percent(accuracy.value)} % are right ({between})")
        notes = dict.fromkeys(f"{_name_group(share.by)}: {share.note}" for share in shown if share.note)
        return "\n".join([*lines, *notes, *self.remarks])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _name_group(by: Mapping[str, str | None]) -> str:
    return ", ".join(f"{key}={'null' if value is None else value}" for key, value in by.items()) or "all rows"


def _describe(share: Share, certainty: float) -> str:
    line = f"{_name_group(share.by)}: "
    counted = f"counting the model's labels gives {_percent(share.counted)} %"
    if share.estimate is None:
        return f"{line}{share.label}: no estimate for {share.rows:,} rows; {counted}"
    line += f"{_percent(share.estimate)} % of {share.rows:,} rows are {share.label}"
    if share.low is None or share.high is None:
        return f"{line}, without an interval ({share.method}); {counted}"
    between = f"{_percent(share.low)} to {_percent(share.high)}"
    return f"{line} ({between} with {100 * certainty:g} % certainty); {counted}"


def shares(settings: SharesSettings) -> Shares:
    """Report the shares of labels in a scored corpus.

    Writes them to `--to`, if that is given. Raises `UserError`.
    """
    if settings.to:
        preflight.check_file(settings.to, "--to")
    opened = open_output(settings.scored, settings.name)
    result = estimate_shares(opened, settings.by, settings.labelled, settings.certainty, settings.label_separator)
    if settings.to:
        content = json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n"
        storage.write_file(settings.to, content.encode())
    return result


def estimate_shares(
    opened: OpenedOutput,
    keys: Sequence[str] = (),
    labelled: str | None = None,
    certainty: float = 0.95,
    label_separator: str = LABEL_SEPARATOR,
) -> Shares:
    """Estimate the shares of all labels, for the whole corpus and by group.

    Args:
        opened: The output folder, opened for one model.
        keys: Partition keys or kept columns to group the rows by.
        labelled: Path of a sample for shares with labels; None: shares are corrected only.
        certainty: Of the intervals.
        label_separator: Between the labels of a cell of the sample, for a multi-label model.

    Raises:
        UserError: The sample, the keys or the output cannot be used.
    """
    check_keys(opened, keys)
    info = _read_info(opened)
    sample = read_sample(labelled) if labelled else None
    population = sum_up(opened, keys, info.objective if info else None, sample)
    groups = dict(sorted(population.groups.items(), key=lambda item: tuple(value or "" for value in item[0])))
    named: list[tuple[Group, dict[str, str | None], GroupSums]] = [((), {}, population.total)]
    if keys:
        named += [(group, dict(zip(keys, group, strict=True)), sums) for group, sums in groups.items()]
    estimator = None
    if sample is not None and population.sampled is not None:
        estimator = _Estimator.make(opened, sample, population, info, label_separator, certainty)
    result = [share for group, by, sums in named for share in _share_group(opened, info, estimator, group, by, sums)]
    return Shares(result, certainty, _remarks(opened, info))


def _read_info(opened: OpenedOutput) -> BundleInfo | None:
    """Read the record of the model that scored the output; None if it is no longer where it was, or is another one."""
    path = opened.run_file.paths.get(opened.model.model)
    if not path:
        return None
    try:
        info = bundle.read_info(path)
    except UserError:
        return None
    return info if set(info.labels) == set(opened.labels) else None


def _remarks(opened: OpenedOutput, info: BundleInfo | None) -> list[str]:
    earlier = sum(
        output.rows
        for output in opened.outputs
        if output.origin and output.origin.run.bundle != opened.run_file.run.bundle
    )
    remarks = []
    if earlier:
        remarks.append(f"{earlier:,} of {opened.rows:,} rows were scored by earlier bundles")
    if opened.missing_rows:
        remarks.append(f"{opened.missing_rows:,} rows of the corpus are not scored yet; they are in no share")
    return remarks


@dataclass(frozen=True)
class _Estimator:
    """A labelled sample, ready to estimate shares from."""

    sample: Sample
    sampled: SampledRows
    truth: np.ndarray  # (n, labels) float, 1 where a row has a label; 0 for rows without labels
    right: np.ndarray  # (n,) float, 1 where the model's answer is right
    is_labelled: np.ndarray  # (n,) bool: rows that people labelled
    is_whole: bool  # the corpus has the rows that the sample was drawn from, and no others
    power: float
    certainty: float

    @classmethod
    def make(
        cls,
        opened: OpenedOutput,
        sample: Sample,
        population: Population,
        info: BundleInfo | None,
        separator: str,
        certainty: float,
    ) -> "_Estimator":
        """Look the labels up, and choose how much to rely on the model. Raises UserError."""
        assert population.sampled is not None
        scheme = info.label_scheme if info else LabelScheme(opened.labels, several=opened.several)
        scheme = replace(scheme, names=opened.labels)
        numbers, is_labelled = sample.number_labels(scheme, separator if opened.several else None)
        if not is_labelled.any():
            raise UserError(f"{sample.path} has no label yet; fill in the column label, for as many rows as you like")
        sampled = population.sampled
        truth = numbers if numbers.ndim == 2 else numbers[:, None] == np.arange(len(opened.labels))
        right = (sampled.labels == numbers) if numbers.ndim == 1 else (sampled.labels == numbers).all(axis=1)
        truth = np.where(is_labelled[:, None], truth, 0).astype(float)
        is_whole = round(float(sample.stratum_rows.sum())) == population.total.rows
        made = cls(sample, sampled, truth, right.astype(float), is_labelled, is_whole, 1.0, certainty)
        design, used, _ = made.design(np.ones(len(sample), bool))
        return replace(made, power=tune_power(design, truth[used], sampled.scores[used]))

    def members(self, group: Group) -> np.ndarray:
        """Return which of the sample's rows (n,) bool are in a group; in () are all."""
        return np.array([not group or own == group for own in self.sampled.groups], bool)

    def covers(self, members: np.ndarray, rows: int) -> bool:
        """Return whether the sample was drawn from all `rows` of a group, whose sampled rows are `members`."""
        if self.is_whole:
            return True
        stratum = self.sample.strata[1]
        own = np.unique(stratum[members])
        is_apart = not np.isin(stratum[~members], own).any()
        return is_apart and round(float(self.sample.stratum_rows[own].sum())) == rows

    def design(self, members: np.ndarray) -> tuple[Design, np.ndarray, float]:
        """Return the design of the strata that have `members`, its labelled rows, and the rows of strata without any.

        A stratum with less than two labelled rows joins the one whose scores are most like its own.
        """
        stratum, rows = self.sample.strata[1].copy(), self.sample.stratum_rows.copy()
        own = np.unique(stratum[members])
        used = self.is_labelled & np.isin(stratum, own)
        labelled = np.bincount(stratum[used], minlength=len(rows))
        reached = own[labelled[own] >= min(LEAST_OF_STRATUM, labelled[own].max())]
        means = {i: self.sampled.scores[stratum == i].mean(axis=0) for i in own.tolist()}
        unlabelled_rows = float(rows[own[labelled[own] == 0]].sum())
        for i in np.setdiff1d(own, reached).tolist():
            nearest = min(reached.tolist(), key=lambda other: float(np.abs(means[other] - means[i]).sum()))
            rows[nearest] += rows[i]
            stratum[stratum == i] = nearest
        return Design(np.searchsorted(reached, stratum[used]), rows[reached]), used, unlabelled_rows


def _share_group(
    opened: OpenedOutput,
    info: BundleInfo | None,
    estimator: _Estimator | None,
    group: Group,
    by: dict[str, str | None],
    sums: GroupSums,
) -> list[Share]:
    """Return the shares of all labels in a group; none if no row of it has text."""
    if not sums.rows:
        return []
    counted = (sums.counted / sums.rows).tolist()
    note, labelled_rows = "", 0
    if estimator is not None:
        members = estimator.members(group)
        labelled_rows = int((members & estimator.is_labelled).sum())
        if not estimator.covers(members, sums.rows):
            note = "the sample was not drawn from all of these rows; draw a new one for an interval"
        elif labelled_rows < MIN_LABELLED:
            note = f"{labelled_rows} labelled rows are too few for an interval; label {MIN_LABELLED} or more"
        else:
            return _share_sampled(opened, estimator, members, by, sums, labelled_rows)
    corrected, reason = _correct(opened, info, sums)
    note = "; ".join(filter(None, [note, reason]))
    method = NOT_ESTIMATED if corrected is None else CORRECTED
    values = [None] * len(counted) if corrected is None else corrected
    return [
        Share(by, label, sums.rows, counted[i], values[i], None, None, method, labelled_rows, None, note)
        for i, label in enumerate(opened.labels)
    ]


def _share_sampled(
    opened: OpenedOutput,
    estimator: _Estimator,
    members: np.ndarray,
    by: dict[str, str | None],
    sums: GroupSums,
    labelled_rows: int,
) -> list[Share]:
    design, used, unlabelled_rows = estimator.design(members)
    notes = []
    if labelled_rows < FEW_LABELLED:
        notes.append(f"only {labelled_rows} labelled rows: the interval may miss the share more often than asked")
    if unlabelled_rows:
        notes.append(
            f"{unlabelled_rows:,.0f} of the rows are in strata without a label yet; they count as similar ones"
        )
    note = "; ".join(notes)
    sampled, own = estimator.sampled, members[used]

    def estimate(truth: np.ndarray, scores: np.ndarray, own: np.ndarray, mean_score: float, power: float) -> Estimate:
        return estimate_mean(design, truth, scores, own, mean_score, power, estimator.certainty)

    accuracy = None
    has_label = own & sampled.has_label[used]
    if sums.labelled and has_label.sum() >= MIN_LABELLED:
        mean_confidence, confidence = sums.confidence / sums.labelled, np.nan_to_num(sampled.confidence[used])
        accuracy = estimate(estimator.right[used], confidence.astype(float), has_label, mean_confidence, 1.0)
    result = []
    for i, label in enumerate(opened.labels):
        mean_score = float(sums.scores[i] / sums.rows)
        share = estimate(estimator.truth[used, i], sampled.scores[used, i], own, mean_score, estimator.power)
        result.append(
            Share(
                by,
                label,
                sums.rows,
                float(sums.counted[i] / sums.rows),
                share.value,
                share.low,
                share.high,
                SAMPLED,
                labelled_rows,
                accuracy,
                note,
            )
        )
    return result


def _correct(opened: OpenedOutput, info: BundleInfo | None, sums: GroupSums) -> tuple[list[float] | None, str]:
    """Correct the counted shares of a group; or return None, and the reason."""
    if info is None:
        return None, "the model is no longer where it was, so that its errors are not known"
    if np.isnan(sums.decided).any():
        return None, "rows abstained; label a sample, or score with --probabilities"
    decided, metrics = sums.decided / sums.rows, info.metrics
    if not metrics.n:
        return None, "the model has no evaluation rows; adopt it with --data, or label a sample"
    order = [info.labels.index(name) for name in opened.labels]
    if isinstance(metrics, MultiLabelMetrics):
        rates = [metrics.by_label[name] for name in opened.labels]
        return _correct_labels(decided, [(label.rows, label.predicted, label.recall) for label in rates], metrics.n)
    confusion = np.array(metrics.confusion)[np.ix_(order, order)]
    return correct_counts(decided, confusion.tolist()).tolist(), ""


def _correct_labels(
    decided: np.ndarray, rates: Sequence[tuple[int, int, float]], rows: int
) -> tuple[list[float] | None, str]:
    """Correct the shares of a multi-label model: `rates` are rows, predicted rows and recall of each label."""
    values: list[float] = []
    for counted, (true_rows, predicted, recall) in zip(decided.tolist(), rates, strict=True):
        hits = recall * true_rows
        false_rate = (predicted - hits) / max(1, rows - true_rows)
        value = correct_binary(counted, recall, false_rate) if true_rows else None
        values.append(counted if value is None else value)
    return values, ""
