"""The nightly job: scores what is new, verifies it, compares it with what was before, writes the night's record and
pages, renews the model if asked to, and tells someone when a night needs a look.

What is new is what has no valid output yet, however many nights were missed or broke off. So nothing here decides what
is scored twice or never; a night can be started again at any moment.
"""

import contextlib
import datetime
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from sentiment_core.config import check, parse, setting
from sentiment_core.data.shards import Corpus
from sentiment_core.errors import EXIT_ATTENTION, EXIT_BAD_REQUEST, EXIT_FAULT, EXIT_OK, UserError
from sentiment_core.model import bundle, registry
from sentiment_core.nightly import alert, drift, pages
from sentiment_core.nightly import record as nights
from sentiment_core.nightly.drift import Profile
from sentiment_core.nightly.record import PAST, REFERENCE, WHOLE, Night
from sentiment_core.runtime import preflight, storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.scoring import outputs
from sentiment_core.scoring.job import claim_output_folder, score
from sentiment_core.scoring.plan import ScorePlan, plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.scoring.statistics import Counts
from sentiment_core.scoring.summary import nonzero
from sentiment_core.scoring.verify import FAULTS, VerifySettings, verify

if TYPE_CHECKING:
    from sentiment_core.training.settings import TrainSettings

SHOWN_PARTITIONS = 200  # with the most rows; the others together are "others"
BYTES_PER_TOKEN = 4.5  # of English text, until past nights tell better


@dataclass(frozen=True)
class NightlySettings(ScoreSettings):
    night: str | None = setting(None, "name of the night's record; without it today's date (UTC)", "NAME")
    date_key: str = setting("date", "partition key of the input's folders that --date and --since look at")
    date: str | None = setting(None, "score no other partition than this one of --date-key", "2026-11-30")
    since: str | None = setting(None, "score no partitions before this one of --date-key", "2026-11-01")
    time_limit: float | None = setting(
        None, "minutes after which scoring stops; what is done is committed, the next night goes on", "MINUTES"
    )
    cost_per_hour: float | None = setting(None, "of the cluster, in any currency: --dry-run then tells the cost")
    drift_limit: float = setting(
        0.25, "population stability index between this night and the last 14 from which it is drift"
    )
    reference_limit: float = setting(
        0.25,
        "the same between this night and the rows the bundle was evaluated on; larger where the corpus is known to be unlike them",
    )
    alert_url: str | None = setting(
        None, "webhook to which the night is posted as JSON if its exit code is not 0", "URL"
    )
    alert_command: str | None = setting(None, "shell command that then gets it on standard input", "COMMAND")
    train_config: str | None = setting(
        None,
        "renew the model: --config file of jobs/train.py (without out), used when its data has new labels; --model must be a folder of bundles",
        "FILE.yaml",
    )
    test_data: str | None = setting(
        None, "labelled text on which a candidate must beat the current bundle; not used to train", "D"
    )
    renew_rows: int = setting(1, "renew when there are that many labelled rows more; after drift a single new one does")
    margin: float = setting(0.005, "accuracy by which a candidate must be better, and surely so, to become current")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("time_limit", "cost_per_hour", "drift_limit", "reference_limit"):
            value = getattr(self, name)
            check(value is None or value > 0, name, value, "more than 0")
        check(self.renew_rows >= 1, "renew_rows", self.renew_rows, "1 or more")
        check(0 <= self.margin < 1, "margin", self.margin, "a share from 0 to below 1")
        plain = self.night is None or (re.fullmatch(r"\w[\w.-]*", self.night) and self.night[0] != "_")
        check(bool(plain), "night", self.night, "a name of letters, digits, '.', '-' and '_', such as 2026-11-30")
        check(not (self.date and self.since), "date", self.date, "--date or --since, not both")


@dataclass(frozen=True)
class Plan:
    """What a night is about to do."""

    settings: NightlySettings
    name: str
    work: ScorePlan  # of the chosen partitions
    whole: Corpus  # all partitions
    left: int  # rows to be scored that are not of the chosen partitions
    waiting: bool  # there are shards to be scored that are not of the chosen partitions
    before: list[Night]
    retrain: "TrainSettings | None"

    @property
    def past(self) -> list[Night]:
        return nights.compared_with([night for night in self.before if night.night != self.name])

    def describe(self) -> str:
        """What would run, for the terminal."""
        rows = self.work.rows_to_score
        past_rows = sum(night.rows for night in self.past)
        if past_rows:
            tokens = rows * sum(night.tokens for night in self.past) / past_rows
        else:
            tokens = sum(unit.text_bytes for unit in self.work.units_to_score) / BYTES_PER_TOKEN
        lines = [f"night {self.name}, model {self.work.model}", self.work.describe()]
        lines.append(
            f"about {tokens:,.0f} tokens" + (f"; rows left for other nights: {self.left:,}" if self.left else "")
        )
        runs = [run for night in self.past for run in night.runs if run["rows"]]
        seconds = sum(run.get("scoring_seconds", run["seconds"]) for run in runs)
        if seconds and rows:
            hours = rows * seconds / past_rows / 3600
            cost = self.settings.cost_per_hour
            told = f", cost {cost * hours:,.2f}" if cost is not None else ""
            lines.append(f"about {60 * hours:,.1f} minutes as fast as in past nights{told}")
        elif rows:
            lines.append("how long that takes is told when a night is done")
        if self.retrain:
            lines.append(f"then the model is renewed if {self.retrain.data} has new labels")
        return "\n".join(lines)


def make_plan(settings: NightlySettings) -> Plan:
    """What is to be done; writes nothing. Raises `UserError`."""
    decisions = registry.history(settings.model)
    work = plan_scoring(settings, {decision.digest for decision in decisions if decision.kind != "refused"})
    wanted = _chosen(settings)
    todo = [unit for unit in work.units_to_score if wanted(unit.source)]
    failed = [shard for shard in work.corpus.failed if wanted(shard.source)]
    none = not failed and not any(wanted(unit.source) for unit in work.corpus.units)
    if (settings.date or settings.since) and none:
        chosen = f"--date {settings.date}" if settings.date else f"--since {settings.since}"
        raise UserError(
            f"{chosen}: --input {settings.input} has no such folder {settings.date_key}=...; see --date-key"
        )
    left = work.rows_to_score - sum(unit.rows for unit in todo)
    stale = [path for path in work.stale if wanted(path)]  # outputs lie in folders as their shards do
    name = settings.night or datetime.datetime.now(datetime.UTC).date().isoformat()
    retrain = _retraining(settings, work.info.labels if decisions else None)
    before = nights.read_all(work.output_folder)
    last = nights.latest(before)
    if last and last.night != name and name in (night.night for night in before):
        raise UserError(f"--night {name} is over: {last.night} has begun since; give that name, or a new one")
    part = replace(work, units_to_score=todo, stale=stale, corpus=replace(work.corpus, failed=failed))
    return Plan(settings, name, part, work.corpus, left, len(todo) < len(work.units_to_score), before, retrain)


def nightly(settings: NightlySettings) -> Night:
    """Plan a night and run it. Whatever happens stands in the night's record, and is told to whom it may concern. Raises
    `UserError`, and `AtWork` if another run is at work on the same output."""
    place = outputs.output_folder(settings.out, settings.limit)
    with _telling(settings):
        fresh = make_plan(settings) if outputs.read_run_file(place) is None else None
        preflight.check_writable(place)
        if fresh:
            claim_output_folder(fresh.work)  # before there is anything else in it
        preflight.check_writable(storage.join(place, nights.FOLDER))
    with nights.alone(place):
        with _telling(settings):
            plan = make_plan(settings)
        night = _begun(plan)
        started, begun = time.monotonic(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        scoring: dict = {}
        try:
            nights.write(place, night)
            scoring = _score(plan, night)
            _watch(plan, night, plan.waiting or scoring["out_of_time"])
            if plan.retrain and not settings.limit:  # a look changes no model
                _renew(plan, night, plan.retrain)
            night.state = "done"
        except BaseException as error:
            mistake = isinstance(error, UserError)
            night.state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            night.exit_code = EXIT_BAD_REQUEST if mistake else EXIT_FAULT
            night.alarms.append(f"{night.state}: {describe_error(error) if isinstance(error, Exception) else error}")
            raise
        finally:
            outcome = night.state if night.state != "done" else f"exit code {night.exit_code}"
            seconds = time.monotonic() - started
            night.runs.append({"begun": begun, "seconds": seconds, "outcome": outcome, "rows": 0} | scoring)
            try:
                nights.write(place, night)
                pages.write_pages(place, nights.read_all(place), night.night)
            except (OSError, UserError) as error:  # what stopped scoring, most likely
                night.alarms.append(f"the night's record cannot be written: {describe_error(error)}")
                night.exit_code = night.exit_code or EXIT_FAULT
            if night.exit_code:
                _tell(settings, night.night, night.alarms or ["some shards could not be scored"], night.line)
    return night


@contextlib.contextmanager
def _telling(settings: NightlySettings) -> Iterator[None]:
    """Tells of a request that cannot be met."""
    try:
        yield
    except UserError as error:
        _tell(settings, settings.night or "", [str(error)], {})
        raise


def report(night: Night) -> str:
    """A few lines for the terminal."""
    lines = [f"night {night.night}: {night.rows:,} rows scored, {night.left:,} left"]
    lines.append("verified: " + (nonzero(night.verified) if any(night.verified.values()) else "nothing wrong"))
    lines += [f"failed: {shard['source']}: {shard['reason']}" for shard in night.failed_shards[:10]]
    if night.renewal:
        lines.append(f"model: {pages.describe_renewal(night)}")
    lines += [f"alarm: {alarm}" for alarm in night.alarms]
    return "\n".join(lines)


def _chosen(settings: NightlySettings) -> Callable[[str], bool]:
    """Which shards, by path, --date and --since choose."""
    prefix = settings.date_key + "="

    def value(path: str) -> str | None:
        parts = (part.removeprefix(prefix) for part in path.split("/")[:-1] if part.startswith(prefix))
        return next(parts, None)

    if settings.date:
        return lambda path: value(path) == settings.date
    if settings.since:
        return lambda path: (value(path) or "") >= (settings.since or "")
    return lambda path: True


def _retraining(settings: NightlySettings, labels: list[str] | None) -> "TrainSettings | None":
    """How a candidate would be trained, for the `labels` of the current bundle (None where --model is no folder of
    bundles); None if that is not asked for. Raises `UserError`."""
    if not settings.train_config:
        return None
    if not settings.test_data:
        raise UserError("--train-config is given without --test-data; expected labelled text to compare models on")
    if labels is None:
        raise UserError(
            f"--train-config renews the model, and --model {settings.model} is not a folder of bundles; make one, and "
            f"a bundle in it current: jobs/promote.py --models DIR --bundle NAME"
        )
    from sentiment_core.training.settings import TrainSettings

    found = parse(TrainSettings, None, ["--config", settings.train_config, "--out", settings.model])
    if found.label_names and list(found.label_names) != labels:
        raise UserError(
            f"--train-config {settings.train_config} has the label_names {','.join(found.label_names)}; expected those "
            f"of the current bundle, {','.join(labels)}, or none"
        )
    return replace(found, label_names=tuple(labels))


def _begun(plan: Plan) -> Night:
    """The night's record, as it was left or new. What a run that broke off has scored is this night's, too."""
    same = next((night for night in plan.before if night.night == plan.name), None)
    if same:
        anew: dict[str, Any] = {
            "rows": 0,
            "tokens": 0,
            "profile": {},
            "partitions": {},
            "comparisons": [],
            "alarms": [],
        }
        night = replace(same, state="running", exit_code=None, **anew)
    else:
        last = nights.latest(plan.before)
        broke_off = last and last.state != "done" and not last.rows
        night = Night(
            plan.name, since_ns=last.since_ns if last and broke_off else nights.now_ns(plan.work.output_folder)
        )
    night.model, night.bundle, night.labels = plan.work.model, plan.work.run.bundle, plan.work.info.labels
    night.tokens_by = bundle.tokens_digest_of(plan.work.bundle_files)
    return night


def _score(plan: Plan, night: Night) -> dict:
    """Scores; what is to be noted of the run."""
    work = plan.work
    night.corpus_rows, night.left = work.corpus.rows, plan.left + work.rows_to_score
    night.removed += len(work.stale) + (len(work.orphans) if plan.settings.prune else 0)
    done = score(work, plan.settings.time_limit)
    summary, run = done.summary, done.summary["run"]
    night.failed_shards = summary["failed_shards"]
    night.left -= run["rows"]
    night.exit_code = done.exit_code
    if summary["stopped"]:
        night.alarms.append(f"scoring stopped: {summary['stopped']}")
    return {
        "rows": run["rows"],
        "rows_per_second": run["rows_per_second"],
        "scoring_seconds": run["seconds"],
        "out_of_time": summary["out_of_time"],
        "computed_by": run["computed_by"],
        "padding_share": summary["padding_share"],
    }


def _watch(plan: Plan, night: Night, waiting: bool) -> None:
    """Verifies the night, and compares it with others. `waiting`: some shards are left to the next one."""
    place, settings = plan.work.output_folder, plan.settings
    found = verify(
        VerifySettings(input=settings.input, out=settings.out, limit=settings.limit), night.since_ns, plan.whole
    )
    night.verified = {kind: len(getattr(found, kind)) for kind in (*FAULTS, "unreadable")}
    awaited = {"orphaned"} if not settings.prune else set()
    if waiting or night.left or night.failed_shards:
        awaited |= {"missing", "stale"}
    wrong = {kind: night.verified[kind] for kind in FAULTS if kind not in awaited}
    if any(wrong.values()):
        night.exit_code = EXIT_FAULT
        night.alarms.append(f"verification found {nonzero(wrong)}; run jobs/verify.py for the files")
    counts = dict(_by_partition(place, night.since_ns, night.labels))
    whole = Counts.total(night.labels, counts.values())
    night.rows, night.tokens = whole.rows, whole.tokens.value
    night.profile = asdict(profile := Profile.of(whole))
    night.partitions = {name: asdict(Profile.of(part)) for name, part in counts.items()} if set(counts) != {"."} else {}
    night.comparisons = []
    info, past = plan.work.info, plan.past
    reference = Profile.of_reference(info.reference, info.labels)
    if settings.min_confidence:  # some labels are left out here, and none there
        reference.distributions.pop(drift.LABELS, None)
    night.reference = asdict(reference)
    found_all = drift.compare(profile, reference, WHOLE, REFERENCE, settings.reference_limit)
    found_all += drift.compare(profile, nights.past_profile(past, night), WHOLE, PAST, settings.drift_limit)
    pairs = {name: (Profile(**part), nights.past_profile(past, night, name)) for name, part in night.partitions.items()}
    many = sum(min(part.rows, own.rows) >= drift.LEAST_ROWS for part, own in pairs.values())
    for name, (part, own) in pairs.items():
        found_all += drift.compare(part, own, name, f"{name} in {PAST}", settings.drift_limit, max(1, many))
    night.comparisons = [asdict(one) | {"drifted": one.drifted, "told": str(one)} for one in found_all]
    night.alarms += [f"drift: {one}" for one in found_all if one.drifted]
    if night.alarms and night.exit_code == EXIT_OK:
        night.exit_code = EXIT_ATTENTION


def _by_partition(place: str, since_ns: int, labels: list[str]) -> Iterator[tuple[str, Counts]]:
    """What the outputs of a night hold, by the first folder of their shards, the largest first."""
    found: dict[str, Counts] = {}
    for output in outputs.read_outputs(place, since_ns):
        if output.origin and output.counts and list(output.counts.labels.value) == labels:
            name = output.origin.unit.source.rpartition("/")[0].partition("/")[0] or "."
            found[name] = found.get(name, Counts.zero(labels)).merge(output.counts)
    order = sorted(found, key=lambda name: -found[name].rows)
    yield from ((name, found[name]) for name in order[:SHOWN_PARTITIONS])
    if rest := order[SHOWN_PARTITIONS:]:
        yield "others", Counts.total(labels, (found[name] for name in rest))


def _renew(plan: Plan, night: Night, retrain: "TrainSettings") -> None:
    """Trains and compares a candidate if there are new labels. What goes wrong there is an alarm; the night is done."""
    from sentiment_core.nightly import renewal
    from sentiment_core.training.data import read_parts

    settings = plan.settings
    try:
        parts = read_parts(retrain)
        rows, fingerprint = len(parts[0]), parts[0].fingerprint()
        trained = plan.work.info.training.data
        tried = {trained.fingerprint: trained.train_rows}
        tried |= {other.renewal["fingerprint"]: other.renewal["rows"] for other in plan.before if other.renewal}
        drifted = any(one["drifted"] for one in night.comparisons)
        few = rows - max(tried.values()) < settings.renew_rows
        if fingerprint in tried or (few and not drifted):
            return
        name = renewal.candidate_name(retrain, fingerprint)
        if any(decision.bundle == name for decision in registry.history(settings.model)):
            return  # by a night of another output, or gone back from
        found = renewal.renew(retrain, parts, settings.model, name, settings.test_data or "", settings.margin)
        night.renewal = found | {"rows": rows, "fingerprint": fingerprint}
    except Exception as error:  # of training, too
        night.alarms.append(f"the model was not renewed: {describe_error(error)}")
        night.exit_code = night.exit_code or EXIT_ATTENTION


def _tell(settings: NightlySettings, night: str, alarms: list[str], record: dict) -> None:
    text = f"night {night} of {settings.out}: {'; '.join(alarms)}"
    failure = alert.send(settings.alert_url, settings.alert_command, text, record)
    if failure:
        print(f"the alert was not delivered: {failure}", file=sys.stderr)
