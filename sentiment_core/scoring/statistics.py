"""Statistics of scored rows: named sums that add up over rows, units and runs.

To add a statistic, write one class here and give `Counts` a field of it. The field's name is its key in footers and in
what is summed from them. Files written before have no such key; there the statistic counts as `zero`.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Generic, Self, TypeVar, get_type_hints

import numpy as np

from sentiment_core.scoring.rows import ReadTexts, ReusedRows, ScoredRows
from sentiment_core.text import distinct_sketch
from sentiment_core.text.status import STATUS_NAMES
from sentiment_core.text.token_lists import LENGTH_BINS, length_histogram

CONFIDENCE_BINS = 20  # from 0 to 1

Value = TypeVar("Value")


@dataclass(frozen=True)
class Statistic(Generic[Value]):
    """A sum over rows. Its value is what stands in JSON.

    A statistic of texts overrides `add_texts`, which runs where texts are read; one of scores overrides `add_rows`,
    which runs once the rows are scored. Neither may depend on how rows are cut into batches.
    """

    value: Value

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        """Return the statistic of no rows, for a bundle with these labels."""
        raise NotImplementedError

    def add_texts(self, texts: ReadTexts) -> Self:
        """Return the sum with some of a unit's texts added."""
        return self

    def add_rows(self, rows: ScoredRows | ReusedRows) -> Self:
        """Return the sum with a unit's scored rows added."""
        return self

    def merge(self, other: Self) -> Self:
        """Return the sum over the rows of both."""
        raise NotImplementedError

    def to_json(self) -> Value:
        """Return the value as it stands in JSON."""
        return self.value

    @classmethod
    def from_json(cls, value: Value) -> Self:
        """Build the statistic from what `to_json` returned."""
        return cls(value)


class Total(Statistic[int]):
    """A number that adds up."""

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        return cls(0)

    def merge(self, other: Self) -> Self:
        return type(self)(self.value + other.value)


class CountByName(Statistic[dict[str, int]]):
    """Rows by name; both sides of a sum have the same names."""

    def merge(self, other: Self) -> Self:
        return type(self)({name: rows + other.value[name] for name, rows in self.value.items()})


class Histogram(Statistic[list[int]]):
    """Rows by bin; the bins are fixed."""

    def merge(self, other: Self) -> Self:
        return type(self)([a + b for a, b in zip(self.value, other.value, strict=True)])


class StatusCounts(CountByName):
    """Rows by status."""

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        return cls(dict.fromkeys(STATUS_NAMES, 0))

    def add_rows(self, rows: ScoredRows | ReusedRows) -> Self:
        return self.merge(
            type(self)({name: int((rows.status == code).sum()) for code, name in enumerate(STATUS_NAMES)})
        )


class LabelCounts(CountByName):
    """Rows by label."""

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        return cls(dict.fromkeys(labels, 0))

    def add_rows(self, rows: ScoredRows | ReusedRows) -> Self:
        return self.merge(type(self)(dict(zip(rows.labels, rows.label_counts.tolist(), strict=True))))


class ConfidenceHistogram(Histogram):
    """Scored rows by confidence, in bins of equal width from 0 to 1. Rows that abstain are in it."""

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        return cls([0] * CONFIDENCE_BINS)

    def add_rows(self, rows: ScoredRows | ReusedRows) -> Self:
        counts, _ = np.histogram(rows.confidence[rows.has_score], bins=CONFIDENCE_BINS, range=(0, 1))
        return self.merge(type(self)(counts.tolist()))


class LengthHistogram(Histogram):
    """Rows by number of tokens: 1, 2 to 3, 4 to 7, and so on. Rows without tokens are in no bin."""

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        return cls([0] * LENGTH_BINS)

    def add_rows(self, rows: ScoredRows | ReusedRows) -> Self:
        return self.merge(type(self)(length_histogram(rows.lengths)))


class TokenCount(Total):
    """Tokens, padding apart."""

    def add_rows(self, rows: ScoredRows | ReusedRows) -> Self:
        return type(self)(self.value + int(rows.lengths.sum()))


class UnknownTokens(Total):
    """Tokens that the tokenizer does not know."""

    def add_texts(self, texts: ReadTexts) -> Self:
        return type(self)(self.value + int((texts.row_tokens.ids == texts.unknown_id).sum()))


class DistinctTexts(Statistic[list[int]]):
    """A sketch of the texts that have tokens, from which the number of different ones is estimated."""

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        return cls([])

    def add_texts(self, texts: ReadTexts) -> Self:
        return self.merge(type(self)(texts.sketch))

    def merge(self, other: Self) -> Self:
        return type(self)(distinct_sketch.merge_sketches(self.value, other.value))


class EscalatedRows(Total):
    """Rows that the large model of a cascade computed."""

    def add_rows(self, rows: ScoredRows | ReusedRows) -> Self:
        return self if rows.escalated is None else type(self)(self.value + int(rows.escalated.sum()))


@dataclass(frozen=True)
class Counts:
    """All statistics of a unit by one model, or of many units."""

    units: int
    status: StatusCounts
    labels: LabelCounts
    confidence_histogram: ConfidenceHistogram
    length_histogram: LengthHistogram
    tokens: TokenCount
    unknown_tokens: UnknownTokens
    texts: DistinctTexts
    escalated_rows: EscalatedRows = EscalatedRows(0)  # noqa: RUF009 (frozen)

    @property
    def rows(self) -> int:
        """The number of rows, whatever their status."""
        return sum(self.status.value.values())

    @classmethod
    def zero(cls, labels: Sequence[str]) -> "Counts":
        """Return the statistics of no rows, for a bundle with these labels."""
        statistics: dict[str, Any] = {name: statistic.zero(labels) for name, statistic in STATISTICS.items()}
        return cls(0, **statistics)

    def add_texts(self, texts: ReadTexts) -> "Counts":
        """Return the statistics with some of a unit's texts added."""
        return Counts(self.units, **{name: getattr(self, name).add_texts(texts) for name in STATISTICS})

    def add_sketch(self, sketch: list[int]) -> "Counts":
        """Return the statistics with the sketch of texts that are not tokenized added."""
        return replace(self, texts=self.texts.merge(DistinctTexts(sketch)))

    def add_unit(self, rows: ScoredRows | ReusedRows) -> "Counts":
        """Return the statistics with all rows of one unit added that were scored, or whose scores were reused."""
        return Counts(self.units + 1, **{name: getattr(self, name).add_rows(rows) for name in STATISTICS})

    def merge(self, other: "Counts") -> "Counts":
        """Return the statistics of the rows of both."""
        sums = {name: getattr(self, name).merge(getattr(other, name)) for name in STATISTICS}
        return Counts(self.units + other.units, **sums)

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as they stand in a footer."""
        content = {"units": self.units} | {name: getattr(self, name).to_json() for name in STATISTICS}
        if not self.escalated_rows.value:  # as of all models that are no cascades
            del content["escalated_rows"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Counts":
        """Build the statistics from a footer; those that it does not have are zero.

        Raises KeyError, TypeError or AttributeError for other content.
        """
        labels = list(content["labels"])
        statistics: dict[str, Any] = {
            name: statistic.from_json(content[name]) if name in content else statistic.zero(labels)
            for name, statistic in STATISTICS.items()
        }
        return cls(content["units"], **statistics)


STATISTICS: dict[str, type[Statistic]] = {
    name: kind for name, kind in get_type_hints(Counts).items() if name != "units"
}


@dataclass(frozen=True)
class PassCounts:
    """The statistics of each model of a pass, over the same rows: those computed, and apart from them those reused.

    A unit's are kept in its footer, so that a summary covers what earlier runs scored. Reused rows have no tokens.
    """

    models: dict[str, Counts]  # of computed rows, by the model's name; "" of a single one
    reused: dict[str, Counts] = field(default_factory=dict)  # of rows with known texts, in the same way; or empty

    @property
    def units(self) -> int:
        """The number of units."""
        return self._any.units

    @property
    def rows(self) -> int:
        """The number of computed rows, whatever their status."""
        return self._any.rows

    @property
    def reused_rows(self) -> int:
        """The number of rows whose scores were reused."""
        return next((counts.rows for counts in self.reused.values()), 0)

    @property
    def tokens(self) -> int:
        """The tokens of all models, padding apart."""
        return sum(counts.tokens.value for counts in self.models.values())

    @property
    def all_rows(self) -> "PassCounts":
        """The statistics of computed and reused rows together."""
        return PassCounts(
            {
                name: replace(counts.merge(self.reused[name]), units=counts.units) if self.reused else counts
                for name, counts in self.models.items()
            }
        )

    @property
    def _any(self) -> Counts:
        return next(iter(self.models.values()))

    @property
    def labels(self) -> dict[str, list[str]]:
        """The labels of each model."""
        return {name: list(counts.labels.value) for name, counts in self.models.items()}

    @classmethod
    def zero(cls, labels: Mapping[str, Sequence[str]]) -> "PassCounts":
        """Return the statistics of no rows, for models with these labels."""
        return cls({name: Counts.zero(names) for name, names in labels.items()})

    @classmethod
    def total(cls, zero: "PassCounts", parts: Iterable["PassCounts"]) -> "PassCounts":
        """Return the sum of several; `zero` of none."""
        return functools.reduce(PassCounts.merge, parts, zero)

    def add_texts(self, models: Iterable[str], texts: ReadTexts) -> "PassCounts":
        """Return the statistics with some of a unit's texts added, as these models read them."""
        return replace(self, models=self.models | {name: self.models[name].add_texts(texts) for name in models})

    def add_reused_texts(self, sketches: Mapping[str, list[int]]) -> "PassCounts":
        """Return the statistics with the texts of reused rows added, as sketches of all models; or of none."""
        if not sketches:
            return self
        before = self.reused or PassCounts.zero(self.labels).models
        return replace(self, reused={name: before[name].add_sketch(sketch) for name, sketch in sketches.items()})

    def add_unit(
        self, rows: Mapping[str, ScoredRows], reused_rows: Mapping[str, ReusedRows] = MappingProxyType({})
    ) -> "PassCounts":
        """Return the statistics with all rows of one unit added, computed and reused ones, by the models' names."""
        reused = self.reused or (PassCounts.zero(self.labels).models if reused_rows else {})
        return PassCounts(
            {name: counts.add_unit(rows[name]) for name, counts in self.models.items()},
            {name: reused[name].add_unit(reused_rows[name]) for name in reused_rows} or reused,
        )

    def merge(self, other: "PassCounts") -> "PassCounts":
        """Return the statistics of the rows of both."""
        both = self.reused and other.reused
        return PassCounts(
            {name: counts.merge(other.models[name]) for name, counts in self.models.items()},
            {name: counts.merge(other.reused[name]) for name, counts in self.reused.items()}
            if both
            else self.reused or other.reused,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as they stand in a footer: of a single model without a name its own alone."""
        models, reused = (
            {name: counts.to_json() for name, counts in part.items()} for part in (self.models, self.reused)
        )
        return models.get("", {"models": models}) | ({"reused": reused} if reused else {})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PassCounts":
        """Build the statistics from a footer. Raises KeyError, TypeError or AttributeError for other content."""
        models, reused = (
            {name: Counts.from_json(counts) for name, counts in part.items()}
            for part in (content.get("models", {"": content}), content.get("reused", {}))
        )
        if not models or (reused and reused.keys() != models.keys()):
            raise KeyError("models")
        return cls(models, reused)
