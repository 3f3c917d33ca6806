"""Run a scoring job: carry out a plan and summarize what came of it."""

import contextlib
import json
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sentiment_core.data import files
from sentiment_core.errors import EXIT_FAULT, EXIT_OK, EXIT_PARTIAL, UserError
from sentiment_core.model import bundle, source
from sentiment_core.runtime import cluster, connection, preflight, storage
from sentiment_core.runtime.cluster import DeviceKind
from sentiment_core.runtime.failures import UNREADABLE
from sentiment_core.scoring import outputs, stages
from sentiment_core.scoring.plan import ScorePlan, check_output_folder
from sentiment_core.scoring.records import Choices, Run, RunFile, flatten
from sentiment_core.scoring.statistics import Counts
from sentiment_core.scoring.stream import Stream
from sentiment_core.scoring.summary import ModelSummary, RunSummary, Summary
from sentiment_core.scoring.tally import ModelTally, Tally
from sentiment_core.scoring.task_table import CLASSIFY
from sentiment_core.scoring.tidy import Tidied, delete_replaced

# for the check of disk space: a row's, at most, by each model and without kept columns; a probability's
OUTPUT_BYTES_PER_ROW, PROBABILITY_BYTES = 80, 4


@dataclass(frozen=True)
class ScoreResult:
    """The result of a scoring run."""

    place: str  # path of the scored Parquet
    record: Summary

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of `_summary.json`."""
        return self.record.to_json()

    @property
    def exit_code(self) -> int:
        """The exit code of `sentiment-core score`."""
        if self.record.stopped:
            return EXIT_FAULT
        return EXIT_PARTIAL if self.record.failed_shards else EXIT_OK

    def report(self) -> str:
        """Return a few lines for the terminal."""
        return "\n".join([*self.record.report(), f"scored: {self.place}", *self.record.problems()])


def score(plan: ScorePlan, minutes: float | None = None) -> ScoreResult:
    """Score what is not scored yet, for at most so many minutes.

    Raises UserError, before any work, if the cluster or the output folder cannot do it.
    """
    started = time.monotonic()
    workers, kind = _check_resources(plan)
    run_file = claim_output_folder(plan)
    for model in plan.opened.values():
        source.warn_if_uncalibrated(model.path, model.info)
    _prepare_output_folder(plan)
    tally = Tally(
        plan.context.no_counts,
        bool(plan.scored_counts.units),
        started,
        failed=list(plan.corpus.failed),
        models={name: ModelTally(dict(choices)) for name, choices in run_file.choices.items()},
    )
    if plan.units_to_score:
        deadline = None if minutes is None else started + 60 * minutes
        stream = Stream(
            plan.context,
            plan.bundle_files,
            stages.write_outputs,
            {},
            workers,
            kind,
            plan.settings.task_minutes,
            deadline,
            run_file.choices,
            lambda choices: note_choices(plan.output_folder, plan.run, choices),
        )
        stream.run("score", plan.units_to_score, tally)
    tally.broken = tally.broken or _describe_other_run(plan)
    tidied = delete_replaced(plan, tally)
    summary = summarize(plan, tally, tidied, workers, time.monotonic() - started)
    return ScoreResult(plan.output_folder, _write_summary(plan.output_folder, summary))


def _describe_other_run(plan: ScorePlan) -> str:
    """Say that a run with other settings has taken the folder over, and may have written there; empty if none has."""
    try:
        _check_claim(plan)
    except UserError as error:
        return str(error)
    except OSError:  # of the store: what this run has written is right all the same
        return ""
    return ""


def _check_resources(plan: ScorePlan) -> tuple[int, DeviceKind]:
    """Check disk, cluster and folders, and return how many actors to start on what. Raises UserError."""
    folder = plan.output_folder
    probabilities = sum(len(model.info.labels) for model in plan.opened.values()) if plan.run.probabilities else 0
    row_bytes = OUTPUT_BYTES_PER_ROW * len(plan.models) + PROBABILITY_BYTES * probabilities
    kept_bytes = sum(unit.kept_bytes for unit in plan.units_to_score)
    preflight.check_space(folder, row_bytes * plan.rows_to_score + kept_bytes)
    workers = 0
    kind: DeviceKind = "CPU"
    if plan.units_to_score:
        connection.connect()
        kind = cluster.device_kind(plan.settings.device)
        if plan.run.int8 and kind == "GPU":
            raise UserError("--int8 computes on CPUs, and this cluster has GPUs; add --device cpu, or drop --int8")
        workers = cluster.number_of_workers(plan.settings.workers, len(plan.units_to_score), kind)
        preflight.check_workers(workers, kind)
        preflight.check_precision(plan.run.precision, kind)
        if len(plan.models) > 1 or any(model.is_cascade for model in plan.models):
            weights = sum(map(_weight_bytes, plan.bundle_files.values()))
            parts = [
                f"{name} {part}".strip() for name, own in plan.bundle_files.items() for part in bundle.parts_of(own)
            ]
            preflight.check_memory(weights, ", ".join(parts), workers, kind)
    preflight.check_writable(folder)
    if plan.units_to_score:
        preflight.check_shared(folder, "--out", writable=True)
        preflight.check_shared(plan.corpus.root, "--input", writable=False)
    return workers, kind


def _weight_bytes(files: dict[str, bytes]) -> int:
    return sum(len(content) for name, content in files.items() if bundle.is_weights(name))


def claim_output_folder(plan: ScorePlan) -> RunFile:
    """Write `_run.json`, with which later runs must agree, and return its content.

    Raises UserError if another run claimed the folder.
    """
    _check_claim(plan)  # another run may have begun since planning
    before = outputs.read_run_file(plan.output_folder) if storage.exists(plan.output_folder) else None
    choices = {name: _choices_of(name, digest, before) for name, digest in plan.run.bundles.items()}
    paths = {name: source.absolute(path) for name, path in plan.paths.items()}
    table = plan.corpus.table
    version = table.version if table else None
    run_file = RunFile(plan.run, flatten(paths), plan.earlier_bundles, flatten(choices), version)
    outputs.write_run_file(plan.output_folder, run_file)
    _check_claim(plan)  # or just now
    return run_file


def _check_claim(plan: ScorePlan) -> None:
    """Raise `UserError` if another run has claimed the output folder."""
    own_bundles = [plan.run.bundle, *plan.earlier_bundles]
    check_output_folder(plan.output_folder, plan.corpus, plan.run, lambda there: there.bundle in own_bundles)


def _choices_of(name: str, digest: str, before: RunFile | None) -> dict[str, str]:
    """Return the choices, by chip, that a model's earlier run made with the same bundle."""
    return before.choices.get(name, {}) if before and before.run.bundles.get(name) == digest else {}


def note_choices(folder: str, run: Run, choices: Choices) -> None:
    """Note by what the chips compute, for later runs. Another run may have taken the folder over meanwhile."""
    with contextlib.suppress(OSError, UserError):  # the outputs themselves will say what is wrong with the folder
        run_file = outputs.read_run_file(folder)
        if run_file and run_file.run == run:
            noted = {name: own | run_file.choices.get(name, {}) for name, own in choices.items()}
            outputs.write_run_file(folder, replace(run_file, computed_by=flatten(noted)))


def _prepare_output_folder(plan: ScorePlan) -> None:
    """Delete what writers that died left behind; rewrite column types. Outputs go at the end. Raises UserError."""
    folder = plan.output_folder
    try:
        if plan.units_to_score or plan.outputs_to_delete or plan.to_rewrite:
            storage.delete_file(storage.join(folder, outputs.SUCCESS_FILE))
        storage.delete_abandoned_files(folder, storage.read_stamp(folder, outputs.RUN_FILE).mtime_ns)
        for path in plan.to_rewrite:
            outputs.change_types(folder, path, plan.corpus.column_types)
    except UNREADABLE as error:
        raise UserError(f"old files in --out {folder} cannot be replaced: {error}; check who may write there") from None


def summarize(plan: ScorePlan, tally: Tally, tidied: Tidied, workers: int, seconds: float) -> Summary:
    """Return the summary of the output folder, and of what this run did in `seconds`."""
    this_run, computed = tally.totals, plan.scored_counts.merge(tally.totals)
    total = computed.all_rows
    classify_seconds = tally.busy_seconds[CLASSIFY]
    return Summary.of_models(
        {
            name: _summarize_model(counts, computed.models[name].escalated_rows.value, plan, tally, name)
            for name, counts in total.models.items()
        },
        rows_in=plan.corpus.rows,
        rows=total.rows,
        complete=_is_complete(plan, tally, tidied),
        units=total.units,
        padding_share=tally.padding_share,
        stopped=tally.stopped or tidied.fault,
        out_of_time=tally.out_of_time,
        failed_shards=list({shard.source: shard for shard in tally.failed}.values()),  # the latest reason of each
        column_drift=plan.corpus.schema_differences,
        not_read=plan.corpus.unread,
        hidden_partitions=sum(files.has_hidden_partition(unit.output) for unit in plan.corpus.units),
        orphans=tidied.orphans,
        orphans_wait=tidied.orphans_wait,
        run=RunSummary(
            rows=this_run.rows,
            units=this_run.units,
            seconds=seconds,
            rows_per_second=this_run.rows / seconds,
            tokens_per_second=this_run.tokens / seconds,
            first_task_seconds=tally.first_task_seconds,
            rows_per_second_after=tally.rows_per_second_after(plan.rows_to_score - this_run.reused_rows, seconds),
            workers=workers,
            busy_seconds=tally.busy_seconds,
            workers_busy_share=classify_seconds / (seconds * workers) if workers else 0.0,
            workers_idle_seconds=max(0.0, seconds * workers - classify_seconds),
            computed_by=tally.computed_by,
            reused_rows=this_run.reused_rows,
            deleted_outputs=len(tidied.deleted),
        ),
        libraries=bundle.library_versions(),
        guarantee=plan.guarantee,
    )


def _summarize_model(counts: Counts, escalated: int, plan: ScorePlan, tally: Tally, name: str) -> ModelSummary:
    """Summarize one model's rows, all of them in `counts`; `escalated` of the computed ones were handed over."""
    is_cascade, this_run = plan.opened[name].info.is_cascade, tally.totals.models[name]
    scored_rows = sum(this_run.confidence_histogram.value)
    return ModelSummary(
        status=counts.status.value,
        labels=counts.labels.value,
        confidence_histogram=counts.confidence_histogram.value,
        tokens=counts.tokens.value,
        padding_share=tally.models[name].padding_share,
        bundle=plan.run.bundles[name],
        computed_by=tally.models[name].computed_by,
        escalated_rows=escalated if is_cascade else None,
        escalated_share=this_run.escalated_rows.value / scored_rows if is_cascade and scored_rows else None,
    )


def _is_complete(plan: ScorePlan, tally: Tally, tidied: Tidied) -> bool:
    """Return whether the output folder holds every row of the input, and none besides."""
    units = plan.scored_counts.units + tally.totals.units
    left_out = plan.unreadable_shards or tally.failed or tally.stopped
    return units == len(plan.corpus.units) and not (left_out or tidied.stale or tidied.orphans or tidied.fault)


def _write_summary(folder: str, summary: Summary) -> Summary:
    """Write `_summary.json`, and return the summary: where that fails, as one of a run that stopped."""
    content = json.dumps(summary.to_json(), indent=2, ensure_ascii=False) + "\n"
    try:
        storage.write_file(storage.join(folder, outputs.SUMMARY_FILE), content.encode())
        if summary.complete:
            storage.write_file(storage.join(folder, outputs.SUCCESS_FILE), b"")
        else:
            storage.delete_file(storage.join(folder, outputs.SUCCESS_FILE))
    except OSError as error:  # what stopped the run, most likely
        reason = summary.stopped or f"{outputs.SUMMARY_FILE} cannot be written: {error}"
        return replace(summary, stopped=reason)
    return summary
