"""Run a night: score what is new, verify it, compare it with past nights, renew the model, write record and pages.

What is new is what has no valid output yet, however many nights were missed or broke off. So nothing here decides what
is scored twice or never, and a night can be started again at any moment.
"""

import contextlib
import datetime
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sentiment_core.errors import EXIT_ATTENTION, EXIT_BAD_REQUEST, EXIT_FAULT, EXIT_OK, UserError
from sentiment_core.model import bundle
from sentiment_core.model.naming import with_name
from sentiment_core.nightly import alert, drift, lock, pages, record, shares
from sentiment_core.nightly.drift import Comparison, Profile
from sentiment_core.nightly.plan import NightPlan, make_plan
from sentiment_core.nightly.record import PAST, REFERENCE, WHOLE, ModelNight, Night, NightRun
from sentiment_core.nightly.settings import NightlySettings
from sentiment_core.runtime import preflight, storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.scoring import outputs
from sentiment_core.scoring.job import claim_output_folder, score
from sentiment_core.scoring.models import PassModel, tokenizing_models
from sentiment_core.scoring.statistics import Counts, PassCounts
from sentiment_core.scoring.summary import Summary, nonzero
from sentiment_core.scoring.verify import FAULTS, VerifySettings, verify

if TYPE_CHECKING:
    from sentiment_core.training.settings import TrainSettings

MAX_PARTITIONS = 200  # with the most rows, in a record; all others together are "others"
SHOWN_SHARDS = 10  # on the terminal


def nightly(settings: NightlySettings) -> Night:
    """Plan a night and run it.

    Whatever happens is written to the night's record; an exit code other than 0 sends an alert.

    Raises:
        UserError: The request cannot be carried out.
        AlreadyRunning: Another run works on the same output.
    """
    folder = outputs.output_folder(settings.out, settings.limit)
    with _alert_on_refusal(settings):
        first_plan = make_plan(settings) if outputs.read_run_file(folder) is None else None
        preflight.check_writable(folder)
        if first_plan:
            claim_output_folder(first_plan.scoring)  # before anything else is in the folder
        preflight.check_writable(storage.join(folder, record.FOLDER))
    with lock.exclusive_run(storage.join(folder, record.FOLDER, lock.LOCK_FILE)):
        with _alert_on_refusal(settings):
            plan = make_plan(settings)
        night = _open_record(plan)
        _run_night(plan, night)
    return night


def describe_night(night: Night) -> str:
    """Describe a night in a few lines for the terminal."""
    reused = f", {night.reused_rows:,} reused" if night.reused_rows else ""
    lines = [f"night {night.night}: {night.rows:,} rows scored{reused}, {night.left:,} left"]
    lines.append("verified: " + (nonzero(night.verified) if any(night.verified.values()) else "no findings"))
    lines += [f"failed: {shard.source}: {shard.reason}" for shard in night.failed_shards[:SHOWN_SHARDS]]
    if night.renewal:
        lines.append(f"model: {pages.describe_renewal(night.renewal)}")
    if night.not_renewed:
        lines.append(f"model: not renewed: {night.not_renewed}")
    lines += [f"alarm: {alarm}" for alarm in night.alarms]
    return "\n".join(lines)


@contextlib.contextmanager
def _alert_on_refusal(settings: NightlySettings) -> Iterator[None]:
    """Send an alert about a UserError in the block."""
    try:
        yield
    except UserError as error:
        _send_alert(settings, settings.night or "", [str(error)], {})
        raise


def _open_record(plan: NightPlan) -> Night:
    """Return the night's record: the one that an earlier run left, or a new one.

    What a night that broke off has scored counts for the next night.
    """
    clock = record.storage_clock_ns(plan.scoring.output_folder)
    earlier = next((night for night in plan.before if night.night == plan.name), None)
    if earlier:
        night = replace(
            earlier,
            since_ns=_since_ns(plan, earlier, clock),
            state="running",
            exit_code=None,
            rows=0,
            reused_rows=0,
            tokens=0,
            profile=None,
            partitions={},
            comparisons=[],
            alarms=[],
            models={},
            shares=None,
            not_renewed="",
        )
    else:
        last = record.latest_night(plan.before)
        if last and last.state != "done" and not last.rows:
            night = Night(plan.name, since_ns=_since_ns(plan, last, clock))
        else:
            night = Night(plan.name, since_ns=clock)
    night.input_version = plan.corpus.table.version if plan.corpus.table else None
    for model in plan.scoring.models:
        opened = plan.scoring.opened[model.name]
        tokens_by = bundle.tokens_digest_of(opened.files)
        night.set_model(model.name, ModelNight(opened.path, model.bundle, tokens_by, model.labels))
    return night


def _since_ns(plan: NightPlan, continued: Night, clock: int) -> int:
    """Return when a night began that continues another one: earlier than that if the clock has gone back since.

    It stays after all nights before.
    """
    before = max((night.since_ns for night in plan.before if night.night != continued.night), default=0)
    return clock if before < clock < continued.since_ns else continued.since_ns


def _run_night(plan: NightPlan, night: Night) -> None:
    """Carry out the plan and fill in the record. Raises what stops the night, once that is recorded."""
    folder = plan.scoring.output_folder
    started, begun = time.monotonic(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    summary: Summary | None = None
    try:
        record.write_night(folder, night)
        summary = _score(plan, night)
        _verify_and_compare(plan, night, plan.has_units_not_chosen or summary.out_of_time, summary.orphans > 0)
        if shares.are_wanted(plan.settings):
            _report_shares(plan, night)
        if plan.retraining and not plan.settings.limit:  # a look at the first rows changes no model
            _renew(plan, night, plan.retraining)
        night.state = "done"
    except BaseException as error:
        night.state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        night.exit_code = EXIT_BAD_REQUEST if isinstance(error, UserError) else EXIT_FAULT
        night.alarms.append(f"{night.state}: {describe_error(error) if isinstance(error, Exception) else error}")
        raise
    finally:
        outcome = night.state if night.state != "done" else f"exit code {night.exit_code}"
        night.runs.append(_run_record(begun, time.monotonic() - started, outcome, summary))
        try:
            record.write_night(folder, night)
            pages.write_pages(folder, record.read_nights(folder), night.night)
        except (OSError, UserError) as error:  # what stopped scoring, most likely
            night.alarms.append(f"the night's record cannot be written: {describe_error(error)}")
            night.exit_code = night.exit_code or EXIT_FAULT
        if night.exit_code:
            alarms = night.alarms or ["some shards could not be scored"]
            _send_alert(plan.settings, night.night, alarms, night.line)


def _run_record(begun: str, seconds: float, outcome: str, summary: Summary | None) -> NightRun:
    if summary is None:
        return NightRun(begun, seconds, outcome)
    run = summary.run
    return NightRun(
        begun=begun,
        seconds=seconds,
        outcome=outcome,
        rows=run.rows,
        rows_per_second=run.rows_per_second,
        scoring_seconds=run.seconds,
        out_of_time=summary.out_of_time,
        computed_by=run.computed_by,
        padding_share=summary.padding_share,
        reused_rows=run.reused_rows,
    )


def _score(plan: NightPlan, night: Night) -> Summary:
    scoring = plan.scoring
    night.corpus_rows, night.left = scoring.corpus.rows, plan.rows_not_chosen + scoring.rows_to_score
    result = score(scoring, plan.settings.time_limit)
    summary = result.record
    night.failed_shards = summary.failed_shards
    night.left -= summary.run.rows + summary.run.reused_rows
    night.removed += summary.run.deleted_outputs
    night.exit_code = result.exit_code
    if summary.stopped:
        night.alarms.append(f"scoring stopped: {summary.stopped}")
    return summary


def _verify_and_compare(plan: NightPlan, night: Night, has_units_left: bool, has_orphans: bool) -> None:
    """Verify the output and compare the night with its baseline; what is wrong or drifted becomes an alarm.

    Only rows that the night computed are compared: reused ones are of earlier nights.

    Args:
        plan: The night's plan.
        night: Its record.
        has_units_left: Some units are left for the next night, so that their outputs may be missing or stale.
        has_orphans: Outputs of gone shards were kept on purpose.
    """
    _verify(plan, night, has_units_left, has_orphans)
    zero = plan.scoring.context.no_counts
    partitions = _count_partitions(plan, night.since_ns, zero)
    total = PassCounts.total(zero, partitions.values())
    night.rows, night.reused_rows = total.rows, total.reused_rows
    for model in plan.scoring.models:
        counts_of_partitions = {name: part.models[model.name] for name, part in partitions.items()}
        part = _compare_model(plan, night.of_model(model.name), model, total.models[model.name], counts_of_partitions)
        night.set_model(model.name, part)
    night.alarms += describe_drift(plan.scoring.models, night)
    night.tokens = total.tokens
    if night.alarms and night.exit_code == EXIT_OK:
        night.exit_code = EXIT_ATTENTION


def describe_drift(models: Sequence[PassModel], night: Night) -> list[str]:
    """Describe what drifted in a night, as alarms.

    Models that tokenize alike share the alarm that their texts are unlike those of past nights. It begins with the
    first such model's name, or without a name if these are all models. Evaluation rows belong to one bundle.
    """
    all_alike = len(tokenizing_models(models)) == 1
    alarms: dict[tuple[str, ...], str] = {}
    for model in models:
        for comparison in night.of_model(model.name).comparisons:
            if not comparison.drifted:
                continue
            owner = name = model.name
            if comparison.statistic in drift.OF_TEXTS and comparison.against != REFERENCE:
                owner, name = model.tokenizer, "" if all_alike else name
            key = (owner, comparison.statistic, comparison.rows, comparison.against)
            alarms.setdefault(key, f"drift: {with_name(name, str(comparison))}")
    return list(alarms.values())


def _verify(plan: NightPlan, night: Night, has_units_left: bool, has_orphans: bool) -> None:
    settings = plan.settings
    verify_settings = VerifySettings(input=settings.input, out=settings.out, limit=settings.limit)
    findings = verify(verify_settings, night.since_ns, plan.corpus)
    night.verified = {kind: len(getattr(findings, kind)) for kind in (*FAULTS, "unreadable")}
    expected = {"orphaned"} if has_orphans else set()
    if has_units_left or night.left or night.failed_shards:
        expected |= {"missing", "stale"}
    faults = {kind: night.verified[kind] for kind in FAULTS if kind not in expected}
    if any(faults.values()):
        night.exit_code = EXIT_FAULT
        night.alarms.append(f"verification found {nonzero(faults)}; run sentiment-core verify to list the files")


def _count_partitions(plan: NightPlan, since_ns: int, zero: PassCounts) -> dict[str, PassCounts]:
    """Count the rows of a night's outputs by the first folder of their shards, the largest first.

    Of a table it is the first partition folder: Iceberg has all files below one folder. Outputs of changed shards are
    left out where they still wait to be deleted.

    Args:
        plan: The night's plan.
        since_ns: When the night began.
        zero: The statistics of no rows, whose labels the outputs must have.
    """
    counts: dict[str, PassCounts] = {}
    stale = {*plan.scoring.stale, *plan.scoring.aside.values()}
    for output in outputs.read_outputs(plan.scoring.output_folder, since_ns):
        if output.origin and output.counts and output.path not in stale and output.counts.labels == zero.labels:
            folders = output.origin.unit.source.split("/")[:-1]
            if plan.corpus.table:
                folders = [name for name in folders if "=" in name]
            name = folders[0] if folders else "."
            counts[name] = counts.get(name, zero).merge(output.counts)
    order = sorted(counts, key=lambda name: -counts[name].rows)
    largest = {name: counts[name] for name in order[:MAX_PARTITIONS]}
    if rest := order[MAX_PARTITIONS:]:
        largest["others"] = PassCounts.total(zero, (counts[name] for name in rest))
    return largest


def _compare_model(
    plan: NightPlan, night: Night, model: PassModel, total: Counts, counts_of_partitions: Mapping[str, Counts]
) -> ModelNight:
    """Return a model's part of a night, compared with its evaluation rows, past nights and each partition's own past.

    `night`: the night as the model made it, see `Night.of_model`.
    """
    settings, info, several = plan.settings, plan.scoring.opened[model.name].info, model.objective.several
    profile = Profile.from_counts(total, several)
    is_partitioned = set(counts_of_partitions) != {"."}
    partitions = {name: Profile.from_counts(counts, several) for name, counts in counts_of_partitions.items()}
    reference = Profile.from_reference(info.reference, model.labels, several)
    if plan.scoring.run.min_confidence:  # rows that abstain have no label; all evaluation rows have one
        reference.distributions.pop(drift.LABELS, None)
    part = ModelNight(
        model=night.model,
        bundle=night.bundle,
        tokens_by=night.tokens_by,
        labels=night.labels,
        tokens=total.tokens.value,
        profile=profile,
        reference=reference,
        partitions=partitions if is_partitioned else {},
    )
    comparisons = drift.compare(profile, reference, WHOLE, REFERENCE, settings.reference_limit, labels=model.labels)
    return replace(part, comparisons=comparisons + _compare_with_past(plan, night, model, part))


def _compare_with_past(plan: NightPlan, night: Night, model: PassModel, part: ModelNight) -> list[Comparison]:
    """Compare a model's night with past nights, and each partition with its own past."""
    limit, baseline = plan.settings.drift_limit, plan.baseline(model.name)
    past = record.baseline_profile(baseline, night)
    comparisons = drift.compare(part.profile or Profile(), past, WHOLE, PAST, limit, labels=model.labels)
    pairs = {
        name: (partition, record.baseline_profile(baseline, night, name)) for name, partition in part.partitions.items()
    }
    tests = sum(min(now.rows, before.rows) >= drift.MIN_ROWS for now, before in pairs.values())
    for name, (now, before) in pairs.items():
        comparisons += drift.compare(now, before, name, f"{name} in {PAST}", limit, max(1, tests), model.labels)
    return comparisons


def _report_shares(plan: NightPlan, night: Night) -> None:
    """Estimate the shares of labels. A failure is an alarm; the night is done all the same."""
    try:
        night.shares = shares.report_shares(plan.settings, plan.scoring.output_folder, night.drifted)
    except UserError as error:
        night.alarms.append(f"shares were not estimated: {error}")
        night.exit_code = night.exit_code or EXIT_ATTENTION


def _renew(plan: NightPlan, night: Night, retraining: "TrainSettings") -> None:
    """Train and compare a candidate if there are new labels. A failure is an alarm; the night is done all the same."""
    try:
        with lock.exclusive_run(storage.join(str(plan.settings.model), lock.RENEWAL_LOCK_FILE)):
            from sentiment_core.nightly import renewal  # torch and transformers: seconds

            renewal.renew_model(plan, night, retraining)
        if night.renewal:  # of this night's run before
            night.not_renewed = ""
    except lock.AlreadyRunning:
        night.not_renewed = "another night is renewing the model"
    except Exception as error:  # training may fail in any way
        night.alarms.append(f"the model was not renewed: {describe_error(error)}")
        night.exit_code = night.exit_code or EXIT_ATTENTION


def _send_alert(settings: NightlySettings, night: str, alarms: list[str], line: dict[str, Any]) -> None:
    """Send an alert; if that fails, say so on stderr."""
    text = f"night {night} of {settings.out}: {'; '.join(alarms)}"
    failure = alert.send_alert(settings.alert_url, settings.alert_command, text, line)
    if failure:
        print(f"the alert was not delivered: {failure}", file=sys.stderr)
