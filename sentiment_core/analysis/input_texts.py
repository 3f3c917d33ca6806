"""Read the texts of scored rows from the input that was scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sentiment_core.analysis.scored_rows import OpenedOutput
from sentiment_core.data import files, shards
from sentiment_core.data.shards import SUFFIXES, Unit
from sentiment_core.data.snapshot import TableColumns, values_to_json
from sentiment_core.data.unit_reader import read_rows
from sentiment_core.errors import UserError
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import UNREADABLE, FileChanged, describe_error
from sentiment_core.runtime.storage import FileStamp
from sentiment_core.scoring.outputs import Output
from sentiment_core.text.arrow import join_fields, to_texts


@dataclass(frozen=True)
class ScoredInput:
    """The input of an output folder, as it is now."""

    path: str
    root: str
    stamps: dict[str, FileStamp]  # by the shard's path
    columns: TableColumns | None  # of a table
    values: dict[str, str]  # of a table's partition columns, as JSON, by the shard's path


def open_input(path: str, opened: OpenedOutput) -> ScoredInput:
    """Find the shards of the input; of a table those of the version that was scored. Raises `UserError`."""
    data = files.find_files(path, SUFFIXES, opened.run_file.input_version)
    values = {file.stamp.path: values_to_json(file.values) for file in data.table.files} if data.table else {}
    columns = data.table.columns if data.table else None
    return ScoredInput(path, data.root, {stamp.path: stamp for stamp in data.stamps}, columns, values)


def keep_current(scored_input: ScoredInput, outputs: Sequence[Output]) -> tuple[list[Output], list[Output]]:
    """Divide outputs into those whose shards are as they were scored, and those whose shards are gone.

    Raises `UserError` for a shard that changed since.
    """
    current, gone = [], []
    for output in outputs:
        assert output.origin is not None, "an output that counts has a footer"
        unit = output.origin.unit
        stamp = scored_input.stamps.get(unit.source)
        if stamp is None:
            gone.append(output)
            continue
        is_same = stamp.size == unit.size and (scored_input.columns is not None or stamp.mtime_ns == unit.mtime_ns)
        if not is_same:
            raise _describe_stale(scored_input, unit.source)
        current.append(output)
    return current, gone


def _describe_stale(scored_input: ScoredInput, source: str) -> UserError:
    return UserError(
        f"{source} of {scored_input.path} has changed since it was scored, so its rows are no longer those of the "
        "output; run sentiment-core score again, then sample"
    )


def read_texts(
    scored_input: ScoredInput, output: Output, rows: np.ndarray, text_columns: Sequence[str]
) -> list[tuple[str | None, ...]]:
    """Read the texts of some rows of an output's shard, column by column.

    Args:
        scored_input: The input.
        output: The output that holds the rows.
        rows: (n,) int, their numbers in the shard.
        text_columns: Names of the columns.

    Returns:
        A tuple with the text of each column, for each row in the order of `rows`.

    Raises:
        UserError: The shard has changed since it was scored, or cannot be read.
    """
    assert output.origin is not None, "an output that counts has a footer"
    unit, names = output.origin.unit, list(text_columns)
    start, stop = int(rows.min()), int(rows.max()) + 1
    part = Unit(
        unit.source,
        start,
        stop,
        unit.shard_rows,
        unit.size,
        unit.mtime_ns,
        text_bytes=0,
        table_values=scored_input.values.get(unit.source),
    )
    try:
        if scored_input.columns is None and unit.footer_hash is not None:
            footer_hash = shards.hash_footer(scored_input.root, unit.source, unit.size)
            if not unit.has_version(unit.size, unit.mtime_ns, footer_hash):
                raise FileChanged
        table = read_rows(scored_input.root, part, lambda schema: names, scored_input.columns).take(rows - start)
    except FileChanged:
        raise _describe_stale(scored_input, unit.source) from None
    except UNREADABLE as error:
        path = shards.place_of(scored_input.root, unit.source)
        raise UserError(f"{path} cannot be read: {describe_error(error)}; repair it, or score again") from None
    columns = [[text for chunk in table[name].chunks for text in to_texts(chunk)] for name in names]
    return list(zip(*columns, strict=True))


def read_all_texts(
    scored_input: ScoredInput,
    outputs: Sequence[Output],
    output_of: np.ndarray,
    rows: np.ndarray,
    text_columns: Sequence[str],
) -> list[tuple[str | None, ...]]:
    """Read the texts of rows of several outputs in parallel; arguments and result as for `read_texts`.

    `output_of`: (n,) int, the number of each row's output.
    """
    wanted = [(outputs[number], np.flatnonzero(output_of == number)) for number in np.unique(output_of).tolist()]

    def read(item: tuple[Output, np.ndarray]) -> list[tuple[str | None, ...]]:
        return read_texts(scored_input, item[0], rows[item[1]], text_columns)

    texts: list[tuple[str | None, ...]] = [()] * len(rows)
    for (_, places), own in zip(wanted, storage.map_in_threads(read, wanted), strict=True):
        for i, text in zip(places.tolist(), own, strict=True):
            texts[i] = text
    return texts


def join_columns(texts: Sequence[tuple[str | None, ...]]) -> list[str]:
    """Return each row's texts as one, as scoring joins them."""
    return [join_fields(fields) or "" for fields in texts]
