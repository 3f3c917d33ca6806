"""Report the shares of labels in a scored corpus, with intervals from a labelled sample.

Counting predicted labels is biased as soon as shares shift. With a sample for shares the bias is measured and removed,
see `labelled_sample`. Without one it is corrected by the errors on the model's evaluation rows, see `model_errors`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sentiment_core.analysis import input_texts
from sentiment_core.analysis.labelled_sample import LabelledSample
from sentiment_core.analysis.model_errors import ModelErrors, find_model_errors
from sentiment_core.analysis.population import GroupSums, sum_up
from sentiment_core.analysis.records import Share
from sentiment_core.analysis.sample_file import LABEL_SEPARATOR, Sample, read_sample
from sentiment_core.analysis.scored_rows import Group, OpenedOutput, check_keys, open_output
from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.data import labelled as labelled_data
from sentiment_core.data import sample_columns
from sentiment_core.data.labels import LabelScheme
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.model.known_texts import hash_cell, hash_training_texts
from sentiment_core.runtime import preflight, storage

SAMPLED = "prediction-powered, labelled sample"
CORRECTED = "corrected by confusion of evaluation rows"
NOT_ESTIMATED = "none"
SHOWN_LINES = 30


@dataclass(frozen=True)
class SharesSettings:
    """Flags of `sentiment-core shares`."""

    scored: str = setting(REQUIRED, "output folder or URI of sentiment-core score", "OUT", group="data")
    labelled: str | None = setting(
        None, "sample of sentiment-core sample --for shares, with labels filled in", "FILE.csv", group="data"
    )
    by: tuple[str, ...] = setting(
        (), "also give the shares of each value of these partition keys or kept columns", "KEY,...", group="data"
    )
    label_separator: str = setting(
        LABEL_SEPARATOR, "separator of the labels in a cell that holds several", group="data"
    )
    name: str | None = setting(None, "name of the model, where several scored the corpus", "MODEL", group="model")
    certainty: float = setting(0.95, "certainty with which an interval holds the true share", "P", group="run")
    to: str | None = setting(None, "file for the shares as JSON", "FILE.json", group="output")

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        check(0.5 <= self.certainty < 1, "certainty", self.certainty, "0.5 or more, and less than 1")
        check(len(set(self.by)) == len(self.by), "by", ",".join(self.by), "different keys")


@dataclass(frozen=True)
class Shares:
    """The shares of all labels and groups."""

    shares: list[Share]
    certainty: float
    remarks: list[str]  # sentences about output and sample that their user should read
    sampled_rows: int | None = None  # rows of the corpus that the sample was drawn from; None: there is none

    def to_json(self) -> list[dict[str, Any]]:
        """Return the content of the file that `--to` names."""
        return [asdict(share) for share in self.shares]

    def report(self) -> str:
        """Return a few lines for the terminal: a statement a share, the accuracy, and what to know."""
        shown = self.shares[:SHOWN_LINES]
        lines = [_describe(share, self.certainty) for share in shown]
        if len(shown) < len(self.shares):
            lines.append(f"... {len(self.shares) - len(shown):,} more; --to FILE.json writes all")
        accuracy = next((share.accuracy for share in self.shares if not share.by and share.accuracy), None)
        if accuracy is not None:
            between = f"{_percent(accuracy.low)} to {_percent(accuracy.high)}"
            lines.append(f"the model's labels: {_percent(accuracy.value)} % are right ({between})")
        notes = dict.fromkeys(f"{share.group}: {share.note}" for share in shown if share.note)
        return "\n".join([*lines, *notes, *self.remarks])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _describe(share: Share, certainty: float) -> str:
    line = f"{share.group}: "
    counted = f"counting the model's labels gives {_percent(share.counted)} %"
    if share.estimate is None:
        return f"{line}{share.label}: no estimate for {share.rows:,} rows; {counted}"
    line += f"{_percent(share.estimate)} % of {share.rows:,} rows are {share.label}"
    if share.low is None or share.high is None:
        return f"{line}, without an interval ({share.method}); {counted}"
    between = f"{_percent(share.low)} to {_percent(share.high)}"
    return f"{line} ({between} with {100 * certainty:g} % certainty); {counted}"


def shares(settings: SharesSettings) -> Shares:
    """Report the shares of labels in a scored corpus.

    Writes them to `--to`, if that is given. Raises `UserError`.
    """
    if settings.to:
        preflight.check_file(settings.to, "--to")
    opened = open_output(settings.scored, settings.name)
    result = estimate_shares(opened, settings.by, settings.labelled, settings.certainty, settings.label_separator)
    if settings.to:
        content = json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n"
        storage.write_file(settings.to, content.encode())
    return result


def estimate_shares(
    opened: OpenedOutput,
    keys: Sequence[str] = (),
    labelled: str | None = None,
    certainty: float = 0.95,
    label_separator: str = LABEL_SEPARATOR,
) -> Shares:
    """Estimate the shares of all labels, for the whole corpus and by group.

    Args:
        opened: The output folder, opened for one model.
        keys: Partition keys or kept columns to group the rows by.
        labelled: Path of a sample for shares with labels; None: shares are corrected only.
        certainty: Of the intervals.
        label_separator: Between the labels of a cell of the sample, for a multi-label model.

    Raises:
        UserError: The sample, the keys or the output cannot be used.
    """
    check_keys(opened, keys)
    opened, shards, remarks = _leave_out_gone(opened)
    errors = find_model_errors(opened)
    sample = read_sample(labelled) if labelled else None
    if sample is not None and shards is not None:
        sample = sample.without_sources({*sample.source} - shards)
    population = sum_up(opened, keys, errors.info.objective if errors.info else None, sample)
    labelled_sample = None
    if sample is not None:
        scheme = errors.info.label_scheme if errors.info else LabelScheme(several=opened.several)
        labelled_sample = LabelledSample.make(opened, sample, population, scheme, label_separator, certainty)
        remarks += [*_describe_seen(opened, sample, scheme, label_separator), *_describe_skipped(sample)]
    groups: list[tuple[Group, GroupSums]] = [((), population.total)]
    if keys:
        groups += sorted(population.groups.items(), key=lambda item: tuple(value or "" for value in item[0]))
    result = []
    for group, sums in groups:
        by = dict(zip(keys, group, strict=True)) if group else {}
        result += _share_group(opened, errors, labelled_sample, group, by, sums)
    drawn_from = None if sample is None else round(float(sample.stratum_rows.sum()))
    return Shares(result, certainty, [*remarks, *_describe_outputs(opened)], drawn_from)


def _leave_out_gone(opened: OpenedOutput) -> tuple[OpenedOutput, set[str] | None, list[str]]:
    """Leave out the outputs of shards that are gone, as samples do; all stay where the input cannot be read.

    Returns:
        The outputs that stay, the paths of the input's shards (None: it cannot be read), and what to say of the rest.
    """
    try:
        shards = input_texts.open_input(opened.run_file.run.input, opened).stamps
    except UserError:
        return opened, None, []
    current = [output for output in opened.outputs if output.origin and output.origin.unit.source in shards]
    gone = opened.rows - sum(output.rows for output in current)
    if not current:
        return opened, None, []
    remark = f"{gone:,} rows are in no share, since their input files are gone"
    return replace(opened, outputs=current), {*shards}, [remark] * (gone > 0)


def _describe_seen(opened: OpenedOutput, sample: Sample, scheme: LabelScheme, separator: str) -> list[str]:
    """Say how many labelled rows the model was trained on: these hide the errors that it makes elsewhere.

    Raises `UserError` where they are more than half. A few may have the texts of training rows by chance.
    """
    columns = Columns(
        tuple(opened.run_file.run.text_columns),
        sample_columns.LABEL,
        label_separator=separator if opened.several else None,
    )
    try:
        path = opened.run_file.paths.get(opened.model.model, "")
        trained_on, _ = hash_training_texts(path, with_evaluation=False)
        texts = labelled_data.read(sample.path, columns, replace(scheme, names=opened.labels)).texts
    except UserError as error:
        reason = str(error).replace("; choose with --text-column", "")
        return [f"whether the model was trained on rows of {sample.path} was not checked ({reason})"]
    seen = sum(hash_cell(text) in trained_on for text in texts)
    if seen > len(texts) / 2:
        raise UserError(
            f"the model was trained on {seen:,} of the {len(texts):,} labelled rows of {sample.path}, which hides its "
            "errors; label another sample"
        )
    remark = f"the model was trained on the texts of {seen:,} labelled rows of {sample.path}, and knows them better"
    return [remark] * (seen > 0)


def _describe_skipped(sample: Sample) -> list[str]:
    """Say that rows were skipped, so that the labelled ones may be no random sample."""
    skipped = sample.skipped_rows
    remark = f"{skipped:,} rows of {sample.path} were skipped; if they are the hard ones, the shares are biased"
    return [remark] * (skipped > 0)


def _describe_outputs(opened: OpenedOutput) -> list[str]:
    """Say which rows of the corpus are not in the shares, and which were scored by earlier bundles."""
    run = opened.run_file.run
    earlier = sum(output.rows for output in opened.outputs if output.origin and output.origin.run.bundle != run.bundle)
    remarks = []
    if earlier:
        remarks.append(f"{earlier:,} of {opened.rows:,} rows were scored by earlier bundles")
    if opened.missing_rows:
        remarks.append(f"{opened.missing_rows:,} rows of the corpus are not scored yet; they are in no share")
    if run.limit:
        remarks.append(f"only the first {run.limit:,} rows were scored; the shares are theirs")
    return remarks


def _share_group(
    opened: OpenedOutput,
    errors: ModelErrors,
    labelled_sample: LabelledSample | None,
    group: Group,
    by: dict[str, str | None],
    sums: GroupSums,
) -> list[Share]:
    """Return the shares of all labels in a group; none if no row of it has text."""
    if not sums.rows:
        return []
    counted = (sums.counted / sums.rows).tolist()
    labelled_rows = labelled_sample.count_labelled(group) if labelled_sample else 0
    obstacle = labelled_sample.find_obstacle(group, sums.rows) if labelled_sample else ""
    if labelled_sample and not obstacle:
        estimates, accuracy, note = labelled_sample.estimate(group, sums)
        return [
            Share(by, label, sums.rows, share, made.value, made.low, made.high, SAMPLED, labelled_rows, accuracy, note)
            for label, share, made in zip(opened.labels, counted, estimates, strict=True)
        ]
    corrected, notes = errors.correct(opened.labels, sums)
    return [
        Share(
            by=by,
            label=label,
            rows=sums.rows,
            counted=share,
            estimate=value,
            low=None,
            high=None,
            method=NOT_ESTIMATED if value is None else CORRECTED,
            labelled_rows=labelled_rows,
            note="; ".join(filter(None, [obstacle, note])),
        )
        for label, share, value, note in zip(opened.labels, counted, corrected, notes, strict=True)
    ]
