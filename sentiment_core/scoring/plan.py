"""The plan of a scoring run: what is scored already and what is left, from footers alone."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from sentiment_core.data import shards
from sentiment_core.data.columns import ColumnClash
from sentiment_core.data.shards import Corpus, Unit
from sentiment_core.errors import UserError
from sentiment_core.inference.int8 import require_int8_agreement
from sentiment_core.model.cascade import describe_cost
from sentiment_core.model.guarantee import derive_threshold
from sentiment_core.model.naming import read_models, with_name
from sentiment_core.model.records import Guarantee
from sentiment_core.model.source import OpenedModel
from sentiment_core.runtime import preflight, storage
from sentiment_core.scoring import models, outputs, reuse
from sentiment_core.scoring.candidates import Candidates
from sentiment_core.scoring.context import ScoringContext
from sentiment_core.scoring.models import PassModel
from sentiment_core.scoring.outputs import Output
from sentiment_core.scoring.records import ModelRun, Run, UnitOrigin, was_made_by
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.scoring.statistics import PassCounts
from sentiment_core.scoring.summary import SHOWN_SHARDS


@dataclass(frozen=True)
class ScorePlan:
    """The work that a run is about to do, known before Ray starts."""

    settings: ScoreSettings
    output_folder: str
    run: Run
    earlier_bundles: list[str]  # digests of bundles whose outputs stay
    opened: dict[str, OpenedModel]  # with their files, by the models' names; "" is the name of a single one
    models: tuple[PassModel, ...]
    corpus: Corpus
    units_to_score: list[Unit]
    scored_counts: PassCounts  # of the units that are scored already
    stale: list[str]  # outputs of shards that have changed since, but for those that new outputs take the place of
    orphans: list[str]  # outputs of shards that are gone
    # outputs of changed shards whose path a new one takes, and where they are kept until the end: their rows may stand
    # in another shard now
    aside: dict[str, str]
    old_units: dict[str, UnitOrigin]  # by the path of each of these outputs, the unit that it was made of
    found_again: dict[str, list[str]]  # by orphan, outputs that share texts with it
    written_at: dict[str, int]  # when outputs were written, in ns; empty if there are no orphans
    to_rewrite: list[str]  # outputs with another type of a column than other shards showed since
    unreadable_shards: int  # count those of all partitions; `corpus.failed` has those of the chosen ones
    hash_texts: bool = True  # outputs get the texts' hashes
    candidates: Candidates | None = None  # outputs whose scores may be reused
    replaces_gone: bool = False  # the input says what is gone, as a table does: its outputs go without --prune
    guarantee: Guarantee | None = None  # of --target-accuracy

    @property
    def context(self) -> ScoringContext:
        """The context that the run's tasks share."""
        corpus = self.corpus
        return ScoringContext(
            corpus.root,
            self.output_folder,
            self.run,
            self.models,
            corpus.column_types,
            corpus.columns,
            self.hash_texts,
            self.aside,
            self.candidates,
        )

    @property
    def bundle_files(self) -> dict[str, dict[str, bytes]]:
        """The contents of the bundles' files, by the model's name, then by the file's."""
        return {name: model.files for name, model in self.opened.items()}

    @property
    def paths(self) -> dict[str, str]:
        """Paths of the bundles, or names on the hub and revisions, by the models' names."""
        return {name: model.path for name, model in self.opened.items()}

    @property
    def rows_to_score(self) -> int:
        """The rows of all units that are not scored yet."""
        return sum(unit.rows for unit in self.units_to_score)

    @cached_property
    def estimated_reused_rows(self) -> int:
        """About how many of the rows to score will be reused: this reads the texts of a few units."""
        return reuse.estimate_reused_rows(self.context, self.units_to_score)

    @property
    def outputs_to_delete(self) -> list[str]:
        """Paths of outputs that the run deletes at its end if it has no failures, whatever stands in new ones."""
        return [*self.stale, *(self.orphans if self.settings.prune or self.replaces_gone else [])]

    def describe(self) -> str:
        """Say what would be done, for the terminal."""
        corpus = self.corpus
        deleted = "deleted" if self.settings.prune or self.replaces_gone else "kept"
        if deleted == "kept" and self.candidates:
            deleted = "kept unless all of their rows are found again"
        lines = [
            f"{corpus.rows:,} rows in {len(corpus.units):,} units; to score: {self.rows_to_score:,} rows in "
            f"{len(self.units_to_score):,} units; already scored: {self.scored_counts.units:,} units",
            *([self.guarantee.describe()] if self.guarantee else []),
            *([f"version {corpus.table.version} of a table of {corpus.table.kind}"] if corpus.table else []),
            f"outputs of changed shards, to be deleted: {len(self.stale):,}; outputs of shards that are gone, to be "
            f"{deleted}: {len(self.orphans):,}; unreadable shards: {len(corpus.failed):,}",
            *self._describe_reuse(),
            *self.describe_cascades(self.estimated_reused_rows if self.candidates else 0),
            *(f"not read: {line}" for line in corpus.unread),
            *(f"differs between shards: {difference}" for difference in corpus.schema_differences),
            *(f"unreadable: {shard.source}: {shard.reason}" for shard in corpus.failed[:SHOWN_SHARDS]),
        ]
        return "\n".join(lines)

    def describe_cascades(self, reused_rows: int = 0) -> list[str]:
        """Say what share of the rows cascades hand over and what that costs; nothing where there is none.

        `reused_rows`: of the rows to score, those that need not be computed.
        """
        rows = self.rows_to_score - reused_rows
        return [
            with_name(name, describe_cost(model.info.cascade, rows))
            for name, model in self.opened.items()
            if model.info.cascade.rows_per_second and rows
        ]

    def _describe_reuse(self) -> list[str]:
        if not (self.candidates and self.units_to_score):
            return []
        return [
            f"about {self.estimated_reused_rows:,} of the rows to score have a known text, whose score is reused "
            f"(estimated from up to {reuse.ESTIMATED_UNITS} units)"
        ]


def plan_scoring(
    settings: ScoreSettings, replaced_bundles: Mapping[str, Collection[str]] = MappingProxyType({})
) -> ScorePlan:
    """Plan a scoring run. Reads footers, writes nothing.

    Args:
        settings: The request.
        replaced_bundles: By the models' names, digests of bundles that `--model` has taken the place of. Their outputs
            stay, provided that bundles are the only difference.

    Raises UserError where the request cannot be carried out.
    """
    opened = models.open_models(settings.model)
    if settings.int8:
        for name, path in read_models(settings.model).items():
            require_int8_agreement(path, opened[name].info, opened[name].files)
    models_of_pass = models.describe_models(opened)
    guarantee = _take_guarantee(settings, opened)
    run = _describe_run(settings, opened, models_of_pass, guarantee)
    folder = outputs.output_folder(settings.out, settings.limit)
    all_shards, hash_texts = _plan_shards(settings, run, folder)
    corpus = shards.limit_rows(all_shards, settings.limit) if settings.limit else all_shards
    preflight.check_lasting(settings.out)
    earlier_bundles = check_output_folder(
        folder, corpus, run, lambda there: _were_replaced(there.bundles, run.bundles, replaced_bundles)
    )
    existing = list(outputs.read_outputs(folder, types=corpus.column_types))
    labels = {model.name: model.labels for model in models_of_pass}
    there = _compare_with_outputs(corpus, all_shards, existing, run, earlier_bundles, labels)
    orphans = set(there.orphans)
    to_be_deleted = {*there.stale, *there.orphans}
    aside = _choose_aside(there, not all_shards.failed)
    reusable = [output for output in there.replaced if hash_texts and _may_be_reused(output, run)]
    return ScorePlan(
        settings=settings,
        output_folder=folder,
        run=run,
        earlier_bundles=earlier_bundles,
        opened=opened,
        models=models_of_pass,
        corpus=corpus,
        units_to_score=there.units_to_score,
        scored_counts=there.scored_counts,
        stale=there.stale,
        orphans=there.orphans,
        aside=aside,
        old_units={
            aside.get(output.path, output.path): output.origin.unit
            for output in there.replaced
            if output.origin and (output.path in to_be_deleted or output.path in aside)
        },
        found_again={path: others for path, others in there.found_again.items() if path in orphans},
        written_at={output.path: output.mtime_ns for output in existing} if orphans else {},
        to_rewrite=there.to_rewrite,
        unreadable_shards=len(all_shards.failed),
        hash_texts=hash_texts,
        candidates=Candidates.of(reusable, lambda output: output.path in orphans),
        replaces_gone=corpus.table is not None,
        guarantee=guarantee,
    )


def _plan_shards(settings: ScoreSettings, run: Run, folder: str) -> tuple[Corpus, bool]:
    """Plan the input, and return whether outputs get the texts' hashes. Raises UserError.

    An older version kept an input's own column of that name: such an output is continued without hashes.
    """

    def plan(reserved: tuple[str, ...]) -> Corpus:
        return shards.plan(settings.input, run.text_columns, settings.keep, reserved, settings.input_version)

    if not settings.reuse:
        return plan(run.scored_columns), False
    try:
        return plan((*run.scored_columns, run.text_hash_column)), True
    except ColumnClash as clash:
        if clash.column.lower() != run.text_hash_column.lower():
            raise
        is_older = storage.exists(folder) and outputs.read_run_file(folder) is not None
        if not is_older or any(output.has_text_hash for output in outputs.read_outputs(folder)):
            raise UserError(f"{clash}; --no-reuse leaves the scored column {run.text_hash_column!r} out") from None
    return plan(run.scored_columns), False


def _may_be_reused(output: Output, run: Run) -> bool:
    """Return whether an output has the scores that this run would compute of the same texts, and their hashes."""
    origin = output.origin
    return output.has_text_hash and origin is not None and origin.run == run and not origin.unknown_settings


def _take_guarantee(settings: ScoreSettings, opened: Mapping[str, OpenedModel]) -> Guarantee | None:
    """Return the bundle's guarantee of --target-accuracy, if that is given. Raises UserError."""
    if settings.target_accuracy is None:
        return None
    if len(opened) > 1:
        raise UserError(
            f"--target-accuracy takes one model, and --model names {', '.join(opened)}; score them in passes of their "
            "own, or give --min-confidence"
        )
    (model,) = opened.values()
    return derive_threshold(model.path, model.info, settings.target_accuracy, settings.certainty)


def _describe_run(
    settings: ScoreSettings,
    opened: Mapping[str, OpenedModel],
    described: tuple[PassModel, ...],
    guarantee: Guarantee | None,
) -> Run:
    """Return the settings that decide the content of all outputs. Raises UserError."""
    by_name = {model.name: ModelRun(model.bundle, model.objective.several) for model in described}
    only = by_name.pop("", None)
    several = [model.objective.several for model in described]
    return Run(
        input=storage.absolute(settings.input),
        bundle=models.digest_of_all({model.name: model.bundle for model in described}),
        text_column=",".join(models.text_columns(opened, settings.text_column)),
        keep=None if settings.keep is None else list(settings.keep),
        probabilities=settings.probabilities or all(several),  # several labels a row are written with them
        limit=settings.limit,
        int8=settings.int8,
        min_confidence=(guarantee.min_confidence or 0.0) if guarantee else settings.min_confidence,
        prefix=settings.prefix,
        precision=settings.precision,
        multi_label=only.multi_label if only else False,
        models=by_name,
        target_accuracy=settings.target_accuracy,
        certainty=guarantee.certainty if guarantee else None,
    )


@dataclass
class _ExistingOutputs:
    """The outputs of a folder, compared with the units of the input."""

    units_to_score: list[Unit]
    scored_counts: PassCounts  # of the other units
    stale: list[str] = field(default_factory=list)  # as in `ScorePlan`, and so are the next two
    orphans: list[str] = field(default_factory=list)
    to_rewrite: list[str] = field(default_factory=list)
    replaced: list[Output] = field(default_factory=list)  # stale ones, orphans, and those with the path of a new one
    found_again: dict[str, list[str]] = field(default_factory=dict)  # outputs that are current, by what they replace


def _compare_with_outputs(
    corpus: Corpus,
    all_shards: Corpus,
    existing: list[Output],
    run: Run,
    earlier_bundles: list[str],
    labels: Mapping[str, list[str]],
) -> _ExistingOutputs:
    units = {unit.output: unit for unit in corpus.units}
    readable, unreadable = {unit.source for unit in all_shards.units}, {shard.source for shard in all_shards.failed}
    there = _ExistingOutputs([], PassCounts.zero(labels))
    hashes = {} if corpus.table else _hash_scored_shards(corpus, existing, units)
    for output in existing:
        if output.origin is None or output.counts is None:
            continue  # if it has the name of a unit's output, it is replaced
        unit, source = units.get(output.path), output.origin.unit.source
        if unit:
            if corpus.table is None:
                unit = replace(unit, footer_hash=hashes.get(source))
            if was_made_by(output.origin, run, unit, earlier_bundles):
                there.scored_counts = there.scored_counts.merge(output.counts)
                there.to_rewrite += [output.path] * output.has_other_types
                for path in output.replaced:
                    there.found_again.setdefault(path, []).append(output.path)
                del units[output.path]
            else:
                there.replaced.append(output)
        elif source not in unreadable:
            (there.stale if source in readable else there.orphans).append(output.path)
            there.replaced.append(output)
    there.units_to_score = list(units.values())
    return there


def _choose_aside(there: _ExistingOutputs, all_are_readable: bool) -> dict[str, str]:
    """Return which outputs are copied before a new one takes their path, and where to.

    Where all shards can be read and a single unit is to be scored, no rows can have moved to another one.
    """
    new = {unit.output for unit in there.units_to_score}
    if len(new) < 2 and all_are_readable:
        return {}
    return {
        output.path: outputs.aside_path(output.path, output.origin.unit)
        for output in there.replaced
        if output.origin and output.path in new
    }


def _hash_scored_shards(corpus: Corpus, existing: list[Output], units: dict[str, Unit]) -> dict[str, str | None]:
    """Hash the footers of shards whose outputs noted a hash, by source; only these can be compared."""
    sizes = {
        unit.source: unit.size
        for output in existing
        if output.origin and output.origin.unit.footer_hash and (unit := units.get(output.path))
    }

    def hash_one(item: tuple[str, int]) -> str | None:
        try:
            return shards.hash_footer(corpus.root, *item)
        except OSError:  # gone since its footer was read: scoring will say so
            return None

    return dict(zip(sizes, storage.map_in_threads(hash_one, sizes.items()), strict=True))


def _were_replaced(
    earlier: Mapping[str, str], bundles: Mapping[str, str], replaced: Mapping[str, Collection[str]]
) -> bool:
    """Return whether each model's earlier bundle is its present one, or one whose place that has taken."""
    return all(digest == bundles.get(name) or digest in replaced.get(name, ()) for name, digest in earlier.items())


def check_output_folder(
    folder: str, corpus: Corpus, run: Run, is_earlier_run: Callable[[Run], bool] = lambda there: False
) -> list[str]:
    """Refuse an output folder that this run may not write to.

    It may not overlap the input, hold other things, or hold the output of another run or of a later version of the
    table. A run with other bundles is no other run if `is_earlier_run` says so. Returns the digests of the earlier
    bundles whose outputs stay. Raises UserError.
    """
    input_is_searched = corpus.table is not None or "**" in run.input or storage.is_folder(run.input)
    preflight.check_overlap(corpus.root, folder, recursive=input_is_searched)
    in_use = storage.is_occupied(folder)  # asked first: another run may begin meanwhile
    run_file = outputs.read_run_file(folder) if storage.exists(folder) else None
    if run_file is None:
        if in_use:
            raise UserError(
                f"--out {folder} is not empty and has no readable {outputs.RUN_FILE}; expected a new folder or "
                "one that sentiment-core score made"
            )
        return []
    differences = run_file.run.differences(run)
    if is_earlier_run(run_file.run):
        may_differ = ("bundle", *["min_confidence"] * run.may_have_other_threshold(run_file.run))
        differences = {name: pair for name, pair in differences.items() if not name.startswith(may_differ)}
    if differences:
        shown = "; ".join(f"{name}: {there!r} there, {now!r} now" for name, (there, now) in differences.items())
        raise UserError(f"--out {folder} was made with other settings ({shown}); use those or choose another --out")
    scored_version = run_file.input_version
    if corpus.table and scored_version is not None and corpus.table.is_older_than(scored_version):
        raise UserError(
            f"--out {folder} holds version {scored_version} of {run.input}, which is newer than "
            f"{corpus.table.version}; choose another --out for an older version"
        )
    earlier = dict.fromkeys([*run_file.earlier_bundles, run_file.run.bundle])  # in order, each once
    return [digest for digest in earlier if digest != run.bundle]
