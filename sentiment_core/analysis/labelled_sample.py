"""A labelled sample beside what the model said of its rows: which groups of the corpus it can speak for, and how."""

from dataclasses import dataclass, replace

import numpy as np

from sentiment_core.analysis.estimation import Design, effective_rows, estimate_mean, tune_power
from sentiment_core.analysis.population import GroupSums, Population, SampledRows
from sentiment_core.analysis.records import Estimate
from sentiment_core.analysis.sample_file import Sample
from sentiment_core.analysis.scored_rows import Group, OpenedOutput
from sentiment_core.data.labels import LabelScheme
from sentiment_core.errors import UserError

MIN_LABELLED, MIN_EFFECTIVE = 10, 5  # rows of a group, below which it gets no interval
FEW_LABELLED, FEW_EFFECTIVE = 50, 20  # below which its interval comes with a note
MAX_UNLABELLED = 0.05  # share of a group's rows in strata without a label, above which it gets no interval


@dataclass(frozen=True)
class LabelledSample:
    """A sample for shares with labels. Arrays have one value a row of the sample, in its order."""

    sample: Sample
    sampled: SampledRows
    truth: np.ndarray  # (n, labels) float, 1 where a row has a label; 0 for rows without labels
    right: np.ndarray  # (n,) float, 1 where the model's answer is right
    is_labelled: np.ndarray  # (n,) bool: rows that people labelled
    is_whole: bool  # the corpus has as many rows as the sample was drawn from
    mean_scores: np.ndarray  # (strata, labels) of the sample's rows
    group_numbers: dict[Group, int]
    group_of: np.ndarray  # (n,) int, number of each row's group
    certainty: float  # of intervals
    power: float = 1.0  # how much the model is relied on, see `tune_power`

    @classmethod
    def make(
        cls,
        opened: OpenedOutput,
        sample: Sample,
        population: Population,
        scheme: LabelScheme,
        separator: str,
        certainty: float,
    ) -> "LabelledSample":
        """Look up the labels of a sample among those of the model.

        Args:
            opened: The output folder.
            sample: The sample.
            population: The corpus, with the sample's rows in it.
            scheme: How labels meet the model's.
            separator: Between the labels of a cell, for a multi-label model.
            certainty: Of intervals.

        Raises:
            UserError: Nothing is labelled, or a label is none of the model's.
        """
        assert population.sampled is not None, "the sample was looked up"
        scheme = replace(scheme, names=opened.labels)
        numbers, is_labelled = sample.number_labels(scheme, separator if opened.several else None)
        if not is_labelled.any():
            raise UserError(f"{sample.path} has no label yet; fill in the column label, for as many rows as you like")
        sampled, stratum = population.sampled, sample.strata[1]
        truth = numbers if numbers.ndim == 2 else numbers[:, None] == np.arange(len(opened.labels))
        right = sampled.labels == numbers
        sums = np.stack([np.bincount(stratum, column) for column in sampled.scores.T], axis=1)
        group_numbers = {group: number for number, group in enumerate(dict.fromkeys(sampled.groups))}
        made = cls(
            sample=sample,
            sampled=sampled,
            truth=np.where(is_labelled[:, None], truth, 0).astype(float),
            right=(right if right.ndim == 1 else right.all(axis=1)).astype(float),
            is_labelled=is_labelled,
            is_whole=round(float(sample.stratum_rows.sum())) == population.total.rows,
            mean_scores=sums / np.bincount(stratum)[:, None],
            group_numbers=group_numbers,
            group_of=np.array([group_numbers[group] for group in sampled.groups]),
            certainty=certainty,
        )
        design, used, _ = made.design(made.members(()))
        return replace(made, power=tune_power(design, made.truth[used], sampled.scores[used]))

    def members(self, group: Group) -> np.ndarray:
        """Return which of the sample's rows (n,) bool are in a group; in () are all."""
        if not group:
            return np.ones(len(self.group_of), bool)
        return self.group_of == self.group_numbers.get(group, -1)

    def count_labelled(self, group: Group) -> int:
        """Count the labelled rows of a group."""
        return int((self.members(group) & self.is_labelled).sum())

    def find_obstacle(self, group: Group, rows: int) -> str:
        """Say why a group of so many rows gets no interval; return nothing if it gets one."""
        members = self.members(group)
        if not self._covers(members, rows):
            return "the sample was not drawn from all of these rows; draw a new one for an interval"
        labelled = self.count_labelled(group)
        if labelled < MIN_LABELLED:
            return f"{labelled} labelled rows are too few for an interval; label {MIN_LABELLED} or more"
        design, used, unlabelled = self.design(members)
        if unlabelled > MAX_UNLABELLED:
            return f"{100 * unlabelled:.0f} % of the rows are in strata without a label yet; label more for an interval"
        if effective_rows(design, members[used]) < MIN_EFFECTIVE:
            return "a few labelled rows stand for most of these rows; draw a sample by this key for an interval"
        return ""

    def _covers(self, members: np.ndarray, rows: int) -> bool:
        """Return whether the sample was drawn from all `rows` of a group, whose sampled rows are `members`."""
        if self.is_whole:
            return True
        stratum = self.sample.strata[1]
        own = np.unique(stratum[members])
        is_apart = not np.isin(stratum[~members], own).any()
        return is_apart and round(float(self.sample.stratum_rows[own].sum())) == rows

    def design(self, members: np.ndarray) -> tuple[Design, np.ndarray, float]:
        """Return the design of the strata that have `members`, its labelled rows, and the share of unlabelled strata.

        A stratum without a labelled row joins the one whose scores are most like its own.
        """
        stratum, rows = self.sample.strata[1], self.sample.stratum_rows
        own = np.unique(stratum[members])
        used = self.is_labelled & np.isin(stratum, own)
        labelled = np.unique(stratum[used])
        joined = rows.copy()
        for i in np.setdiff1d(own, labelled).tolist():
            distances = np.abs(self.mean_scores[labelled] - self.mean_scores[i]).sum(axis=1)
            joined[labelled[distances.argmin()]] += rows[i]
        unlabelled = 1 - float(rows[labelled].sum() / rows[own].sum())
        return Design(np.searchsorted(labelled, stratum[used]), joined[labelled]), used, unlabelled

    def estimate(self, group: Group, sums: GroupSums) -> tuple[list[Estimate], Estimate | None, str]:
        """Estimate a group that has no obstacle.

        Returns:
            The share of each label, the accuracy of the model's labels (None where too few labelled rows have one), and
            what to know before the numbers are reported.
        """
        members = self.members(group)
        design, used, unlabelled = self.design(members)
        own, scores = members[used], self.sampled.scores[used]
        notes = []
        labelled = self.count_labelled(group)
        if labelled < FEW_LABELLED or effective_rows(design, own) < FEW_EFFECTIVE:
            notes.append(f"only {labelled} labelled rows: the interval may miss the share more often than asked")
        if unlabelled:
            notes.append(
                f"{100 * unlabelled:.1f} % of the rows are in strata without a label yet, and count as similar ones"
            )
        mean_scores = sums.scores / sums.rows
        shares = [
            estimate_mean(
                design, self.truth[used, i], scores[:, i], own, float(mean_scores[i]), self.power, self.certainty
            )
            for i in range(scores.shape[1])
        ]
        return shares, self._estimate_accuracy(design, used, own, sums), "; ".join(notes)

    def _estimate_accuracy(self, design: Design, used: np.ndarray, own: np.ndarray, sums: GroupSums) -> Estimate | None:
        has_label = own & self.sampled.has_label[used]
        if not sums.labelled or has_label.sum() < MIN_LABELLED or effective_rows(design, has_label) < MIN_EFFECTIVE:
            return None
        confidence = np.nan_to_num(self.sampled.confidence[used]).astype(float)
        mean_confidence = sums.confidence / sums.labelled
        return estimate_mean(design, self.right[used], confidence, has_label, mean_confidence, 1.0, self.certainty)
