"""Plan a night: which partitions are scored, and how the model would be renewed."""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sentiment_core.config import parse
from sentiment_core.data import partitions
from sentiment_core.data.shards import Corpus
from sentiment_core.errors import UserError
from sentiment_core.model import registry
from sentiment_core.model.naming import read_models, with_name
from sentiment_core.nightly import record, shares
from sentiment_core.nightly.record import Night
from sentiment_core.nightly.settings import NightlySettings, find_zone
from sentiment_core.scoring.plan import ScorePlan, plan_scoring

if TYPE_CHECKING:
    from sentiment_core.training.settings import TrainSettings

BYTES_PER_TOKEN = 4.5  # of English text; used until past nights tell the corpus's own


@dataclass(frozen=True)
class NightPlan:
    """Plan of a night: what is scored, compared with and trained."""

    settings: NightlySettings
    name: str
    scoring: ScorePlan  # of the chosen partitions
    corpus: Corpus  # all partitions
    rows_not_chosen: int  # to be scored, in partitions that were not chosen
    has_units_not_chosen: bool  # those may be without rows
    before: list[Night]  # all nights that have a record
    retraining: "TrainSettings | None"  # None: no renewal
    reused_rows: int = 0  # of the rows to score, about, whose scores are reused; estimated in a dry run only

    def baseline(self, model: str | None = None) -> list[Night]:
        """Return the nights that this one is compared with, as one of its models made them.

        Without a model they are those in which no model drifted.
        """
        before = [night for night in self.before if night.night != self.name]
        return record.baseline_nights([night if model is None else night.of_model(model) for night in before])

    def describe(self) -> str:
        """Say what would be done, for the terminal."""
        models = ", ".join(with_name(name, path) for name, path in self.scoring.paths.items())
        lines = [f"night {self.name}, model {models}", self.scoring.describe(), self._describe_tokens()]
        if self.rows_to_compute:
            lines.append(self._describe_time())
        if self.retraining:
            lines.append(f"then the model is renewed if {self.retraining.data} has new labels")
        return "\n".join(lines)

    @property
    def rows_to_compute(self) -> int:
        """About how many rows are computed: those to score without reused ones."""
        return self.scoring.rows_to_score - self.reused_rows

    def _describe_tokens(self) -> str:
        baseline, rows = self.baseline(), self.rows_to_compute
        past_rows = sum(night.rows for night in baseline)
        if past_rows:
            tokens = rows * sum(night.tokens for night in baseline) / past_rows
        else:
            text_bytes = sum(unit.text_bytes for unit in self.scoring.units_to_score)
            share = rows / max(1, self.scoring.rows_to_score)
            tokens = share * text_bytes / BYTES_PER_TOKEN * len(self.scoring.paths)
        left = f"; rows left for other nights: {self.rows_not_chosen:,}" if self.rows_not_chosen else ""
        return f"about {tokens:,.0f} tokens{left}"

    def _describe_time(self) -> str:
        """Estimate time and cost from the baseline."""
        baseline = self.baseline()
        runs = [run for night in baseline for run in night.runs if run.rows]
        seconds = sum(run.seconds if run.scoring_seconds is None else run.scoring_seconds for run in runs)
        if not seconds:
            return "no estimate of the time before the first night is done"
        rows_per_second = sum(night.rows for night in baseline) / seconds
        minutes = self.rows_to_compute / rows_per_second / 60
        cost = self.settings.cost_per_hour
        return f"about {minutes:,.{0 if minutes >= 10 else 1}f} minutes at past nights' speed" + (
            "" if cost is None else f", cost {cost * minutes / 60:,.2f}"
        )


def make_plan(settings: NightlySettings) -> NightPlan:
    """Plan a night. Writes nothing. Raises UserError."""
    _refuse_renewal_of_several(settings)
    decisions = {name: registry.history(path) for name, path in read_models(settings.model).items()}
    promoted = {
        name: {decision.digest for decision in history if decision.kind != "refused"}
        for name, history in decisions.items()
    }
    scoring = plan_scoring(settings, promoted)
    shares.check_request(settings, scoring.output_folder)
    is_chosen = _choose_partitions(settings, scoring.corpus)
    units = [unit for unit in scoring.units_to_score if is_chosen(unit.source)]
    failed = [shard for shard in scoring.corpus.failed if is_chosen(shard.source)]
    if not failed and not any(is_chosen(unit.source) for unit in scoring.corpus.units):
        _refuse_empty_choice(settings, "partition" if scoring.corpus.table else "folder")
    name = settings.night or datetime.datetime.now(find_zone(settings.timezone)).date().isoformat()
    retraining = _plan_retraining(settings, {m.name: m.labels for m in scoring.models if decisions[m.name]})
    if retraining:
        _refuse_other_texts(settings, retraining, scoring.run.text_columns)
    before = record.read_nights(scoring.output_folder)
    last = record.latest_night(before)
    if last and last.night != name and name in (night.night for night in before):
        raise UserError(f"--night {name} is over: {last.night} has started since. Give that name, or a new one.")
    left = {unit.source for unit in scoring.units_to_score if not is_chosen(unit.source)}  # so are their old outputs
    chosen = replace(
        scoring,
        units_to_score=units,
        stale=[path for path in scoring.stale if scoring.old_units[path].source not in left],
        aside={path: to for path, to in scoring.aside.items() if scoring.old_units[to].source not in left},
        corpus=replace(scoring.corpus, failed=failed),
    )
    return NightPlan(
        settings=settings,
        name=name,
        scoring=chosen,
        corpus=scoring.corpus,
        rows_not_chosen=scoring.rows_to_score - chosen.rows_to_score,
        has_units_not_chosen=len(units) < len(scoring.units_to_score),
        before=before,
        retraining=retraining,
        reused_rows=chosen.estimated_reused_rows if settings.dry_run else 0,
    )


def _choose_partitions(settings: NightlySettings, corpus: Corpus) -> Callable[[str], bool]:
    """Return the function that tells by a shard's path whether --date or --since choose it.

    Rows without a date are not chosen by either. The values of a table's file stand in its log, not in its path.
    """
    logged = {file.stamp.path: file.values for file in corpus.table.files} if corpus.table else None

    def is_chosen(path: str) -> bool:
        values = partitions.partition_values(path) if logged is None else logged.get(path, {})
        value = values.get(settings.date_key)
        if value is None:
            return False
        if settings.date:
            return partitions.is_same(value, settings.date)
        return partitions.is_from_on(value, settings.since or "", path)

    return is_chosen if settings.date or settings.since else lambda path: True


def _refuse_empty_choice(settings: NightlySettings, kind: str) -> None:
    """Raise UserError if --date or --since choose nothing; `kind`: partition of a table, or folder."""
    key, folder = settings.date_key, f"--input {settings.input}"
    if settings.date:
        raise UserError(
            f"--date {settings.date}: {folder} has no {kind} {key}={settings.date}. Check the date and --date-key."
        )
    if settings.since:
        raise UserError(
            f"--since {settings.since}: {folder} has no {kind} {key}=... from then on. Check the date and --date-key."
        )


def _refuse_renewal_of_several(settings: NightlySettings) -> None:
    names = list(read_models(settings.model))
    if settings.train_config and names != [""]:
        raise UserError(
            f"--train-config renews one model, and --model names {', '.join(names)}. Leave it out, or renew the model "
            "in nights of its own, with another --out."
        )


def _refuse_other_texts(settings: NightlySettings, retraining: "TrainSettings", read: list[str]) -> None:
    """Refuse a renewal by other texts than the nights read. A single column may have any name. Raises UserError.

    Of several columns the model remembers the names; --text-column may say that a single one holds the same texts.
    """
    learned = list(retraining.text_column)
    if learned != read and (len(learned) > 1 or (len(read) > 1 and not settings.text_column)):
        raise UserError(
            f"--train-config {settings.train_config} has text_column {','.join(learned)}, and the nights read "
            f"{','.join(read)}; a model of the one is not right for the other. Give the same columns."
        )


def _plan_retraining(settings: NightlySettings, labels_of: Mapping[str, list[str]]) -> "TrainSettings | None":
    """Return the settings to train a candidate with; None without --train-config.

    `labels_of`: by the model's name, the labels of the current bundle of each model that is a folder of bundles.
    Raises UserError.
    """
    if not settings.train_config:
        return None
    model = read_models(settings.model)[""]
    if not settings.test_data:
        raise UserError("--train-config needs --test-data. Give labelled text to compare the models on.")
    labels = labels_of.get("")
    if labels is None:
        raise UserError(
            f"--train-config renews the model, and --model {model} is not a folder of bundles. Make one, and "
            "make a bundle in it current: sentiment-core promote --models DIR --bundle NAME."
        )
    # imports torch and transformers: seconds that nights without a renewal do without
    from sentiment_core.training.settings import TrainSettings

    train = parse(TrainSettings, None, ["--config", settings.train_config, "--out", model])
    if train.label_names and list(train.label_names) != labels:
        raise UserError(
            f"--train-config {settings.train_config} has the label_names {','.join(train.label_names)}; expected those "
            f"of the current bundle, {','.join(labels)}, or none"
        )
    if train.min_label_rows > 1:
        raise UserError(
            f"--train-config {settings.train_config} has min_label_rows {train.min_label_rows}; a candidate keeps all "
            "labels of the current bundle. Remove it."
        )
    return train
