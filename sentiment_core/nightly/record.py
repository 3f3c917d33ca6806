"""Read and write the records of nights: one JSON file for each, in `_nights/` of the output folder.

A night has a name, by default the day's date. Running it again continues its record.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from sentiment_core.analysis.records import Share
from sentiment_core.data.shards import FailedShard
from sentiment_core.errors import UserError
from sentiment_core.nightly.drift import MIN_ROWS, Comparison, Profile
from sentiment_core.runtime import storage

FOLDER = "_nights"
SUFFIX = ".json"
WHOLE, PAST, REFERENCE = "this night", "past nights", "the bundle's evaluation rows"  # rows, as comparisons name them
PAST_NIGHTS = 14  # at most, in a baseline
NEW_NORMAL = 7  # drifting nights in a row, after which these are the baseline

State = Literal["running", "done", "failed", "stopped"]  # a run that was killed leaves "running"


@dataclass(frozen=True)
class NightRun:
    """A run of a night. The last six fields are absent if it did not get through scoring."""

    begun: str  # start, UTC
    seconds: float
    outcome: str  # "exit code N", or the state if it is not "done"
    rows: int = 0  # that this run computed
    rows_per_second: float | None = None  # start-up included
    scoring_seconds: float | None = None
    out_of_time: bool | None = None  # whether --time-limit ended it
    computed_by: list[str] | None = None  # backends, and why nothing faster computed
    padding_share: float | None = None
    reused_rows: int | None = None  # with a known text, whose scores were taken from earlier outputs

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "NightRun":
        """Build the record from JSON. Raises TypeError for other content."""
        return cls(**{item.name: content[item.name] for item in fields(cls) if item.name in content})

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in a night's record."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Renewal:
    """The outcome of a candidate that a night trained."""

    candidate: str  # name of its folder
    promoted: bool
    reason: str
    rows: int = 0  # labelled rows to train on
    fingerprint: str = ""  # of these rows

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Renewal":
        """Build the record from JSON. Raises TypeError for other content."""
        return cls(**{item.name: content[item.name] for item in fields(cls) if item.name in content})


@dataclass(frozen=True)
class SharesReport:
    """Shares of the labels in the whole corpus, as they were after a night."""

    shares: list[Share]
    certainty: float  # of the intervals
    remarks: list[str] = field(default_factory=list)  # sentences to read before the shares are reported
    due: str = ""  # why a new sample is due; empty if it is not

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "SharesReport":
        """Build the record from JSON. Raises TypeError, KeyError or AttributeError for other content."""
        values = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        return cls(**values | {"shares": [Share.from_json(share) for share in content["shares"]]})


@dataclass(frozen=True)
class ModelNight:
    """The part of one model in a night."""

    model: str = ""  # path of the bundle
    bundle: str = ""  # digest
    tokens_by: str = ""  # digest of what decides the tokens of a text
    labels: list[str] = field(default_factory=list)
    tokens: int = 0
    profile: Profile | None = None  # {} in JSON if nothing was scored
    reference: Profile | None = None  # of the bundle's evaluation rows, as it was compared with
    partitions: dict[str, Profile] = field(default_factory=dict)  # of those that had rows to score
    comparisons: list[Comparison] = field(default_factory=list)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ModelNight":
        """Build the record from JSON. Raises TypeError or AttributeError for other content."""
        values = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        for name in ("profile", "reference"):
            values[name] = Profile.from_json(content[name]) if content.get(name) else None
        values["partitions"] = {
            name: Profile.from_json(profile) for name, profile in content.get("partitions", {}).items()
        }
        values["comparisons"] = [Comparison.from_json(comparison) for comparison in content.get("comparisons", [])]
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in a night's record."""
        return asdict(self) | {
            "profile": self.profile.to_json() if self.profile else {},
            "reference": self.reference.to_json() if self.reference else {},
            "partitions": {name: profile.to_json() for name, profile in self.partitions.items()},
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
        }


MODEL_FIELDS = tuple(item.name for item in fields(ModelNight))


@dataclass
class Night:
    """Content of a night's record. The job fills it in step by step.

    Of a single model without a name the fields of `ModelNight` stand here, of named models in `models`.
    """

    night: str  # its name
    state: State = "running"
    exit_code: int | None = None
    since_ns: int = 0  # outputs written from then on are this night's, by the clock of their disk or store
    model: str = ""  # path of the bundle
    bundle: str = ""  # digest
    tokens_by: str = ""  # digest of what decides the tokens of a text
    labels: list[str] = field(default_factory=list)
    rows: int = 0  # computed in this night
    reused_rows: int = 0  # with a known text, scored by earlier outputs and in no statistic; absent if there are none
    left: int = 0  # rows left for the next night, for lack of time or because their partition was not chosen
    corpus_rows: int = 0
    input_version: int | None = None  # of the table that was scored; absent for plain shards
    tokens: int = 0
    removed: int = 0  # outputs of shards that have changed, or are gone
    failed_shards: list[FailedShard] = field(default_factory=list)
    verified: dict[str, int] = field(default_factory=dict)  # findings by kind
    profile: Profile | None = None  # {} in JSON if nothing was scored
    reference: Profile | None = None  # of the bundle's evaluation rows, as it was compared with
    partitions: dict[str, Profile] = field(default_factory=dict)  # of those that had rows to score
    comparisons: list[Comparison] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    renewal: Renewal | None = None  # {} in JSON if no candidate was trained
    not_renewed: str = ""  # why no candidate was trained; absent if one was, or none was asked for
    shares: SharesReport | None = None  # absent if they were not asked for
    runs: list[NightRun] = field(default_factory=list)
    models: dict[str, ModelNight] = field(default_factory=dict)  # by name

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Night":
        """Build the record from JSON of any version: unknown keys are ignored, missing ones get their default.

        Raises KeyError, ValueError, TypeError or AttributeError for content that is not a night's record.
        """
        values = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        single = ModelNight.from_json(content)
        values |= {name: getattr(single, name) for name in MODEL_FIELDS}
        values["models"] = {name: ModelNight.from_json(model) for name, model in content.get("models", {}).items()}
        values["renewal"] = Renewal.from_json(content["renewal"]) if content.get("renewal") else None
        values["shares"] = SharesReport.from_json(content["shares"]) if content.get("shares") else None
        values["failed_shards"] = [
            FailedShard(shard["source"], shard["reason"]) for shard in content.get("failed_shards", [])
        ]
        values["runs"] = [NightRun.from_json(run) for run in content.get("runs", [])]
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in the night's file."""
        single = ModelNight(**{name: getattr(self, name) for name in MODEL_FIELDS}).to_json()
        models = {name: model.to_json() for name, model in self.models.items()}
        content = asdict(replace(self, models={})) | single
        content["renewal"] = content["renewal"] or {}
        content["runs"] = [run.to_json() for run in self.runs]
        left_out = {*MODEL_FIELDS} - {"tokens"} if models else {"models"}  # tokens: of all models
        if self.input_version is None:
            left_out.add("input_version")
        left_out |= set() if self.reused_rows else {"reused_rows"}  # older records have neither
        left_out |= set() if self.shares else {"shares"}
        left_out |= set() if self.not_renewed else {"not_renewed"}
        return {name: value for name, value in (content | {"models": models}).items() if name not in left_out}

    @property
    def names(self) -> list[str]:
        """The names of the night's models; "" is that of a single one."""
        return list(self.models) or [""]

    def of_model(self, name: str) -> "Night":
        """Return the night as one of its models made it, without the others."""
        if not name and not self.models:
            return self
        part = self.models.get(name, ModelNight())
        return replace(self, models={}, **{key: getattr(part, key) for key in MODEL_FIELDS})

    def set_model(self, name: str, part: ModelNight) -> None:
        """Note the part of one of the night's models."""
        if name:
            self.models[name] = part
        else:
            for key in MODEL_FIELDS:
                setattr(self, key, getattr(part, key))

    @property
    def drifted(self) -> bool:
        """True if this night as a whole differed from those before it, by any of its models."""
        pair = (WHOLE, PAST)
        comparisons = [*self.comparisons, *(c for model in self.models.values() for c in model.comparisons)]
        return any(comparison.drifted and (comparison.rows, comparison.against) == pair for comparison in comparisons)

    @property
    def line(self) -> dict[str, Any]:
        """The night in short, for other tools: a line of `nights.jsonl`."""
        left_out = ("reference", "partitions", "comparisons", "failed_shards", "since_ns", "shares")
        content = self.to_json()
        models = {
            name: {key: value for key, value in model.items() if key not in left_out}
            for name, model in content.get("models", {}).items()
        }
        short = {name: value for name, value in content.items() if name not in left_out}
        return short | ({"models": models} if models else {}) | {"failed_shards": len(self.failed_shards)}


def read_nights(output_folder: str) -> list[Night]:
    """Read all nights of an output folder, by name.

    Raises UserError if they cannot be read, or if one is damaged.
    """
    folder = storage.join(output_folder, FOLDER)
    if not storage.is_folder(folder):
        return []

    def read(name: str) -> Night:
        content = storage.read_file(storage.join(folder, name))
        try:
            return Night.from_json(json.loads(content))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{folder}/{name} is not the record of a night; expected one that sentiment-core nightly wrote. "
                "Move it out of the folder."
            ) from None

    try:
        names = [stamp.path for stamp in storage.list_stamps(folder)]
        records = [name for name in names if name.endswith(SUFFIX) and not name.startswith("_")]
        return list(storage.map_in_threads(read, records))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error}. Check the path and the credentials.") from None


def write_night(output_folder: str, night: Night) -> None:
    """Write the record of a night."""
    content = json.dumps(night.to_json(), indent=1, ensure_ascii=False) + "\n"
    storage.write_file(storage.join(output_folder, FOLDER, night.night + SUFFIX), content.encode())


def baseline_nights(before: Sequence[Night]) -> list[Night]:
    """Select the baseline: the latest nights without drift.

    After `NEW_NORMAL` drifting nights in a row, those become the baseline, and what comes after them.
    """
    baseline: list[Night] = []
    drifting: list[Night] = []  # in a row
    for night in before:
        if night.state == "done" and night.rows:
            if night.drifted:
                drifting.append(night)
            else:
                baseline.append(night)
                if night.rows >= MIN_ROWS:  # with fewer it was not judged
                    drifting = []
            if len(drifting) == NEW_NORMAL:
                baseline, drifting = drifting, []
    return baseline[-PAST_NIGHTS:]


def baseline_profile(baseline: Sequence[Night], night: Night, partition: str | None = None) -> Profile:
    """Sum up the baseline of `night`, or of one of its partitions.

    Nights of another bundle count by what does not depend on the model, and by tokens only if both make them alike.
    """
    total = Profile()
    for past in baseline:
        profile = past.profile if partition is None else past.partitions.get(partition)
        if profile is not None:
            if past.bundle != night.bundle:
                profile = profile.without_model(same_tokenizer=past.tokens_by == night.tokens_by)
            total += profile
    return total


def latest_night(nights: Sequence[Night]) -> Night | None:
    """Return the night that began last.

    A night that continues one that broke off has the same beginning, and then counts as the later one.
    """
    return max(reversed(nights), key=lambda night: (night.since_ns, night.state == "done"), default=None)


def storage_clock_ns(output_folder: str) -> int:
    """Read the time of the clock that stamps the folder's files."""
    name = storage.temporary_name()
    storage.write_file(storage.join(output_folder, FOLDER, name), b"")
    stamp = storage.read_stamp(output_folder, f"{FOLDER}/{name}")
    storage.delete_file(storage.join(output_folder, FOLDER, name))
    return stamp.mtime_ns
