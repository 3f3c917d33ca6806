"""Read the values of Hive partition folders, `key=value`, and compare them as what they are."""

import datetime
import re
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from sentiment_core.errors import UserError

NULL = "__HIVE_DEFAULT_PARTITION__"  # Hive's and Spark's name of the folder of rows without a value
DATE = re.compile(r"(\d{4})(-?)(\d\d|(?<=-)\d)\2(\d\d|(?<=-)\d)([ T].+)?")  # one digit only between hyphens
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def partition_values(path: str) -> dict[str, str | None]:
    """Return the values of a relative path's partition folders by key, decoded; None for a null value."""
    pairs = [part.split("=", 1) for part in path.split("/")[:-1] if "=" in part]
    return {unquote(key): None if value == NULL else unquote(value) for key, value in pairs}


def is_same(value: str, wanted: str) -> bool:
    """Return whether two values are the same as dates, as numbers or as texts."""
    pair = _read_alike(value, wanted)
    return value == wanted or (pair is not None and pair[0] == pair[1])


def is_from_on(value: str, least: str, path: str) -> bool:
    """Return whether `value` is `least` or comes after it, as dates, as numbers or as texts.

    Raises `UserError`, which names `path`, if `least` is a date or a number and `value` is not.
    """
    pair = _read_alike(value, least)
    if pair is not None:
        return pair[0] >= pair[1]
    if _read_date(least) or NUMBER.fullmatch(least):
        raise UserError(
            f"the partition folder of {path} has the value {value!r}; expected one to compare with {least}; rename the "
            "folder or move it out of the input"
        )
    return value >= least


def _read_alike(value: str, other: str) -> tuple[Any, Any] | None:
    """Read two values as dates or, where that fails, as numbers; None if they are not alike."""
    dates = _read_date(value), _read_date(other)
    if dates[0] and dates[1]:
        return dates
    if NUMBER.fullmatch(value) and NUMBER.fullmatch(other):
        return Decimal(value), Decimal(other)
    return None


def _read_date(text: str) -> datetime.datetime | None:
    """Read a date as `2026-11-30`, `2026-1-5`, `20261130` or with a time of day; a zone is converted to UTC."""
    match = DATE.fullmatch(text)
    if not match:
        return None
    year, _, month, day, time = match.groups()
    try:
        date = datetime.datetime.fromisoformat(f"{year}-{int(month):02}-{int(day):02}{time or ''}")
    except ValueError:
        return None
    return date.astimezone(datetime.UTC).replace(tzinfo=None) if date.tzinfo else date
