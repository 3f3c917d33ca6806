"""Records of an output folder: which run made it, and what each file was made from.

They stand as JSON in `_run.json` and in the footers of scored files; this module alone knows their keys. A setting that
an old file does not have gets its default, and the format version is written but never compared: outputs of older
versions are resumed.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sentiment_core.data.shards import Unit
from sentiment_core.runtime.precision import Precision

FORMAT_VERSION = 5
SCORED_COLUMNS = ("confidence", "probabilities", "status", "source", "row")  # after the column with the answer


@dataclass(frozen=True)
class Run:
    """The settings that decide the content of every file of an output folder."""

    input: str  # path or URI
    bundle: str  # digest
    text_column: str = "text"  # several are joined by commas
    keep: list[str] | None = None  # None: all columns but the text
    probabilities: bool = False
    limit: int | None = None  # rows
    int8: bool = False
    min_confidence: float = 0.0
    prefix: str = ""  # of the scored columns' names
    precision: Precision = "auto"
    multi_label: bool = False  # the bundle gives several labels a row
    format_version: int = field(default=FORMAT_VERSION, compare=False)

    @property
    def text_columns(self) -> list[str]:
        """Names of the columns whose texts are joined."""
        return self.text_column.split(",")

    @property
    def label_column(self) -> str:
        """Name of the column that holds the answer, without the prefix."""
        return "labels" if self.multi_label else "label"

    @property
    def scored_columns(self) -> tuple[str, ...]:
        """Names of the columns that an output may have besides those of the input."""
        return tuple(self.prefix + name for name in (self.label_column, *SCORED_COLUMNS))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Run":
        """Build a run from JSON, ignoring keys that are not settings.

        Raises KeyError or TypeError where the content is not that of a run.
        """
        run = cls(**{name: content[name] for name in SETTINGS if name in content})
        if not all(isinstance(text, str) for text in (run.input, run.bundle, run.text_column)):
            raise TypeError("expected texts")
        return run

    def to_json(self) -> dict[str, Any]:
        """Return the settings; those that older versions do not know only where they matter."""
        return {name: value for name, value in asdict(self).items() if (name, value) not in NEWER_DEFAULTS}

    def differences(self, wanted: "Run") -> dict[str, tuple[Any, Any]]:
        """Return the settings in which `wanted` differs: (here, there) by name."""
        pairs = {
            item.name: (getattr(self, item.name), getattr(wanted, item.name)) for item in fields(Run) if item.compare
        }
        return {name: values for name, values in pairs.items() if values[0] != values[1]}


# of settings that older versions do not know
NEWER_DEFAULTS = (("prefix", ""), ("precision", "auto"), ("multi_label", False))
SETTINGS = tuple(item.name for item in fields(Run))


@dataclass(frozen=True)
class RunFile:
    """The content of `_run.json`, which all runs into an output folder must agree with."""

    run: Run
    model: str = ""  # path of the bundle in the latest run, or its name on the hub and revision
    earlier_bundles: list[str] = field(default_factory=list)  # digests of bundles whose outputs stay
    # by chip, the backend and number type that the first run chose: later ones take them too, so that results stay
    computed_by: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "RunFile":
        """Build the record from JSON. Raises KeyError, TypeError or AttributeError for other content."""
        return cls(
            Run.from_json(content),
            content.get("model", ""),
            list(content.get("earlier_bundles", [])),
            dict(content.get("computed_by", {})),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in `_run.json`: the settings and the rest side by side."""
        choices = {"computed_by": self.computed_by} if self.computed_by else {}
        return self.run.to_json() | {"model": self.model, "earlier_bundles": self.earlier_bundles} | choices


@dataclass(frozen=True)
class UnitOrigin:
    """The rows of a shard that an output holds, and the version of that shard."""

    source: str  # path of the shard relative to the input's root
    start: int  # first row
    stop: int  # one behind the last row
    shard_rows: int
    size: int  # of the shard, bytes
    mtime_ns: int
    footer_hash: str | None = None  # of the shard; None where it was not noted

    @classmethod
    def of(cls, unit: Unit) -> "UnitOrigin":
        """Return what an output notes of its work unit."""
        return cls(**{item.name: getattr(unit, item.name) for item in fields(cls)})

    def has_version(self, size: int, mtime_ns: int, footer_hash: str | None) -> bool:
        """Return whether the output was made of this version of the shard."""
        same_footer = self.footer_hash in (None, footer_hash) or footer_hash is None
        return (self.size, self.mtime_ns) == (size, mtime_ns) and same_footer

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in a footer."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "UnitOrigin":
        """Build the record from JSON. Raises KeyError or TypeError for other content."""
        unit = cls(**{item.name: content[item.name] for item in fields(cls) if item.name in content})
        if not isinstance(unit.source, str) or {type(n) for n in (unit.start, unit.stop, unit.size, unit.mtime_ns)} != {
            int
        }:
            raise TypeError("expected a path and row numbers")
        return unit


@dataclass(frozen=True)
class Origin:
    """The origin of an output, as its footer says it.

    It is the same for every attempt, and another one when bundle, settings or shard have changed.
    """

    run: Run
    unit: UnitOrigin
    unknown_settings: tuple[str, ...] = ()  # of a newer version: what they mean for the rows is not known here

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Origin":
        """Build the record from JSON. Raises KeyError, TypeError or AttributeError for other content."""
        unknown = tuple(name for name in content["run"] if name not in SETTINGS)
        return cls(Run.from_json(content["run"]), UnitOrigin.from_json(content["unit"]), unknown)

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in a footer."""
        return {"run": self.run.to_json(), "unit": self.unit.to_json()}


def was_made_by(origin: Origin, run: Run, unit: Unit, earlier_bundles: Collection[str] = ()) -> bool:
    """Return whether an output of this origin is what `run` makes of the unit.

    Outputs of the same run with one of the `earlier_bundles` (digests) count too.
    """
    made_with, noted = origin.run.bundle, origin.unit
    expected = Origin(replace(run, bundle=made_with), replace(UnitOrigin.of(unit), footer_hash=noted.footer_hash))
    same_version = noted.has_version(unit.size, unit.mtime_ns, unit.footer_hash)
    return made_with in (run.bundle, *earlier_bundles) and same_version and origin == expected


def may_stand_beside(origin: Origin, run_file: RunFile) -> bool:
    """Return whether an output of this origin belongs into a folder with this `_run.json`."""
    made_with = origin.run.bundle
    return (
        made_with in (run_file.run.bundle, *run_file.earlier_bundles)
        and not origin.unknown_settings
        and origin.run == replace(run_file.run, bundle=made_with)
    )
