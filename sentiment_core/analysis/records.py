"""Records of estimated shares, as JSON files and nights hold them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


def name_group(by: Mapping[str, str | None]) -> str:
    """Name a group of rows by the values of its keys; without keys the name is empty."""
    return ", ".join(f"{key}={'null' if value is None else value}" for key, value in by.items())


@dataclass(frozen=True)
class Estimate:
    """A mean over some rows of a corpus, with a confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """The share of one label among the rows with text of a group."""

    by: dict[str, str | None]  # value of the group by key; empty for the whole corpus
    label: str
    rows: int  # with text, abstained ones included
    counted: float  # share of the rows that the model gave the label
    estimate: float | None  # null where it cannot be estimated
    low: float | None  # of the interval; null where the sample does not give one
    high: float | None
    method: str
    labelled_rows: int = 0  # of the sample, in the group
    accuracy: Estimate | None = None  # of the model's labels in the group, the same for all labels; null without sample
    note: str = ""  # what to know before the numbers are reported

    @property
    def group(self) -> str:
        """The name of the group, for people."""
        return name_group(self.by) or "all rows"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Share":
        """Build the record from JSON, ignoring other keys. Raises TypeError for other content."""
        values = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        return cls(**values | {"accuracy": Estimate(**values["accuracy"]) if values.get("accuracy") else None})
