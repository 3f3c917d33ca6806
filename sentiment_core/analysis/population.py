"""Sum up all rows of a scored corpus by group, and look up the rows of a sample among them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sentiment_core.analysis.sample_file import Sample
from sentiment_core.analysis.scored_rows import NO_LABEL, Group, OpenedOutput, ScoredBatch, map_outputs, read_batch
from sentiment_core.data.partitions import partition_values
from sentiment_core.data.sample_columns import TEXT_HASH_BYTES
from sentiment_core.errors import UserError
from sentiment_core.model.objective import Objective
from sentiment_core.scoring.outputs import Output, read_output
from sentiment_core.text.status import ABSTAINED, STATUS_NAMES

MAX_GROUPS = 10_000
SHOWN_ROWS = 3  # of a sample, in a message


@dataclass(frozen=True)
class GroupSums:
    """Sums over the rows of a group that have text."""

    rows: int
    labelled: int  # rows that the model labelled; the others abstained
    counted: np.ndarray  # (labels,) rows that have each label
    # (labels,) rows that get each label if none abstains; NaN where the output does not tell
    decided: np.ndarray
    scores: np.ndarray  # (labels,) sum of the probabilities; NaN where they were not read
    confidence: float  # sum over the labelled rows; NaN where it was not read

    def __add__(self, other: "GroupSums") -> "GroupSums":
        """Return the sums over the rows of both."""
        return GroupSums(
            self.rows + other.rows,
            self.labelled + other.labelled,
            self.counted + other.counted,
            self.decided + other.decided,
            self.scores + other.scores,
            self.confidence + other.confidence,
        )


@dataclass(frozen=True)
class SampledRows:
    """Scores of the rows of a sample, in the order of the sample."""

    groups: list[Group]  # of each row
    scores: np.ndarray  # (n, labels) probabilities
    labels: np.ndarray  # (n,) int32, or (n, labels) bool, as in `ScoredBatch`
    has_label: np.ndarray  # (n,) bool
    confidence: np.ndarray  # (n,)


@dataclass(frozen=True)
class Population:
    """The rows of a corpus by group, and those of a sample among them."""

    groups: dict[Group, GroupSums]
    sampled: SampledRows | None = None

    @property
    def total(self) -> GroupSums:
        """The sums over all groups."""
        first, *rest = self.groups.values()
        return sum(rest, start=first)


@dataclass(frozen=True)
class _Part:
    """One output's part of a population."""

    groups: dict[Group, GroupSums]
    positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # in the sample
    sampled: SampledRows | None = None


def sum_up(
    opened: OpenedOutput, keys: Sequence[str], objective: Objective | None, sample: Sample | None = None
) -> Population:
    """Sum up an output folder by group.

    Without a sample, and by folders of all outputs' paths alone, footers tell everything unless rows abstained.

    Args:
        opened: The output folder.
        keys: Partition keys or kept columns, see `check_keys`.
        objective: Of the model, which decides what rows that abstained would get; None: it is not known.
        sample: Rows to look up.

    Raises:
        UserError: An output cannot be read, there are too many groups, or a row of the sample is not in the output.
    """
    abstained = _abstained(opened)
    if sample is None and not abstained and all({*keys} <= {*partition_values(o.path)} for o in opened.outputs):
        return Population(_merge(keys, (_sum_footer(opened, output, keys) for output in opened.outputs)))
    wanted = _rows_by_source(sample) if sample else {}

    def read(output: Output) -> _Part:
        batch = read_batch(opened, output, keys, with_probabilities=sample is not None or abstained)
        scores = estimate_scores(batch, len(opened.labels))
        positions, rows = _find_rows(batch, wanted.get(batch.source, {}))
        sampled = None
        if sample is not None and len(positions):
            _check_texts(opened, output, sample, positions, rows)
            groups = [batch.groups[i] for i in batch.group_of[rows]]
            sampled = SampledRows(
                groups, scores[rows], batch.labels[rows], batch.has_label[rows], batch.confidence[rows]
            )
        return _Part(_sum_batch(batch, scores, objective), positions, sampled)

    parts: list[_Part] = []

    def collect(part: _Part) -> dict[Group, GroupSums]:
        if part.sampled:
            parts.append(part)
        return part.groups

    groups = _merge(keys, (collect(part) for part in map_outputs(read, opened.outputs)))
    return Population(groups, _join(opened, sample, parts) if sample else None)


def _abstained(opened: OpenedOutput) -> bool:
    name = opened.model.model
    counts = (output.counts.all_rows.models[name] for output in opened.outputs if output.counts)
    return any(count.status.value[STATUS_NAMES[ABSTAINED]] for count in counts)


def _sum_footer(opened: OpenedOutput, output: Output, keys: Sequence[str]) -> dict[Group, GroupSums]:
    """Sum up an output without abstained rows by its footer."""
    assert output.counts is not None, "an output that counts has a footer"
    counts, values = output.counts.all_rows.models[opened.model.model], partition_values(output.path)
    labels = np.array([counts.labels.value.get(name, 0) for name in opened.labels], float)
    rows = sum(counts.confidence_histogram.value)
    unknown = np.full(len(labels), np.nan)
    return {tuple(values.get(key) for key in keys): GroupSums(rows, rows, labels, labels, unknown, np.nan)}


def _merge(keys: Sequence[str], parts: Iterable[Mapping[Group, GroupSums]]) -> dict[Group, GroupSums]:
    """Sum up the groups of all parts. Raises UserError for too many of them."""
    groups: dict[Group, GroupSums] = {}
    for part in parts:
        for group, sums in part.items():
            groups[group] = groups[group] + sums if group in groups else sums
        if len(groups) > MAX_GROUPS:
            raise UserError(f"--by {','.join(keys)} makes more than {MAX_GROUPS:,} groups; choose other keys")
    return groups


def estimate_scores(batch: ScoredBatch, labels: int) -> np.ndarray:
    """Return the probability (n, labels) of each label; NaN in rows without text.

    An output without probabilities tells that of the label alone. The rest is spread evenly over the other labels, and
    where a row abstained over all of them: estimates stay unbiased with any scores.
    """
    if batch.probabilities is not None:
        return batch.probabilities.astype(np.float64)
    confidence = batch.confidence.astype(np.float64)
    has_label = batch.labels != NO_LABEL
    rest = np.where(has_label, (1 - confidence) / max(1, labels - 1), 1 / labels)
    scores = np.repeat(rest[:, None], labels, axis=1)
    rows = np.flatnonzero(has_label)
    scores[rows, batch.labels[rows]] = confidence[rows]
    scores[~batch.has_text] = np.nan
    return scores


def _sum_batch(batch: ScoredBatch, scores: np.ndarray, objective: Objective | None) -> dict[Group, GroupSums]:
    groups, labels = len(batch.groups), scores.shape[1]
    with_text = np.flatnonzero(batch.has_text)
    group_of = batch.group_of[with_text]
    has_label = batch.has_label[with_text]

    def add(values: np.ndarray) -> np.ndarray:
        """Sum (n, labels) values of the rows with text by group."""
        return np.stack([np.bincount(group_of, column, groups) for column in values.T], axis=1)

    counted = add(_one_hot(batch.labels[with_text], labels))
    if has_label.all():
        decided = counted
    elif batch.probabilities is not None and objective is not None:
        decided = add(_one_hot(objective.decide(batch.probabilities[with_text])[0], labels))
    else:
        decided = np.full((groups, labels), np.nan)
    sums_of_scores = add(scores[with_text])
    confidence = np.bincount(group_of[has_label], batch.confidence[with_text][has_label].astype(np.float64), groups)
    rows, labelled = np.bincount(group_of, minlength=groups), np.bincount(group_of[has_label], minlength=groups)
    return {
        group: GroupSums(
            int(rows[i]), int(labelled[i]), counted[i], decided[i], sums_of_scores[i], float(confidence[i])
        )
        for i, group in enumerate(batch.groups)
    }


def _one_hot(labels: np.ndarray, count: int) -> np.ndarray:
    """Return (n, count) bool of label indices (n,); what is (n, count) already stays."""
    return labels if labels.ndim == 2 else labels[:, None] == np.arange(count)


def _rows_by_source(sample: Sample) -> dict[str, dict[int, int]]:
    """Return the positions of a sample's rows by their shard and number."""
    wanted: dict[str, dict[int, int]] = defaultdict(dict)
    for position, (source, row) in enumerate(zip(sample.source.tolist(), sample.row.tolist(), strict=True)):
        wanted[source][row] = position
    return wanted


def _find_rows(batch: ScoredBatch, wanted: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return positions in the sample, and the indices in the batch, of the wanted rows that have text."""
    first = int(batch.rows[0]) if len(batch.rows) else 0
    pairs = [(position, row - first) for row, position in wanted.items() if 0 <= row - first < len(batch.rows)]
    pairs = [(position, index) for position, index in pairs if batch.has_text[index]]
    positions, indices = np.array(pairs, np.int64).reshape(-1, 2).T
    return positions, indices


def _check_texts(opened: OpenedOutput, output: Output, sample: Sample, positions: np.ndarray, rows: np.ndarray) -> None:
    """Refuse a sample whose rows had other texts than the output's. Raises UserError.

    Outputs without texts' hashes, of older versions or of --no-reuse, cannot be checked.
    """
    if not output.has_text_hash:
        return
    name = opened.run_file.run.text_hash_column
    hashes = read_output(opened.folder, output.path, [name])[name].combine_chunks()
    for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
        value = hashes[row].as_py()
        if value is not None and value[:TEXT_HASH_BYTES].hex() != sample.text_hashes[position]:
            raise UserError(
                f"{sample.path} was drawn from other texts: {sample.source[position]} row {sample.row[position]} of "
                f"{opened.folder} holds another one now; give the output that it was drawn from, or draw a new sample"
            )


def _join(opened: OpenedOutput, sample: Sample, parts: Sequence[_Part]) -> SampledRows:
    """Put the rows of a sample into its order. Raises UserError if the output lacks one."""
    positions = np.concatenate([part.positions for part in parts] or [np.zeros(0, np.int64)])
    missing = np.setdiff1d(np.arange(len(sample)), positions)
    if len(missing):
        names = ", ".join(f"{sample.source[i]} row {sample.row[i]}" for i in missing[:SHOWN_ROWS])
        raise UserError(
            f"{sample.path} has {len(missing):,} of its {len(sample):,} rows not among the scored rows with text of "
            f"{opened.folder} ({names}{' ...' * (len(missing) > SHOWN_ROWS)}); give the output that it was drawn from"
        )
    order = np.argsort(positions)
    sampled = [part.sampled for part in parts if part.sampled]
    groups = [group for rows in sampled for group in rows.groups]
    return SampledRows(
        [groups[i] for i in order],
        np.concatenate([rows.scores for rows in sampled])[order],
        np.concatenate([rows.labels for rows in sampled])[order],
        np.concatenate([rows.has_label for rows in sampled])[order],
        np.concatenate([rows.confidence for rows in sampled])[order],
    )
