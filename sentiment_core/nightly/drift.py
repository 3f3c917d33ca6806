"""Measure drift: how far a night's texts, and what the model says of them, are from other rows.

The other rows are those that the bundle was evaluated on, or those of past nights. To add a statistic, add an entry to
`DISTRIBUTIONS` or `SHARES` below: it is then compared, told and drawn. What it reads must be counted first: from scored
rows by a class in `scoring/statistics.py`, from evaluation rows by `reference_statistics` in `training/diagnostics.py`,
in a field of `ReferenceStatistics` that older bundles may lack. Nights whose records lack a statistic are not compared
by it.

Distributions are compared by the population stability index, the sum over bins of (p - q) ln(p / q). It comes from
credit scoring, where by common usage 0.1 to 0.25 is a change to look at and more a change to act on (Siddiqi 2006,
Credit Risk Scorecards). Chance alone gives large values when rows are few: for n and m rows in B bins the index is
about a chi-square variable with B - 1 degrees of freedom times 1/n + 1/m (Yurdakul 2018, Statistical Properties of
Population Stability Index). A value is drift if it is above both its limit and this noise limit.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from scipy.special import chdtri, ndtri

from sentiment_core.model.records import ReferenceStatistics
from sentiment_core.scoring.statistics import Counts
from sentiment_core.text import distinct_sketch

MIN_ROWS = 200  # with fewer, nothing is compared
ALPHA = 1e-3  # probability that chance alone passes the noise limit

LABELS, CONFIDENCES, LENGTHS = "labels", "confidence", "text length"
UNKNOWN, EMPTY, REPEATED = "unknown tokens", "empty texts", "repeated texts"

# what must be the same on both sides for a statistic to mean the same
DecidedBy = Literal["model", "tokenizer", "text"]
ShareValue = tuple[float, float, float]  # part, total, standard error of the part


@dataclass(frozen=True)
class Distribution:
    """A statistic whose value is a histogram: rows by bin."""

    name: str
    decided_by: DecidedBy
    from_counts: Callable[[Counts], Iterable[int]]
    from_reference: Callable[[ReferenceStatistics, Sequence[str]], Sequence[float] | None]  # None: not noted
    x_label: str  # of its figure
    bin_names: Callable[[Sequence[str], int], Sequence[str]]  # of the model's labels, and the number of bins
    draw_empty_ends: bool = False  # or only from the first to the last bin with rows


@dataclass(frozen=True)
class Share:
    """A statistic whose value is a part of a total. It drifts if it rises."""

    name: str
    decided_by: DecidedBy
    limit: float  # by how much it may rise; 0.01 is a percentage point
    from_counts: Callable[[Counts], ShareValue]
    from_reference: Callable[[ReferenceStatistics], ShareValue | None] = lambda reference: None


def _binomial_share(part: float, total: float) -> ShareValue:
    return part, total, (part * (1 - part / total)) ** 0.5 if total else 0.0


def _label_rows(reference: ReferenceStatistics, labels: Sequence[str]) -> list[float] | None:
    return [reference.predicted_shares[label] * reference.rows for label in labels] if reference.rows else None


def _unknown_tokens(counts: Counts) -> ShareValue:
    unknown = counts.unknown_tokens.value
    return unknown, counts.tokens.value, unknown**0.5


def _unknown_tokens_in_reference(reference: ReferenceStatistics) -> ShareValue | None:
    if reference.length_histogram is None:
        return None
    tokens = reference.tokens or 0
    return _binomial_share((reference.unknown_token_share or 0.0) * tokens, tokens)


def _repeated_texts(counts: Counts) -> ShareValue:
    scored, sketch = sum(counts.length_histogram.value), counts.texts.value
    distinct = min(scored, distinct_sketch.estimate_distinct(sketch))
    return scored - distinct, scored, distinct * distinct_sketch.relative_error(sketch)


DISTRIBUTIONS = (
    Distribution(
        LABELS,
        "model",
        lambda counts: counts.labels.value.values(),
        _label_rows,
        "label",
        lambda labels, bins: labels,
        draw_empty_ends=True,
    ),
    Distribution(
        CONFIDENCES,
        "model",
        lambda counts: counts.confidence_histogram.value,
        lambda reference, labels: reference.confidence_histogram if reference.rows else None,
        "confidence, from",
        lambda labels, bins: [f"{i / bins:.2f}" for i in range(bins)],
    ),
    Distribution(
        LENGTHS,
        "tokenizer",
        lambda counts: counts.length_histogram.value,
        lambda reference, labels: reference.length_histogram,
        "tokens, from",
        lambda labels, bins: [f"{2**i:,}" for i in range(bins)],
    ),
)
SHARES = (
    Share(UNKNOWN, "tokenizer", 0.01, _unknown_tokens, _unknown_tokens_in_reference),
    Share(
        EMPTY,
        "text",
        0.05,
        lambda counts: _binomial_share(counts.status.value["empty"] + counts.status.value["null"], counts.rows),
    ),
    Share(REPEATED, "text", 0.2, _repeated_texts),
)
OF_TEXTS = {statistic.name for statistic in (*DISTRIBUTIONS, *SHARES) if statistic.decided_by != "model"}


@dataclass(frozen=True)
class Profile:
    """The values of all statistics over a number of rows."""

    rows: int = 0
    distributions: dict[str, list[float]] = field(default_factory=dict)  # rows by bin
    shares: dict[str, ShareValue] = field(default_factory=dict)  # part, total, standard error of the part
    # rows whose labels were decided, where a row may have several; None: each of them is in one bin of `LABELS`
    labelled_rows: float | None = None

    @classmethod
    def from_counts(cls, counts: Counts, several: bool = False) -> "Profile":
        """Build the profile of scored rows; `several`: of a bundle that gives several labels a row."""
        labelled = float(counts.status.value["ok"] + counts.status.value["truncated"]) if several else None
        distributions = {
            distribution.name: [float(rows) for rows in distribution.from_counts(counts)]
            for distribution in DISTRIBUTIONS
        }
        shares = {share.name: share.from_counts(counts) for share in SHARES}
        return cls(counts.rows, distributions, shares, labelled)

    @classmethod
    def from_reference(cls, reference: ReferenceStatistics, labels: Sequence[str], several: bool = False) -> "Profile":
        """Build the profile of a bundle's evaluation rows, without what an older version did not note."""
        distributions = {
            distribution.name: distribution.from_reference(reference, labels) for distribution in DISTRIBUTIONS
        }
        shares = {share.name: share.from_reference(reference) for share in SHARES}
        return cls(
            reference.rows,
            {name: [*rows] for name, rows in distributions.items() if rows is not None},
            {name: value for name, value in shares.items() if value is not None},
            float(reference.rows) if several else None,
        )

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Profile":
        """Build the profile from a night's record. Raises TypeError or AttributeError for other content."""
        shares = {name: (part, total, error) for name, (part, total, error) in content.get("shares", {}).items()}
        distributions = dict(content.get("distributions", {}))
        return cls(content.get("rows", 0), distributions, shares, content.get("labelled_rows"))

    def to_json(self) -> dict[str, Any]:
        """Return the profile as it stands in a night's record."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def bin_shares(self, distribution: str) -> np.ndarray:
        """Return the share of rows in each bin of a distribution; where rows have several labels these exceed 1."""
        rows = np.array(self.distributions.get(distribution, ()), float)
        of_labels = distribution == LABELS and self.labelled_rows is not None
        return rows / max(1, self.labelled_rows or 0 if of_labels else rows.sum())

    def without_model(self, same_tokenizer: bool) -> "Profile":
        """Leave out the statistics that depend on the model, and on the tokenizer unless it is the same."""
        comparable = {"text", "tokenizer"} if same_tokenizer else {"text"}
        names = {statistic.name for statistic in (*DISTRIBUTIONS, *SHARES) if statistic.decided_by in comparable}
        return Profile(
            self.rows,
            {name: rows for name, rows in self.distributions.items() if name in names},
            {name: value for name, value in self.shares.items() if name in names},
        )

    def __add__(self, other: "Profile") -> "Profile":
        distributions = {
            name: (np.array(self.distributions.get(name, 0.0)) + np.array(other.distributions.get(name, 0.0))).tolist()
            for name in self.distributions | other.distributions
        }
        shares = {}
        for name in self.shares | other.shares:
            part, total, error = self.shares.get(name, (0.0, 0.0, 0.0))
            other_part, other_total, other_error = other.shares.get(name, (0.0, 0.0, 0.0))
            shares[name] = (part + other_part, total + other_total, math.hypot(error, other_error))
        labelled = [rows for rows in (self.labelled_rows, other.labelled_rows) if rows is not None]
        return Profile(self.rows + other.rows, distributions, shares, sum(labelled) if labelled else None)


@dataclass(frozen=True)
class Comparison:
    """A statistic of some rows beside that of others, and the two limits that it must pass to be drift."""

    statistic: str = field(metadata={"json_name": "what"})
    rows: str = field(metadata={"json_name": "of"})  # whose they are, in a few words
    against: str  # the same of the others
    value: float  # population stability index, or by how much a share has risen
    limit: float  # of a change that matters
    noise_limit: float = field(metadata={"json_name": "chance"})  # which chance alone rarely passes
    before: float | None = None  # a share in the other rows
    now: float | None = None  # a share in the rows
    drifted: bool = False  # whether the value is above both limits
    sentence: str = field(default="", metadata={"json_name": "told"})  # for people

    @classmethod
    def of_distribution(
        cls, statistic: str, rows: str, against: str, value: float, limit: float, noise_limit: float
    ) -> "Comparison":
        """Judge a population stability index."""
        sentence = f"{statistic}: {rows} is unlike {against} (stability index {value:.2f}, limit {limit:g})"
        drifted = value > max(limit, noise_limit)
        return cls(statistic, rows, against, value, limit, noise_limit, drifted=drifted, sentence=sentence)

    @classmethod
    def of_label(
        cls,
        label: str,
        now: "Profile",
        before: "Profile",
        index: int,
        rows: str,
        against: str,
        limit: float,
        alpha: float,
    ) -> "Comparison":
        """Judge the share of rows that have a label, by the index of the rows with and without it."""
        counts, others = (
            [with_label := profile.distributions[LABELS][index], (profile.labelled_rows or 0.0) - with_label]
            for profile in (now, before)
        )
        value, noise_limit = stability_index(counts, others, alpha)
        percent, percent_before = (100 * profile.bin_shares(LABELS)[index] for profile in (now, before))
        sentence = (
            f"{LABELS}: {percent:.1f} % of {rows} have {label!r}, {percent_before:.1f} % of {against} (stability index "
            f"{value:.2f}, limit {limit:g})"
        )
        drifted = value > max(limit, noise_limit)
        return cls(LABELS, rows, against, value, limit, noise_limit, drifted=drifted, sentence=sentence)

    @classmethod
    def of_share(
        cls, statistic: str, rows: str, against: str, limit: float, noise_limit: float, before: float, now: float
    ) -> "Comparison":
        """Judge by how much a share has risen."""
        value = now - before
        sentence = f"{statistic}: {100 * now:.1f} % in {rows}, {100 * before:.1f} % in {against}"
        drifted = value > max(limit, noise_limit)
        return cls(statistic, rows, against, value, limit, noise_limit, before, now, drifted, sentence)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Comparison":
        """Build the comparison from a night's record. Raises TypeError for other content."""
        names = {item.metadata.get("json_name", item.name): item.name for item in fields(cls)}
        return cls(**{names[key]: value for key, value in content.items() if key in names})

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as it stands in a night's record."""
        return {item.metadata.get("json_name", item.name): getattr(self, item.name) for item in fields(self)}

    def __str__(self) -> str:
        return self.sentence


def stability_index(counts: Sequence[float], others: Sequence[float], alpha: float = ALPHA) -> tuple[float, float]:
    """Compute the population stability index of two histograms with the same bins.

    Bins that are empty in both are left out; half a row is added to each of the others.

    Returns:
        The index, and its noise limit, which chance alone passes with the probability `alpha`.
    """
    a, b = np.array(counts, float), np.array(others, float)
    used = (a > 0) | (b > 0)
    a, b = a[used] + 0.5, b[used] + 0.5
    p, q = a / a.sum(), b / b.sum()
    noise_limit = float(chdtri(max(1, len(a) - 1), alpha) * (1 / a.sum() + 1 / b.sum()))
    return float(((p - q) * np.log(p / q)).sum()), noise_limit


def compare(
    now: Profile,
    before: Profile,
    rows: str,
    against: str,
    limit: float,
    tests: int = 1,
    labels: Sequence[str] = (),
) -> list[Comparison]:
    """Compare all statistics that both profiles have; none if either has fewer than `MIN_ROWS` rows.

    Args:
        now: The profile to judge.
        before: The profile to compare it with.
        rows: Whose rows `now` is about, in a few words.
        against: The same for `before`.
        limit: Population stability index from which a difference matters.
        tests: How many such comparisons share `ALPHA` (Bonferroni's correction), so that many partitions raise no more
            false alarms than one.
        labels: Of the model. Where rows may have several, the label whose share of rows changed most stands for all.
    """
    if min(now.rows, before.rows) < MIN_ROWS:
        return []
    alpha = ALPHA / tests
    comparisons = []
    for distribution in DISTRIBUTIONS:
        counts, others = (profile.distributions.get(distribution.name, []) for profile in (now, before))
        if distribution.name == LABELS and now.labelled_rows and before.labelled_rows and counts and others:
            of_labels = (
                Comparison.of_label(label, now, before, i, rows, against, limit, alpha / len(labels))
                for i, label in enumerate(labels)
            )
            comparisons.append(max(of_labels, key=lambda comparison: comparison.value))
        elif sum(counts) and sum(others):
            value, noise_limit = stability_index(counts, others, alpha)
            comparisons.append(Comparison.of_distribution(distribution.name, rows, against, value, limit, noise_limit))
    for share in SHARES:
        part, total, error = now.shares.get(share.name, (0.0, 0.0, 0.0))
        part_before, total_before, error_before = before.shares.get(share.name, (0.0, 0.0, 0.0))
        if total and total_before:
            spread = ((error / total) ** 2 + (error_before / total_before) ** 2) ** 0.5
            noise_limit = float(-ndtri(alpha) * spread)
            share_before, share_now = part_before / total_before, part / total
            comparisons.append(
                Comparison.of_share(share.name, rows, against, share.limit, noise_limit, share_before, share_now)
            )
    return comparisons
