"""The records of nights, in `_nights/` of the output folder: one JSON file a night, and who is at work on one.

A night is a name, by default the day's date. Running it again goes on with its record.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sentiment_core.errors import UserError
from sentiment_core.nightly.drift import LEAST_ROWS, Profile
from sentiment_core.runtime import storage
from sentiment_core.runtime.progress import repeat_every

FOLDER = "_nights"
CLAIM = "_running.json"  # who is at work
# Seconds between two signs of life; without one, until a run is taken for dead; until a claim is seen by all.
BEAT_S, SILENT_S, SETTLE_S = 20, 60, 1
SUFFIX = ".json"
WHOLE, PAST, REFERENCE = "this night", "past nights", "the bundle's evaluation rows"  # what is compared with what
PAST_NIGHTS = 14  # that a night is compared with
NEW_NORMAL = 7  # nights in a row that must have drifted until they are what others are compared with


@dataclass
class Night:
    """What is known of a night. `Profile`s stand in it as JSON."""

    night: str
    state: str = "running"  # then "done", "failed" or "stopped"; a run that was killed leaves "running"
    exit_code: int | None = None
    since_ns: int = 0  # outputs written from then on are this night's, by the clock of their disk or store
    model: str = ""
    bundle: str = ""  # digest
    tokens_by: str = ""  # digest of what decides the tokens of a text
    labels: list[str] = field(default_factory=list)
    rows: int = 0  # scored in this night
    left: int = 0  # rows that wait for the next, for want of time or by choice of partitions
    corpus_rows: int = 0
    tokens: int = 0
    removed: int = 0  # outputs of shards that have changed, or are gone
    failed_shards: list[dict] = field(default_factory=list)
    verified: dict[str, int] = field(default_factory=dict)  # findings by kind
    profile: dict = field(default_factory=dict)
    reference: dict = field(default_factory=dict)  # the bundle's evaluation rows, as they were compared with
    partitions: dict[str, dict] = field(default_factory=dict)  # profiles of those that had rows to score
    comparisons: list[dict] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    renewal: dict = field(default_factory=dict)
    runs: list[dict] = field(default_factory=list)  # begun, seconds, rows, rows_per_second, computed_by, outcome

    @property
    def drifted(self) -> bool:
        """Whether this night as a whole was unlike those before it."""
        return any(one["drifted"] and (one["of"], one["against"]) == (WHOLE, PAST) for one in self.comparisons)

    @property
    def line(self) -> dict:
        """The night in a line for other tools."""
        left_out = ("reference", "partitions", "comparisons", "failed_shards", "since_ns")
        short = {name: value for name, value in asdict(self).items() if name not in left_out}
        return short | {"failed_shards": len(self.failed_shards)}


def read_all(place: str) -> list[Night]:
    """All nights of an output folder, by name. Raises `UserError` if they cannot be read, or one is damaged."""
    folder = storage.join(place, FOLDER)
    if not storage.is_folder(folder):
        return []

    def read(name: str) -> Night:
        content = storage.read_file(storage.join(folder, name))
        try:
            return Night(**json.loads(content))
        except (ValueError, TypeError):
            raise UserError(
                f"{folder}/{name} is not the record of a night; expected one that jobs/nightly.py wrote; move it away"
            ) from None

    try:
        names = [stamp.path for stamp in storage.list_stamps(folder)]
        records = [name for name in names if name.endswith(SUFFIX) and not name.startswith("_")]
        return list(storage.map_in_threads(read, records))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error}; check the place and the credentials") from None


def compared_with(before: Sequence[Night]) -> list[Night]:
    """Of the nights before one, those that it is compared with: the last ones that had not drifted from those before
    them; but once `NEW_NORMAL` in a row have, these, and what comes after them."""
    usual: list[Night] = []
    unusual: list[Night] = []  # in a row
    for night in before:
        if night.state == "done" and night.rows:
            if night.drifted:
                unusual.append(night)
            else:
                usual.append(night)
                if night.rows >= LEAST_ROWS:  # else it was not judged
                    unusual = []
            if len(unusual) == NEW_NORMAL:
                usual, unusual = unusual, []
    return usual[-PAST_NIGHTS:]


def past_profile(past: Sequence[Night], night: Night, partition: str | None = None) -> Profile:
    """What `night`, or a partition of it, is compared with: the sum over the `past` nights. What a model says of texts
    counts only where it is the same model, and tokens only where they are made the same way."""
    found = Profile()
    for other in past:
        known = other.profile if partition is None else other.partitions.get(partition)
        if known:
            profile = Profile(**known)
            if other.bundle != night.bundle:
                profile = profile.of_texts(tokens=other.tokens_by == night.tokens_by)
            found += profile
    return found


def latest(nights: Sequence[Night]) -> Night | None:
    """The night that was begun last. One that goes on with another that broke off has its beginning, and then counts as
    the later one."""
    return max(reversed(nights), key=lambda night: (night.since_ns, night.state == "done"), default=None)


def write(place: str, night: Night) -> None:
    content = json.dumps(asdict(night), indent=1, ensure_ascii=False) + "\n"
    storage.write_file(storage.join(place, FOLDER, night.night + SUFFIX), content.encode())


def now_ns(place: str) -> int:
    """The time by the clock that stamps the folder's files."""
    name = storage.temporary_name()
    storage.write_file(storage.join(place, FOLDER, name), b"")
    stamp = storage.read_stamp(place, f"{FOLDER}/{name}")
    storage.delete_file(storage.join(place, FOLDER, name))
    return stamp.mtime_ns


class AtWork(Exception):
    """Another run is at work on the same folder."""


@contextlib.contextmanager
def alone(place: str) -> Iterator[None]:
    """Work on an output folder with no other run at work on it. Raises `AtWork` if there is one that shows signs of
    life; one that is not known to be dead is given `SILENT_S` to show some. Where two runs come through all the same,
    which takes stalls at the wrong moments, they do work twice and no harm."""
    claim = storage.join(place, FOLDER, CLAIM)
    mine: dict[str, Any] = {"run": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "beats": 0}
    first = other = _read_claim(claim)
    deadline = time.monotonic() + SILENT_S
    while other and not _is_dead(other) and time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        other = _read_claim(claim)
        if other and other != first:
            raise AtWork

    def is_mine() -> bool:
        return (_read_claim(claim) or {}).get("run") == mine["run"]

    def beat() -> None:
        with contextlib.suppress(OSError):  # the next one may come through
            if is_mine():  # else taken for dead: another run is at work now
                mine["beats"] += 1
                storage.write_file(claim, json.dumps(mine).encode())

    storage.write_file(claim, json.dumps(mine).encode())
    time.sleep(SETTLE_S)
    if _read_claim(claim) != mine:
        raise AtWork
    try:
        with repeat_every(BEAT_S, beat):
            yield
    finally:
        with contextlib.suppress(OSError):
            if is_mine():
                storage.delete_file(claim)


def _read_claim(place: str) -> dict | None:
    try:
        return json.loads(storage.read_file(place))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _is_dead(claim: dict) -> bool:
    """Whether its process is known to have ended."""
    here = claim.get("host") == socket.gethostname() and os.path.exists("/proc/self")
    return here and not os.path.exists(f"/proc/{claim.get('pid')}")
