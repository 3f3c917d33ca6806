"""Records of an output folder: which run made it, and what each file was made from.

They stand as JSON in `_run.json` and in the footers of scored files; this module alone knows their keys. A setting that
an old file does not have gets its default, and the format version is written but never compared: outputs of older
versions are resumed.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sentiment_core.data.shards import Unit
from sentiment_core.model.naming import Models
from sentiment_core.runtime.precision import Precision

Choices = dict[str, dict[str, str]]  # of backend and number type: by the model's name, then by chip

FORMAT_VERSION = 5
MODEL_COLUMNS = ("confidence", "probabilities", "status")  # of each model, after the column with its answer
ROW_COLUMNS = ("source", "row")  # once, after those of all models
TEXT_HASH = "text_hash"  # once, the last column; outputs of older versions and of --no-reuse do not have it


@dataclass(frozen=True)
class ModelRun:
    """A named model of a pass, as far as it decides the content of its columns."""

    bundle: str  # digest
    multi_label: bool = False  # the bundle gives several labels a row

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ModelRun":
        """Build the record from JSON, ignoring other keys. Raises KeyError or TypeError for other content."""
        return cls(content["bundle"], **{name: content[name] for name in MODEL_SETTINGS if name in content})


MODEL_SETTINGS = tuple(item.name for item in fields(ModelRun) if item.name != "bundle")


@dataclass(frozen=True)
class ModelColumns:
    """Names of the columns of one model in an output."""

    model: str  # its name, "" of a single one
    prefix: str  # of all its columns
    label: str  # the one that holds the answer, without the prefix

    @property
    def names(self) -> tuple[str, ...]:
        """All names; an output may lack that of the probabilities."""
        return tuple(self.prefix + name for name in (self.label, *MODEL_COLUMNS))


@dataclass(frozen=True)
class Run:
    """The settings that decide the content of every file of an output folder."""

    input: str  # path or URI
    bundle: str  # digest; of named models that of all their digests
    text_column: str = "text"  # several are joined by commas
    keep: list[str] | None = None  # None: all columns but the text
    probabilities: bool = False
    limit: int | None = None  # rows
    int8: bool = False
    min_confidence: float = 0.0
    prefix: str = ""  # of the scored columns' names
    precision: Precision = "auto"
    multi_label: bool = False  # the bundle gives several labels a row; for named models see there
    models: dict[str, ModelRun] = field(default_factory=dict)  # by name; empty for a single model without a name
    target_accuracy: float | None = field(default=None, compare=False)  # from which min_confidence was derived
    certainty: float | None = field(default=None, compare=False)  # with which that accuracy is promised
    format_version: int = field(default=FORMAT_VERSION, compare=False)

    @property
    def text_columns(self) -> list[str]:
        """Names of the columns whose texts are joined."""
        return self.text_column.split(",")

    @property
    def bundles(self) -> dict[str, str]:
        """Digests of the bundles by the models' names."""
        return {name: model.bundle for name, model in self.models.items()} or {"": self.bundle}

    @property
    def columns_of_models(self) -> tuple[ModelColumns, ...]:
        """Names of the columns of each model, in the order of the output."""
        models = self.models or {"": ModelRun(self.bundle, self.multi_label)}
        return tuple(
            ModelColumns(name, self.prefix + (name and f"{name}_"), "labels" if model.multi_label else "label")
            for name, model in models.items()
        )

    @property
    def scored_columns(self) -> tuple[str, ...]:
        """Names of the columns that an output may have besides those of the input, and `text_hash_column`."""
        names = [name for columns in self.columns_of_models for name in columns.names]
        return (*names, *(self.prefix + name for name in ROW_COLUMNS))

    @property
    def text_hash_column(self) -> str:
        """The name of the column with the texts' hashes, in outputs that have it."""
        return self.prefix + TEXT_HASH

    def may_have_other_threshold(self, earlier: "Run") -> bool:
        """Return whether both runs promise the same accuracy, each with its own bundle's threshold."""
        same_target = (self.target_accuracy, self.certainty) == (earlier.target_accuracy, earlier.certainty)
        return self.target_accuracy is not None and same_target and self.bundle != earlier.bundle

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Run":
        """Build a run from JSON, ignoring keys that are not settings.

        Raises KeyError or TypeError where the content is not that of a run.
        """
        settings = {name: content[name] for name in SETTINGS if name in content}
        models = {name: ModelRun.from_json(model) for name, model in content.get("models", {}).items()}
        run = cls(**settings | {"models": models})
        if not all(isinstance(text, str) for text in (run.input, run.bundle, run.text_column)):
            raise TypeError("expected texts")
        return run

    def to_json(self) -> dict[str, Any]:
        """Return the settings; those that older versions do not know only where they matter."""
        return {name: value for name, value in asdict(self).items() if (name, value) not in NEWER_DEFAULTS}

    def differences(self, wanted: "Run") -> dict[str, tuple[Any, Any]]:
        """Return the settings in which `wanted` differs: (here, there) by name.

        With other names of models these differ, whatever the bundles.
        """
        here, there = self._settings_by_name(), wanted._settings_by_name()
        return {name: (here[name], there[name]) for name in here if name in there and here[name] != there[name]}

    def _settings_by_name(self) -> dict[str, Any]:
        """Return the settings to compare; those of a named model have its name too."""
        settings = {item.name: getattr(self, item.name) for item in fields(Run) if item.compare}
        if self.models:
            for name, model in self.models.items():
                settings |= {f"{key} of {name}": value for key, value in asdict(model).items()}
            del settings["bundle"], settings["multi_label"]
        return settings | {"models": ", ".join(self.models) or "one without a name"}


def flatten(by_name: Mapping[str, Any]) -> Any:
    """Return values by the models' names as they stand in JSON: of a single model without a name its value alone."""
    return by_name[""] if "" in by_name else dict(by_name)


def _by_name(content: Any, run: Run) -> dict[str, Any]:
    """Undo `flatten`. Named models have nothing where nothing was noted."""
    if run.models:
        return content if isinstance(content, dict) else {}
    return {"": content}


# of settings that older versions do not know
NEWER_DEFAULTS: tuple[tuple[str, Any], ...] = (
    ("prefix", ""),
    ("precision", "auto"),
    ("multi_label", False),
    ("models", {}),
    ("target_accuracy", None),
    ("certainty", None),
)
SETTINGS = tuple(item.name for item in fields(Run))


@dataclass(frozen=True)
class RunFile:
    """The content of `_run.json`, which all runs into an output folder must agree with."""

    run: Run
    model: Models = ""  # path of the bundle in the latest run, or its name on the hub and revision; or these by name
    earlier_bundles: list[str] = field(default_factory=list)  # digests of bundles whose outputs stay
    # by chip, the backend and number type that the first run chose: later ones take them too, so that results stay;
    # of named models these by name
    computed_by: dict[str, str] | dict[str, dict[str, str]] = field(default_factory=dict)
    input_version: int | None = None  # of the table that the latest run scored

    @property
    def paths(self) -> dict[str, str]:
        """Paths of the bundles in the latest run, or hub names, by the models' names; none if that was not noted."""
        return {name: path for name, path in _by_name(self.model, self.run).items() if path}

    @property
    def choices(self) -> Choices:
        """The choices of backend and number type by the models' names, then by chip."""
        return _by_name(self.computed_by, self.run)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "RunFile":
        """Build the record from JSON. Raises KeyError, TypeError or AttributeError for other content."""
        return cls(
            Run.from_json(content),
            content.get("model", ""),
            list(content.get("earlier_bundles", [])),
            dict(content.get("computed_by", {})),
            content.get("input_version"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in `_run.json`: the settings and the rest side by side."""
        choices = {"computed_by": self.computed_by} if self.computed_by else {}
        version = {} if self.input_version is None else {"input_version": self.input_version}
        record = {"model": self.model, "earlier_bundles": self.earlier_bundles}
        return self.run.to_json() | record | choices | version


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
        run = content["run"]
        of_models = (name for model in run.get("models", {}).values() for name in model)
        unknown = (
            *(name for name in run if name not in SETTINGS),
            *(name for name in of_models if name not in ("bundle", *MODEL_SETTINGS)),
        )
        return cls(Run.from_json(content["run"]), UnitOrigin.from_json(content["unit"]), unknown)

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in a footer."""
        return {"run": self.run.to_json(), "unit": self.unit.to_json()}


def was_made_by(origin: Origin, run: Run, unit: Unit, earlier_bundles: Collection[str] = ()) -> bool:
    """Return whether an output of this origin is what `run` makes of the unit.

    Outputs of the same run with one of the `earlier_bundles` (digests) count too.
    """
    made_with, noted = origin.run.bundle, origin.unit
    expected = Origin(_with_bundles_of(run, origin), replace(UnitOrigin.of(unit), footer_hash=noted.footer_hash))
    same_version = noted.has_version(unit.size, unit.mtime_ns, unit.footer_hash)
    return made_with in (run.bundle, *earlier_bundles) and same_version and origin == expected


def may_stand_beside(origin: Origin, run_file: RunFile) -> bool:
    """Return whether an output of this origin belongs into a folder with this `_run.json`."""
    made_with = origin.run.bundle
    return (
        made_with in (run_file.run.bundle, *run_file.earlier_bundles)
        and not origin.unknown_settings
        and origin.run == _with_bundles_of(run_file.run, origin)
    )


def _with_bundles_of(run: Run, origin: Origin) -> Run:
    """Return the run as it would be with the bundles of an output's origin, and their threshold if it was derived."""
    threshold = (origin.run if run.may_have_other_threshold(origin.run) else run).min_confidence
    return replace(run, bundle=origin.run.bundle, models=origin.run.models, min_confidence=threshold)
