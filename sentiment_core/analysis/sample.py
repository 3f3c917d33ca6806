"""Draw rows of a scored corpus for people to label.

A sample for shares stands for the whole corpus: each row with text has a known chance to be drawn, so that what the
sample says, weighted, holds for all. A sample for training has the rows from which the model would learn most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sentiment_core.analysis import draw, input_texts, strata, uncertain
from sentiment_core.analysis.draw import Draws
from sentiment_core.analysis.input_texts import ScoredInput
from sentiment_core.analysis.sample_file import LABEL_SEPARATOR, DrawnRow, check_text_columns, format_sample
from sentiment_core.analysis.scored_rows import OpenedOutput, check_keys, map_outputs, open_output, read_batch
from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.data.labels import SHOWN_LABELS
from sentiment_core.data.partitions import partition_values
from sentiment_core.errors import UserError
from sentiment_core.model import known_texts
from sentiment_core.runtime import preflight, storage
from sentiment_core.scoring.outputs import Output

SHOWN_STRATA = 10
ROWS_FOR_GROUP = 10  # rows of a sample for each group that it is drawn from
MOST_CANDIDATES = 200_000  # texts that are read for them: copies and texts with labels do not make that any number
SPREADSHEET_CHARACTERS = 32_767  # of a cell; spreadsheets cut off the rest


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Flags of `sentiment-core sample`."""

    scored: str = setting(REQUIRED, "output folder or URI of sentiment-core score", "OUT", group="data")
    input: str | None = setting(None, "the input that was scored; default: where it was then", "P", group="data")
    name: str | None = setting(None, "the model, where several scored the corpus", "MODEL", group="data")
    by: tuple[str, ...] = setting(
        (),
        "draw from each group of these partition keys or kept columns; default: all partition keys, if each group gets "
        "10 rows",
        "KEY,...",
        group="data",
    )
    exclude: tuple[str, ...] = setting(
        (), "for training: leave out the texts of these files, such as earlier samples", "D,...", group="data"
    )
    rows: int = setting(REQUIRED, "rows to draw", "N", group="run")
    for_: Literal["shares", "training"] = setting(
        "shares", "shares: rows that stand for the corpus; training: rows from which the model learns most", group="run"
    )
    seed: int = setting(0, "another seed draws other rows", group="run")
    to: str = setting(
        REQUIRED, "CSV file for the sample; one that exists is never overwritten", "FILE.csv", group="output"
    )

    def __post_init__(self) -> None:
        """Check the values. Raises UserError."""
        check(self.rows >= 1, "rows", self.rows, "1 or more")
        check(self.to.lower().endswith(".csv"), "to", self.to, "a file that ends in .csv")
        check(len(set(self.by)) == len(self.by), "by", ",".join(self.by), "different keys")
        if self.for_ == "shares" and self.exclude:
            raise UserError("--exclude is for --for training: a sample for shares leaves nothing out. Remove it.")
        if self.for_ == "training" and self.by:
            raise UserError("--by is for --for shares: a sample for training has no groups. Remove it.")


@dataclass(frozen=True)
class SampleResult:
    """A sample that was written."""

    to: str  # path of the CSV file
    for_: Literal["shares", "training"]
    rows: int
    population: int  # rows with text that could be drawn
    strata: dict[str, tuple[int, int]] = field(default_factory=dict)  # by name: rows of the corpus, and drawn ones
    remarks: list[str] = field(default_factory=list)  # sentences about the sample
    next_steps: list[str] = field(default_factory=list)

    def report(self) -> str:
        """Return a few lines for the terminal."""
        lines = [f"{self.rows:,} of {self.population:,} rows with text were drawn into {self.to}"]
        largest = sorted(self.strata.items(), key=lambda item: -item[1][0])
        lines += [f"  {name}: {drawn:,} of {rows:,}" for name, (rows, drawn) in largest[:SHOWN_STRATA]]
        if len(largest) > SHOWN_STRATA:
            lines.append(f"  ... {len(largest):,} strata in all")
        return "\n".join([*lines, *self.remarks, *self.next_steps])


def sample(settings: SampleSettings) -> SampleResult:
    """Draw rows of a scored corpus, and write them as CSV for people to label.

    Raises UserError where that cannot be done; then nothing is written.
    """
    if storage.exists(settings.to):
        raise UserError(
            f"--to {settings.to} exists, and may hold labels; choose another file, or remove it if nobody needs it"
        )
    opened = open_output(settings.scored, settings.name)
    text_columns = opened.run_file.run.text_columns
    check_text_columns(text_columns)
    check_keys(opened, settings.by)
    preflight.check_file(settings.to, "--to")
    scored_input = input_texts.open_input(settings.input or opened.run_file.run.input, opened)
    current, gone = input_texts.keep_current(scored_input, opened.outputs)
    remarks = _describe_outputs(opened, scored_input, gone)
    if not current:
        raise UserError(
            f"--input {scored_input.path} has none of the shards that --scored {opened.folder} holds rows of"
        )
    if settings.for_ == "shares":
        result = _draw_for_shares(settings, opened, scored_input, current)
    else:
        result = _draw_for_training(settings, opened, scored_input, current)
    texts = result.texts
    columns = {name: [fields[i] for fields in texts] for i, name in enumerate(text_columns)}
    storage.write_file(settings.to, format_sample(result.rows, columns))
    return SampleResult(
        settings.to,
        settings.for_,
        len(result.rows),
        result.population,
        result.strata,
        [*remarks, *result.remarks, *_describe_long(texts)],
        _describe_next(settings, opened, result.keys),
    )


@dataclass(frozen=True)
class _Drawn:
    """Rows that were drawn, in random order, with the texts of each text column."""

    rows: list[DrawnRow]
    texts: list[tuple[str | None, ...]]
    population: int
    strata: dict[str, tuple[int, int]]
    remarks: list[str]
    keys: tuple[str, ...] = ()  # of the groups that they were drawn from


def _draw_for_shares(
    settings: SampleSettings, opened: OpenedOutput, scored_input: ScoredInput, current: list[Output]
) -> _Drawn:
    """Draw a stratified sample, in two passes over columns."""
    keys, remarks = _choose_keys(settings, opened, current)

    def count(output: Output) -> dict[strata.Cell, np.ndarray]:
        return strata.count_cells(read_batch(opened, output, keys))

    most_groups = max(1, settings.rows // ROWS_FOR_GROUP) if settings.by else None
    cells = strata.merge_counts(map_outputs(count, current), most_groups)
    if not cells:
        raise UserError(f"--scored {opened.folder} holds no row with text; there is nothing to label")
    design = strata.design(cells, settings.rows)
    names = strata.name_strata(design, keys, opened.labels)
    find_strata = strata.make_lookup(design)

    def find_rows(output: Output) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        batch = read_batch(opened, output, keys)
        there = strata.find_cells(batch)
        return draw.hash_rows(settings.seed, batch)[there.rows], find_strata(there), there.rows

    draws, rows_of_strata = draw.draw_smallest(current, find_rows, np.array([stratum.drawn for stratum in design]))
    draw.check_unchanged(opened.folder, rows_of_strata, np.array([stratum.rows for stratum in design]))
    draws = _shuffle(draws, settings.seed)
    rows, texts = _read_drawn(opened, scored_input, current, draws)
    weights = [stratum.rows / max(1, stratum.drawn) for stratum in design]
    drawn_rows = [
        DrawnRow(source, row, names[part], weights[part])
        for (source, row), part in zip(rows, draws.part.tolist(), strict=True)
    ]
    sizes = {name: (stratum.rows, stratum.drawn) for name, stratum in zip(names, design, strict=True)}
    return _Drawn(drawn_rows, texts, int(rows_of_strata.sum()), sizes, remarks, keys)


def _choose_keys(
    settings: SampleSettings, opened: OpenedOutput, current: Sequence[Output]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the keys of groups, and what to say: those asked for, or as many partition keys as rows suffice for."""
    if settings.by:
        return settings.by, []
    keys = opened.partition_keys
    values = [partition_values(output.path) for output in current if output.rows]
    for number in range(len(keys), 0, -1):
        groups = {tuple(folder.get(key) for key in keys[:number]) for folder in values}
        if len(groups) * ROWS_FOR_GROUP <= settings.rows:
            remark = f"drawn from each of {len(groups):,} groups by {', '.join(keys[:number])}"
            return keys[:number], [remark] * (len(groups) > 1)
    if not keys:
        return (), []
    number = len({folder.get(keys[0]) for folder in values})
    return (), [
        f"not drawn by {keys[0]}: its {number:,} groups would get fewer than {ROWS_FOR_GROUP} rows each; draw more "
        "--rows for shares of each group"
    ]


def _shuffle(draws: Draws, seed: int) -> Draws:
    """Return the rows in random order."""
    in_order = draws.take(np.lexsort((draws.index, draws.output)))
    return in_order.take(np.random.default_rng(seed).permutation(len(in_order.key)))


def _read_drawn(
    opened: OpenedOutput, scored_input: ScoredInput, current: Sequence[Output], draws: Draws
) -> tuple[list[tuple[str, int]], list[tuple[str | None, ...]]]:
    """Return shard and number of drawn rows, and their texts."""
    units = [output.origin.unit for output in current if output.origin]
    rows = [
        (units[i].source, units[i].start + k) for i, k in zip(draws.output.tolist(), draws.index.tolist(), strict=True)
    ]
    numbers = np.array([row for _, row in rows], np.int64)
    columns = opened.run_file.run.text_columns
    return rows, input_texts.read_all_texts(scored_input, current, draws.output, numbers, columns)


def _draw_for_training(
    settings: SampleSettings, opened: OpenedOutput, scored_input: ScoredInput, current: list[Output]
) -> _Drawn:
    """Choose uncertain rows whose texts differ, and that nobody has labelled yet."""
    path = opened.run_file.paths.get(opened.model.model, "")
    labelled_before, remark = known_texts.hash_training_texts(path)
    labelled_before |= known_texts.hash_texts_of(settings.exclude, opened.run_file.run.text_columns)

    def find_rows(output: Output) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        batch = read_batch(opened, output)
        rows = np.flatnonzero(batch.has_text)
        # by confidence, whose bits are in the order of the numbers, then at random
        confidence = batch.confidence[rows].view(np.uint32).astype(np.uint64) << np.uint64(32)
        return confidence | draw.hash_rows(settings.seed, batch)[rows] >> np.uint64(32), np.zeros(len(rows), int), rows

    most_candidates = wanted = uncertain.CANDIDATES * settings.rows
    most = max(MOST_CANDIDATES, wanted)
    while True:
        draws, population = draw.draw_smallest(current, find_rows, np.array([wanted]))
        if not population[0]:
            raise UserError(f"--scored {opened.folder} holds no row with text; there is nothing to label")
        rows, texts = _read_drawn(opened, scored_input, current, draws)
        joined = input_texts.join_columns(texts)
        candidates, labelled_rows = uncertain.find_candidates(joined, labelled_before, settings.rows)
        if len(candidates) == most_candidates or wanted >= min(population[0], most):
            break
        wanted = min(4 * wanted, most)
    if not len(candidates):
        which = "all" if wanted >= population[0] else f"the {wanted:,} least confident"
        raise UserError(f"{which} texts of --scored {opened.folder} have labels already; there is nothing left to draw")
    confidence = (draws.key[candidates] >> np.uint64(32)).astype(np.uint32).view(np.float32)
    chosen = uncertain.choose_diverse([joined[i] for i in candidates], confidence, settings.rows, settings.seed)
    in_order = np.random.default_rng(settings.seed).permutation(candidates[chosen])
    remarks = [
        f"their confidence is {confidence[chosen].min():.3f} to {confidence[chosen].max():.3f}; they were chosen from "
        f"the {len(candidates):,} least confident texts, each once",
        remark,
    ]
    if settings.exclude:
        remarks.append(f"texts of {', '.join(settings.exclude)} were left out")
    remarks.append(f"{labelled_rows:,} of the {len(texts):,} least confident rows have labels already")
    if len(chosen) < settings.rows:
        among = "" if wanted >= population[0] else f" among the {wanted:,} least confident rows; the rest was not read"
        remarks.append(f"there are only {len(chosen):,} different texts without labels{among}")
    return _Drawn([DrawnRow(*rows[i]) for i in in_order], [texts[i] for i in in_order], int(population[0]), {}, remarks)


def _describe_outputs(opened: OpenedOutput, scored_input: ScoredInput, gone: Sequence[Output]) -> list[str]:
    """Say which rows of the corpus could not be drawn."""
    remarks = []
    if opened.run_file.run.limit:
        remarks.append(
            f"the output holds the first {opened.run_file.run.limit:,} rows of the corpus only (--limit), and so does "
            "the sample"
        )
    scored = {output.origin.unit.source for output in opened.outputs if output.origin}
    unscored = 0 if opened.run_file.run.limit else len(scored_input.stamps.keys() - scored)
    if unscored:
        remarks.append(
            f"{unscored:,} shards of the input are not scored, and were not drawn from; finish sentiment-core score "
            "first for a sample of all"
        )
    if opened.missing_rows:
        remarks.append(
            f"{opened.missing_rows:,} rows of the shards are not scored yet, and were not drawn from; finish "
            "sentiment-core score first for a sample of all"
        )
    if gone:
        rows = sum(output.rows for output in gone)
        remarks.append(f"{rows:,} scored rows were not drawn from, since their shards are gone")
    return remarks


def _describe_long(texts: Sequence[tuple[str | None, ...]]) -> list[str]:
    long = sum(any(len(text or "") > SPREADSHEET_CHARACTERS for text in fields) for fields in texts)
    return [f"{long:,} texts have more than {SPREADSHEET_CHARACTERS:,} characters, which spreadsheets cut off"] * (
        long > 0
    )


def _describe_next(settings: SampleSettings, opened: OpenedOutput, keys: Sequence[str]) -> list[str]:
    """Say how to label the rows, and what to do then. `keys`: of the groups that they were drawn from."""
    shown = ", ".join(opened.labels[:SHOWN_LABELS]) + " ..." * (len(opened.labels) > SHOWN_LABELS)
    if opened.several:
        how = (
            f"fill the column label with any of: {shown}; write {LABEL_SEPARATOR} between several, and "
            f"{LABEL_SEPARATOR} alone for none of them"
        )
    else:
        how = f"fill the column label with one of: {shown}"
    columns = opened.run_file.run.text_column
    flags = (
        f" --text-column {columns}" * (columns != "text") + f" --label-separator '{LABEL_SEPARATOR}'" * opened.several
    )
    if settings.for_ == "training":
        return [f"next: {how}; then sentiment-core train --data {settings.to}{flags} ..."]
    same_groups = f" --name {settings.name}" * bool(settings.name) + f" --by {','.join(keys)}" * bool(keys)
    return [
        f"next: {how}; rows that nobody reaches stay empty; then",
        f"  sentiment-core shares --scored {settings.scored} --labelled {settings.to}{same_groups}",
        f"  sentiment-core evaluate --data {settings.to}{flags} ...",
    ]
