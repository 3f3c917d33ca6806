"""The origin of labelled text, as bundles and metrics files note it."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class DroppedRows:
    """Rows that training and evaluation cannot use, by reason."""

    without_text: int = 0
    without_label: int = 0
    without_tokens: int | None = None  # the tokenizer left nothing of the text; None before it was asked

    def to_json(self) -> dict[str, int]:
        """Return the counts as `sentiment.json` and `metrics.json` hold them."""
        counts = {"without_text": self.without_text, "without_label": self.without_label}
        return counts if self.without_tokens is None else counts | {"without_tokens": self.without_tokens}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "DroppedRows":
        """Read the counts, beside which there may be further keys."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})


@dataclass(frozen=True)
class DataOrigin:
    """Origin of labelled text; the part of `sentiment.json` that describes it."""

    place: str = ""  # path, URI or hub name, as the user gave it
    files: int | None = None  # None for a hub data set
    revision: str | None = None  # of a hub data set
    version: int | None = None  # of a table
    rows: int = 0  # with text and label
    dropped: DroppedRows = field(default_factory=DroppedRows)
    numbered: bool = False  # the label column held class numbers, not names
    truncated_rows: int | None = None  # longer than the model reads; None before they were tokenized
    label_map: dict[str, str] = field(default_factory=dict)  # labels of the data -> names, where they differ
    remarks: list[str] = field(default_factory=list)  # sentences about the data that its user should read

    def to_json(self) -> dict[str, Any]:
        """Return the record as `sentiment.json` holds it."""
        content = asdict(self) | {"dropped": self.dropped.to_json()}
        del content["files" if self.files is None else "revision"]
        for name in ("truncated_rows", "version"):
            if content[name] is None:
                del content[name]
        return {name: value for name, value in content.items() if value not in ({}, [])}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read the record from `sentiment.json`, which may hold further keys."""
        fields = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        return cls(**fields | {"dropped": DroppedRows.from_json(content.get("dropped", {}))})
