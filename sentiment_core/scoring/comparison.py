"""Compare an output with what its input, its bundle and its settings make of the same rows now."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sentiment_core.data.types import set_types, to_canonical
from sentiment_core.inference.tolerances import RESCORED_BF16_TOLERANCE, RESCORED_INT8_TOLERANCE
from sentiment_core.model.naming import with_name
from sentiment_core.scoring.outputs import select_columns
from sentiment_core.scoring.records import Run
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.text.status import ABSTAINED, STATUS_NAMES

COMPUTED = ("label", "labels", "confidence", "probabilities")  # columns that may differ within the tolerance
SHOWN_CHARACTERS = 60  # of a value in a message


class OutputDiffers(OSError):
    """An output does not hold what its input, its bundle and its settings make."""


def check_same(output: pa.Table, expected: pa.Table, rows: Mapping[str, ScoredRows], run: Run) -> None:
    """Refuse an output that differs from `expected`, the table made of `rows`, by model. Raises OutputDiffers.

    Columns that are copied must be equal to the bit, and so must hashes of texts, in outputs that have them.
    Probabilities may differ within the tolerance, and with them a label that is close to another one, or whether a row
    near the threshold abstains.
    """
    expected = to_canonical(expected)
    if expected.column_names[-1] == run.text_hash_column != output.column_names[-1]:  # of an older version, say
        expected = expected.drop_columns([run.text_hash_column])
    output = _as_written_now(output, expected)
    if output.schema != expected.schema:
        raise OutputDiffers(f"its columns are {_columns(output)}; expected {_columns(expected)}")
    _check_kept(output, expected, run)
    for names in run.columns_of_models:
        now, before = (select_columns(table, run, names) for table in (expected, output))
        try:
            own = _take_sides(before, rows[names.model], run)
            _check_status(before, now, own)
            _check_computed(before, now, own, run, names.label)
        except OutputDiffers as error:
            raise OutputDiffers(with_name(names.model, str(error))) from None


def _take_sides(output: pa.Table, rows: ScoredRows, run: Run) -> ScoredRows:
    """Return a cascade's rows with the other model's answer where the threshold is near and the output has that one."""
    if rows.other is None:
        return rows
    is_same = []
    for side in (rows, rows.other):
        may_abstain = _abstained(output) | (side.status == ABSTAINED)
        same_status = pc.equal(output["status"], _status_names(side)).to_numpy()
        is_same.append(~_differs(output, side, run) & (same_status | may_abstain))
    return rows.exchange(rows.other.has_score & ~is_same[0] & is_same[1])


def _status_names(rows: ScoredRows) -> pa.Array:
    return pa.array(STATUS_NAMES).take(pa.array(rows.status))


def _as_written_now(output: pa.Table, expected: pa.Table) -> pa.Table:
    """Give an output the types that this version writes: canonical ones, and other shards' for a column of nulls."""
    output = to_canonical(output)
    only_nulls = {name for name in output.column_names if output[name].null_count == len(output)}
    return set_types(output, {field.name: field.type for field in expected.schema if field.name in only_nulls})


def _check_kept(output: pa.Table, expected: pa.Table, run: Run) -> None:
    """Check the columns that no model computes: those of the input, `source`, `row` and the texts' hashes."""
    names_of_models = {name for names in run.columns_of_models for name in names.names}
    for name in expected.column_names:
        if name not in names_of_models:
            is_scored = name in (*run.scored_columns, run.text_hash_column)
            shown = name.removeprefix(run.prefix) if is_scored else f"column {name!r}"
            _check_column(output[name], expected[name], shown, expected[run.prefix + "row"])


def _check_status(output: pa.Table, expected: pa.Table, rows: ScoredRows) -> None:
    """Check `status`, which may differ where a row abstains: that `_check_computed` looks at."""
    may_abstain = (_abstained(output) | (rows.status == ABSTAINED)) & rows.has_score
    status = expected["status"] if rows.other is None else pa.chunked_array([_status_names(rows)])
    _check_column(output["status"], status, "status", expected["row"], may_abstain)


def _check_column(
    values: pa.ChunkedArray,
    expected: pa.ChunkedArray,
    name: str,
    row: pa.ChunkedArray,
    may_differ: np.ndarray | bool = False,
) -> None:
    if values.equals(expected):
        return
    # by their text, since NaN equals nothing
    pairs = zip(values.to_pylist(), expected.to_pylist(), strict=True)
    differs = np.array([repr(value) != repr(expected_value) for value, expected_value in pairs], bool)
    different_rows = np.flatnonzero(differs & ~np.asarray(may_differ))
    if len(different_rows):
        first = int(different_rows[0])
        raise OutputDiffers(
            f"{name} differs in {len(different_rows):,} of {len(values):,} rows; row {row[first]}: "
            f"{values[first]!s:.{SHOWN_CHARACTERS}}, expected {expected[first]!s:.{SHOWN_CHARACTERS}}"
        )


def _check_computed(output: pa.Table, expected: pa.Table, rows: ScoredRows, run: Run, label: str) -> None:
    """Check label, confidence, probabilities and abstention within the tolerance."""
    wrong = _differs(output, rows, run)
    if wrong.any():
        row = int(wrong.argmax())
        raise OutputDiffers(
            f"{int(wrong.sum()):,} of {len(output):,} rows have another score; row {expected['row'][row]}: "
            f"{output[label][row]} with {output['confidence'][row]}, expected "
            f"{expected[label][row]} with {expected['confidence'][row]}"
        )


def _differs(output: pa.Table, rows: ScoredRows, run: Run) -> np.ndarray:
    """(n,) bool: rows of an output that are not as the rows were scored now, within the tolerance."""
    tolerance = RESCORED_INT8_TOLERANCE if run.int8 else RESCORED_BF16_TOLERANCE
    abstained, confidence = _abstained(output), output["confidence"].to_numpy()
    answer = {name: output[name].combine_chunks() for name in COMPUTED if name in output.column_names}
    wrong = rows.objective.contradicts(answer, rows.probabilities, abstained, rows.labels, tolerance)
    with np.errstate(invalid="ignore"):
        return wrong | (rows.has_score & (abstained != (confidence < np.float32(run.min_confidence))))


def _abstained(table: pa.Table) -> np.ndarray:
    """(n,) bool: rows whose status is `abstained`."""
    return pc.fill_null(pc.equal(table["status"], STATUS_NAMES[ABSTAINED]), False).to_numpy()


def _columns(table: pa.Table) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in table.schema)
