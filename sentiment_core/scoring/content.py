"""Check the rows of an output against its footer."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sentiment_core.model.naming import with_name
from sentiment_core.scoring import outputs
from sentiment_core.scoring.records import ROW_COLUMNS, TEXT_HASH, Origin, UnitOrigin
from sentiment_core.scoring.statistics import Counts, PassCounts
from sentiment_core.text.text_hash import HASH_TYPE

CHECKED_COLUMNS = ("confidence", "status", *ROW_COLUMNS)  # of each model, and the one with the answer


def find_fault(table: pa.Table, origin: Origin, counts: PassCounts, has_text_hash: bool) -> str:
    """Return what is wrong with the rows of an output, by the record in its footer; empty if nothing is.

    Raises what pyarrow raises for columns of other types.
    """
    run, all_rows = origin.run, counts.all_rows
    for names in run.columns_of_models:
        own_columns = outputs.select_columns(table, run, names)
        fault = _find_fault_of_model(own_columns, origin.unit, all_rows.models[names.model], names.label)
        if not fault and has_text_hash:
            fault = _find_fault_of_hashes(table[run.text_hash_column], own_columns["status"])
        if fault:
            return with_name(names.model, fault)
    return ""


def _find_fault_of_model(table: pa.Table, unit: UnitOrigin, counts: Counts, label_column: str) -> str:
    absent = [name for name in (label_column, *CHECKED_COLUMNS) if table.column_names.count(name) != 1]
    if absent:
        return f"has no column {absent[0]!r}, or several"
    if not np.array_equal(table["row"].to_numpy(), np.arange(unit.start, unit.stop)):
        return f"its rows are not {unit.start} to {unit.stop - 1} in order"
    if len(table) and pc.unique(table["source"]).to_pylist() != [unit.source]:
        return f"its rows are not all of {unit.source}"
    for column, empty_status in (("confidence", ["empty", "null"]), (label_column, ["empty", "null", "abstained"])):
        must_be_null = pc.is_in(table["status"], pa.array(empty_status))
        if pc.any(pc.not_equal(pc.is_null(table[column]), must_be_null)).as_py():
            return f"{column} is null where status says it is scored, or the other way round"
    for column, expected in (("status", counts.status), (label_column, counts.labels)):
        is_list = pa.types.is_list(table[column].type)
        values = pc.list_flatten(table[column]) if is_list else table[column].cast(pa.string())
        rows_by_value = {pair["values"]: pair["counts"] for pair in pc.value_counts(values.drop_null()).to_pylist()}
        if Counter(rows_by_value) != Counter(expected.value):
            return f"{column} is not as its footer counts it"
    confidence = table["confidence"].drop_null().to_numpy()
    return "" if ((confidence > 0) & (confidence <= 1)).all() else "a confidence is not between 0 and 1"


def _find_fault_of_hashes(hashes: pa.ChunkedArray, status: pa.ChunkedArray) -> str:
    if hashes.type != HASH_TYPE:
        return f"{TEXT_HASH} holds {hashes.type}; expected {HASH_TYPE}"
    if pc.any(pc.not_equal(pc.is_null(hashes), pc.equal(status, "null"))).as_py():
        return f"{TEXT_HASH} is null where status says there is a text, or the other way round"
    return ""
