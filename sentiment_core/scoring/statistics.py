"""Statistics of scored rows: named sums that add up over rows, units and runs.

To add a statistic, write one class here and give `Counts` a field of it. The field's name is its key in footers and in
what is summed from them. Files written before have no such key; there the statistic counts as `zero`.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar, get_type_hints

import numpy as np

from sentiment_core.scoring.rows import ReadTexts, ScoredRows
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

    def add_rows(self, rows: ScoredRows) -> Self:
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

    def add_rows(self, rows: ScoredRows) -> Self:
        return self.merge(
            type(self)({name: int((rows.status == code).sum()) for code, name in enumerate(STATUS_NAMES)})
        )


class LabelCounts(CountByName):
    """Rows by label."""

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        return cls(dict.fromkeys(labels, 0))

    def add_rows(self, rows: ScoredRows) -> Self:
        counts = rows.objective.count_labels(rows.probabilities[rows.has_label])
        return self.merge(type(self)(dict(zip(rows.labels, counts.tolist(), strict=True))))


class ConfidenceHistogram(Histogram):
    """Scored rows by confidence, in bins of equal width from 0 to 1. Rows that abstain are in it."""

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        return cls([0] * CONFIDENCE_BINS)

    def add_rows(self, rows: ScoredRows) -> Self:
        counts, _ = np.histogram(rows.confidence[rows.has_score], bins=CONFIDENCE_BINS, range=(0, 1))
        return self.merge(type(self)(counts.tolist()))


class LengthHistogram(Histogram):
    """Rows by number of tokens: 1, 2 to 3, 4 to 7, and so on. Rows without tokens are in no bin."""

    @classmethod
    def zero(cls, labels: Sequence[str]) -> Self:
        return cls([0] * LENGTH_BINS)

    def add_rows(self, rows: ScoredRows) -> Self:
        return self.merge(type(self)(length_histogram(rows.lengths)))


class TokenCount(Total):
    """Tokens, padding apart."""

    def add_rows(self, rows: ScoredRows) -> Self:
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

    def add_unit(self, rows: ScoredRows) -> "Counts":
        """Return the statistics with all scored rows of one unit added."""
        return Counts(self.units + 1, **{name: getattr(self, name).add_rows(rows) for name in STATISTICS})

    def merge(self, other: "Counts") -> "Counts":
        """Return the statistics of the rows of both."""
        sums = {name: getattr(self, name).merge(getattr(other, name)) for name in STATISTICS}
        return Counts(self.units + other.units, **sums)

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as they stand in a footer."""
        return {"units": self.units} | {name: getattr(self, name).to_json() for name in STATISTICS}

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
    """The statistics of each model of a pass, over the same rows.

    A unit's are kept in its footer, so that a summary covers what earlier runs scored.
    """

    models: dict[str, Counts]  # by the model's name; "" of a single one

    @property
    def units(self) -> int:
        """The number of units."""
        return self._any.units

    @property
    def rows(self) -> int:
        """The number of rows, whatever their status."""
        return self._any.rows

    @property
    def tokens(self) -> int:
        """The tokens of all models, padding apart."""
        return sum(counts.tokens.value for counts in self.models.values())

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
        return PassCounts(self.models | {name: self.models[name].add_texts(texts) for name in models})

    def add_unit(self, rows: Mapping[str, ScoredRows]) -> "PassCounts":
        """Return the statistics with all rows of one unit added, as each model scored them."""
        return PassCounts({name: counts.add_unit(rows[name]) for name, counts in self.models.items()})

    def merge(self, other: "PassCounts") -> "PassCounts":
        """Return the statistics of the rows of both."""
        return PassCounts({name: counts.merge(other.models[name]) for name, counts in self.models.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as they stand in a footer: of a single model without a name its own alone."""
        content = {name: counts.to_json() for name, counts in self.models.items()}
        return content.get("", {"models": content})

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "PassCounts":
        """Build the statistics from a footer. Raises KeyError, TypeError or AttributeError for other content."""
        models = content.get("models", {"": content})
        if not models:
            raise KeyError("models")
        return cls({name: Counts.from_json(counts) for name, counts in models.items()})
