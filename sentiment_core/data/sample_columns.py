"""Columns of samples for labelling, and how their texts survive a spreadsheet.

A spreadsheet takes a cell that begins with `=` for a formula and 10/10 for a date. These cells get an apostrophe in
front (OWASP, CSV Injection), which reading takes away.
"""

import re
from collections.abc import Collection

SAMPLE_ID, SOURCE, ROW, LABEL, STRATUM, WEIGHT = COLUMNS = ("sample", "source", "row", "label", "stratum", "weight")
# Letters come first, so that no spreadsheet takes an id for a number or a date.
# Number of the row, rows, checksums of sample and row, start of the hash of the row's text.
ID = re.compile(r"row(\d+)of(\d+)-([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})")
TEXT_HASH_BYTES = 4  # of `text_hash.hash_texts`, as ids have them
APOSTROPHE = "'"
FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
NUMBER_OR_DATE = re.compile(r"[\d\s.,:/%$€£()eE+\-]*\d[\d\s.,:/%$€£()eE+\-]*|true|false", re.IGNORECASE)
MAX_NUMBER_CHARACTERS = 40


def is_sample(names: Collection[str], start: str) -> bool:
    """Return whether a file is a sample that `sentiment-core sample` wrote, even if columns were removed since.

    `names`: of its columns. `start`: of its content.
    """
    return {SOURCE, ROW, STRATUM, WEIGHT} <= {*names} or (SAMPLE_ID in names and ID.search(start) is not None)


def escape(text: str) -> str:
    """Return a text as a cell that spreadsheets leave as it is."""
    return APOSTROPHE + text if _is_changed(text.lstrip(APOSTROPHE)) else text


def unescape(cell: str) -> str:
    """Undo `escape`; a cell that lost its apostrophe stays as it is."""
    is_escaped = cell.startswith(APOSTROPHE) and _is_changed(cell.lstrip(APOSTROPHE))
    return cell[1:] if is_escaped else cell


def _is_changed(text: str) -> bool:
    """Return whether a spreadsheet would take a text for a formula, a number, a date or a truth value."""
    if FORMULA.match(text):
        return True
    return len(text) <= MAX_NUMBER_CHARACTERS and NUMBER_OR_DATE.fullmatch(text) is not None
