"""How far the texts of a night, and what the model says of them, are from others: from those the bundle was evaluated
on, or from those of past nights.

Distributions (label shares, confidence, text length) are compared by the population stability index, the sum over
bins of (p - q) ln(p / q). By common usage in credit scoring, where it comes from (Siddiqi 2006, Credit Risk
Scorecards), 0.1 to 0.25 is a change to look at and more a change to act on. Of few rows chance alone gives much: of n
and m rows in B bins about a chi-square variable with B - 1 degrees of freedom times 1/n + 1/m (Yurdakul 2018,
Statistical Properties of Population Stability Index). Both limits must be passed.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.special import chdtri, ndtri

from sentiment_core.model.records import ReferenceStatistics
from sentiment_core.scoring.statistics import Counts
from sentiment_core.text import distinct_sketch

LEAST_ROWS = 200  # of fewer nothing is said
CHANCE = 1e-3  # how seldom a comparison passes the limit of chance by chance
# By how much a share may rise; 0.01 is a percentage point
UNKNOWN = "unknown tokens"
SHARE_LIMITS = {UNKNOWN: 0.01, "empty texts": 0.05, "repeated texts": 0.2}
LENGTHS, CONFIDENCES, LABELS = "text length", "confidence", "labels"


@dataclass(frozen=True)
class Profile:
    """What is compared, of any number of rows."""

    rows: int = 0
    distributions: dict[str, list[float]] = field(default_factory=dict)  # rows by bin
    shares: dict[str, list[float]] = field(default_factory=dict)  # part, whole, standard error of the part

    @classmethod
    def of(cls, counts: Counts) -> "Profile":
        lengths, status, tokens, texts = (
            counts.length_histogram.value,
            counts.status.value,
            counts.tokens.value,
            counts.texts.value,
        )
        unknown = counts.unknown_tokens.value
        scored = sum(lengths)
        different = min(scored, distinct_sketch.estimate_distinct(texts))
        return cls(
            counts.rows,
            {
                LABELS: [*map(float, counts.labels.value.values())],
                CONFIDENCES: [*map(float, counts.confidence_histogram.value)],
                LENGTHS: [*map(float, lengths)],
            },
            {
                UNKNOWN: [unknown, tokens, unknown**0.5],
                "empty texts": [*_binomial(status["empty"] + status["null"], counts.rows)],
                "repeated texts": [
                    scored - different,
                    scored,
                    different * distinct_sketch.relative_error(texts),
                ],
            },
        )

    @classmethod
    def of_reference(cls, reference: ReferenceStatistics, labels: list[str]) -> "Profile":
        """Of a bundle's reference statistics; without what an older version did not note."""
        found: dict[str, list[float]] = {}
        if reference.rows:
            shares = [reference.predicted_shares[label] * reference.rows for label in labels]
            found = {LABELS: shares, CONFIDENCES: [*reference.confidence_histogram]}
        unknown = {}
        if reference.length_histogram is not None:
            found[LENGTHS] = [*reference.length_histogram]
            tokens = reference.tokens or 0
            unknown = {UNKNOWN: [*_binomial((reference.unknown_token_share or 0.0) * tokens, tokens)]}
        return cls(reference.rows, found, unknown)

    def of_texts(self, tokens: bool) -> "Profile":
        """Without what a model says of them, which another model says otherwise; with or without what is counted in
        `tokens`."""
        texts = {what: bins for what, bins in self.distributions.items() if what == LENGTHS and tokens}
        shares = {what: share for what, share in self.shares.items() if what != UNKNOWN or tokens}
        return Profile(self.rows, texts, shares)

    def __add__(self, more: "Profile") -> "Profile":
        def both(one: dict[str, list[float]], other: dict[str, list[float]]) -> dict[str, list[float]]:
            return {
                name: (np.array(one.get(name, 0)) + np.array(other.get(name, 0))).tolist() for name in {**one, **other}
            }

        shares = both(self.shares, more.shares)
        for name, share in shares.items():
            share[2] = math.hypot(*(one.shares.get(name, [0.0, 0.0, 0.0])[2] for one in (self, more)))
        return Profile(self.rows + more.rows, both(self.distributions, more.distributions), shares)


@dataclass(frozen=True)
class Comparison:
    """One thing compared, and the two limits that it must pass to be drift."""

    what: str
    of: str  # which rows
    against: str  # which others
    value: float  # population stability index, or how much a share has risen
    limit: float  # that matters
    chance: float  # that chance alone seldom passes
    before: float | None = None  # shares: then and now
    now: float | None = None

    @property
    def drifted(self) -> bool:
        return self.value > max(self.limit, self.chance)

    def __str__(self) -> str:
        if self.now is None:
            told = f"stability index {self.value:.2f}, limit {self.limit:g}"
            return f"{self.what}: {self.of} is unlike {self.against} ({told})"
        before, now = (f"{100 * (share or 0):.1f} %" for share in (self.before, self.now))
        return f"{self.what}: {now} in {self.of}, {before} in {self.against}"


def stability_index(one: list[float], other: list[float], seldom: float = CHANCE) -> tuple[float, float]:
    """The population stability index of two histograms with the same bins, and what chance alone passes as `seldom`, a
    probability. Bins empty in both are left out; half a row is added to each of the others."""
    a, b = np.array(one, float), np.array(other, float)
    used = (a > 0) | (b > 0)
    a, b = a[used] + 0.5, b[used] + 0.5
    p, q = a / a.sum(), b / b.sum()
    chance = float(chdtri(max(1, len(a) - 1), seldom) * (1 / a.sum() + 1 / b.sum()))
    return float(((p - q) * np.log(p / q)).sum()), chance


def compare(now: Profile, before: Profile, of: str, against: str, limit: float, among: int = 1) -> list[Comparison]:
    """Of each thing that both profiles know; nothing where either has fewer than `LEAST_ROWS` rows. Where it is one
    `among` many, chance gets no more chances for that: they all share in `CHANCE` (Bonferroni's correction)."""
    seldom = CHANCE / among
    if min(now.rows, before.rows) < LEAST_ROWS:
        return []
    found = []
    for what, histogram in now.distributions.items():
        others = before.distributions.get(what, [])
        if sum(histogram) and sum(others):
            value, chance = stability_index(histogram, others, seldom)
            found.append(Comparison(what, of, against, value, limit, chance))
    for what, (part, whole, error) in now.shares.items():
        part_before, whole_before, error_before = before.shares.get(what, (0.0, 0.0, 0.0))
        if whole and whole_before:
            here, there = part / whole, part_before / whole_before
            spread = ((error / whole) ** 2 + (error_before / whole_before) ** 2) ** 0.5
            chance = float(-ndtri(seldom) * spread)
            found.append(Comparison(what, of, against, here - there, SHARE_LIMITS[what], chance, there, here))
    return found


def _binomial(part: float, whole: float) -> tuple[float, float, float]:
    """Part, whole, and the standard error of the part."""
    return part, whole, (part * (1 - part / whole)) ** 0.5 if whole else 0.0
