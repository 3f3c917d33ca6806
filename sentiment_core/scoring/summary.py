"""The summary of a scoring run, which `_summary.json` holds and the terminal shows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sentiment_core.data.shards import FailedShard
from sentiment_core.model.naming import with_name
from sentiment_core.model.records import Guarantee
from sentiment_core.scoring.outputs import SUMMARY_FILE

SHOWN_SHARDS = 10  # in a report for the terminal; all of them are in the summary


@dataclass(frozen=True)
class RunSummary:
    """The part of one run in an output folder, which several runs may have filled."""

    rows: int  # computed
    units: int
    seconds: float
    rows_per_second: float
    tokens_per_second: float
    first_task_seconds: float | None  # until the first task was done; None if there was none
    rows_per_second_after: float | None  # after the first task; None if that was all
    workers: int
    busy_seconds: dict[str, float]  # by stage
    workers_busy_share: float
    workers_idle_seconds: float
    computed_by: list[str]  # backends, and why nothing faster computed
    reused_rows: int = 0  # rows with a known text, whose scores were taken from earlier outputs
    deleted_outputs: int = 0  # that new ones replace, or whose shard is gone


@dataclass(frozen=True)
class ModelSummary:
    """The part of one model in a pass."""

    status: dict[str, int]  # rows by status
    labels: dict[str, int]  # rows by label
    confidence_histogram: list[int]  # rows, in bins of equal width from 0 to 1
    tokens: int  # padding apart, of rows that were computed
    padding_share: float  # of what this run computed
    bundle: str  # digest
    computed_by: list[str]  # backends, and why nothing faster computed
    escalated_rows: int | None = None  # of computed rows, those that a cascade's large model answered; None: no cascade
    escalated_share: float | None = None  # of the rows that this run computed and that have a score


# what stands beside the rest where there is a single model without a name, in the order of `Summary`
OF_SINGLE_MODEL = ("status", "labels", "confidence_histogram", "tokens", "bundle", "escalated_rows", "escalated_share")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of `_summary.json`: the whole output folder, and under `run` the run that wrote it.

    Of a single model without a name its statistics stand here, of named models in `models`.
    """

    rows_in: int  # of the readable shards
    rows: int  # scored, whatever their status
    complete: bool  # the folder holds every row of the input, and none besides
    units: int
    status: dict[str, int] = field(default_factory=dict)  # rows by status
    labels: dict[str, int] = field(default_factory=dict)  # rows by label
    confidence_histogram: list[int] = field(default_factory=list)  # rows, in bins of equal width from 0 to 1
    tokens: int = 0  # padding apart, of rows that were computed
    escalated_rows: int | None = None  # of these rows, those that a cascade's large model answered; None: no cascade
    escalated_share: float | None = None  # of the rows that this run computed and that have a score
    padding_share: float  # of what this run computed
    stopped: str  # why the run stopped; empty if it did not
    out_of_time: bool
    failed_shards: list[FailedShard]
    column_drift: list[str]  # kept columns that are not alike in all shards, in words
    not_read: list[str]  # names at the input's path that are not read, described
    hidden_partitions: int  # outputs in folders such as `_year=2024`, which some readers pass over
    orphans: int  # outputs that were kept though their shard is gone
    orphans_wait: bool = False  # for a run without failures, which deletes them
    run: RunSummary
    bundle: str = ""  # digest
    libraries: dict[str, str]  # versions by name
    models: dict[str, ModelSummary] = field(default_factory=dict)  # by name
    guarantee: Guarantee | None = None  # of --target-accuracy

    @classmethod
    def of_models(cls, models: dict[str, ModelSummary], **shared: Any) -> "Summary":
        """Make the summary of a pass with these models, by name; `shared` are the other fields."""
        single = models.get("")
        own = {"models": models} if single is None else {name: getattr(single, name) for name in OF_SINGLE_MODEL}
        return cls(**shared, **own)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `_summary.json`."""
        left_out = ("guarantee", *(OF_SINGLE_MODEL if self.models else ("models",)))
        content = {name: value for name, value in asdict(self).items() if name not in left_out}
        for part in (content, *content.get("models", {}).values()):
            for name in ("escalated_rows", "escalated_share"):  # of cascades only
                if part.get(name, 0) is None:
                    del part[name]
        return content | ({"guarantee": self.guarantee.to_json()} if self.guarantee else {})

    def report(self) -> list[str]:
        """Return a few lines for the terminal, without the output's path."""
        run = self.run
        lines: list[str] = []
        models: Mapping[str, ModelSummary | Summary] = self.models or {"": self}
        for name, model in models.items():
            lines += [
                with_name(name, f"{self.rows:,} rows in {self.units:,} files: {nonzero(model.status)}"),
                with_name(name, f"labels: {nonzero(model.labels)}"),
                *(with_name(name, line) for line in _describe_escalated(model)),
            ]
        lines += [self.guarantee.describe()] if self.guarantee else []
        lines += [
            f"this run: {run.rows:,} rows in {run.seconds:.1f} s, {run.rows_per_second:,.1f} rows/s, "
            f"{run.tokens_per_second:,.0f} tokens/s, padding {100 * self.padding_share:.1f} %, "
            f"workers busy {100 * run.workers_busy_share:.0f} %"
            + (f"; {run.reused_rows:,} rows reused" if run.reused_rows else ""),
        ]
        if run.rows_per_second_after is not None:
            lines.append(
                f"first rows after {run.first_task_seconds:.1f} s, then {run.rows_per_second_after:,.1f} rows/s, "
                f"computed by {', '.join(run.computed_by)}"
            )
        return lines

    def problems(self) -> list[str]:
        """Return a line for each thing that needs attention, for the terminal."""
        lines = [f"failed: {shard.source}: {shard.reason}" for shard in self.failed_shards[:SHOWN_SHARDS]]
        if len(self.failed_shards) > SHOWN_SHARDS:
            lines.append(f"... {len(self.failed_shards):,} failed shards in all, listed in {SUMMARY_FILE}")
        lines += [f"not read: {line}" for line in self.not_read]
        if self.hidden_partitions:
            lines.append(
                f"{self.hidden_partitions:,} outputs lie in folders such as _year=2024, which pandas and pyarrow pass "
                "over; DuckDB, Polars and Spark read them"
            )
        lines += [f"differs between shards: {difference}" for difference in self.column_drift[:SHOWN_SHARDS]]
        if self.orphans and self.orphans_wait:
            lines.append(
                f"{self.orphans:,} outputs whose input file is gone were kept; the next run without failures deletes "
                "them"
            )
        elif self.orphans:
            lines.append(
                f"{self.orphans:,} outputs whose input file is gone were kept; --prune deletes them, and without that "
                "there is no _SUCCESS"
            )
        if self.stopped:
            lines.append(f"stopped: {self.stopped}; fix this and rerun the same command")
        return lines


def _describe_escalated(model: ModelSummary | Summary) -> list[str]:
    """Say how many rows a cascade handed over; nothing of another model."""
    if model.escalated_rows is None:
        return []
    share = "" if model.escalated_share is None else f", {100 * model.escalated_share:.1f} % of this run's"
    return [f"{model.escalated_rows:,} computed rows went to the large model of the cascade{share}"]


def nonzero(numbers: dict[str, int]) -> str:
    """Return the names whose number is not 0, with it, for the terminal."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items() if number) or "none"
