"""Progress for people: a bar on a terminal, a line now and then in a log, and a word when nothing moves."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

LOG_EVERY = 30.0  # seconds between lines in a plain log
STALLED_AFTER = 120.0  # seconds without progress until it is said what the run waits for


class Progress:
    """Counts towards a known total; used as a context manager in the driver.

    `waiting_for` is asked, from another thread, for a few words when nothing has moved for `STALLED_AFTER` seconds.
    """

    def __init__(self, what: str, total: int, unit: str, waiting_for: Callable[[], str]) -> None:
        self._what, self._unit, self._waiting_for = what, unit, waiting_for
        tty = sys.stderr.isatty()
        self._bar = tqdm(total=total, desc=what, unit=unit, disable=not tty, smoothing=0.1, unit_scale=total > 10_000)
        self._tty, self._total, self._done, self._before = tty, total, 0, 0
        self._start = self._moved = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._bar.close()
        if not self._tty and error[0] is None:
            print(self._line(), file=sys.stderr, flush=True)

    def begin_at(self, done: int) -> None:
        """What an earlier run has done, which tells nothing of the speed of this one."""
        self._before = done
        self.set(done)

    def add(self, count: int) -> None:
        self.set(self._done + count)

    def set(self, done: int) -> None:
        if done > self._done:
            self._moved = time.monotonic()
            self._bar.update(done - self._done)
            self._done = done

    def say(self, text: str) -> None:
        """A line above the bar."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def _line(self) -> str:
        seconds = time.monotonic() - self._start
        rate = (self._done - self._before) / seconds if seconds else 0.0
        left = f", {_duration((self._total - self._done) / rate)} left" if rate and self._done < self._total else ""
        return (
            f"{self._what}: {self._done:,} of {self._total:,} {self._unit} in {_duration(seconds)}, "
            f"{rate:,.1f} {self._unit}/s{left}"
        )

    def _watch(self) -> None:
        said_line = said_stall = time.monotonic()
        while not self._stop.wait(0.5):
            now = time.monotonic()
            if not self._tty and now - said_line >= LOG_EVERY:
                print(self._line(), file=sys.stderr, flush=True)
                said_line = now
            if now - max(self._moved, said_stall) >= STALLED_AFTER:
                self.say(
                    f"{self._what}: no progress for {_duration(now - self._moved)}; waiting for {self._waiting_for()}"
                )
                said_stall = now


@contextlib.contextmanager
def repeat_every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Meanwhile a thread does this, again and again, with so many seconds in between."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Monitor:
    """What the first worker tells of the run, until the driver asks."""

    def __init__(self) -> None:
        self.rows_before: int | None = None  # when the run began, or went on
        self.rows = 0
        self.curves: list[tuple[int, dict[str, float]]] = []  # steps done, values by name

    def put(self, rows: int, step: int, values: dict[str, float]) -> None:
        if self.rows_before is None:
            self.rows_before = rows
        self.rows = rows
        if values:
            self.curves.append((step, values))

    def take(self) -> tuple[int, int, list[tuple[int, dict[str, float]]]]:
        curves, self.curves = self.curves, []
        return self.rows_before or 0, self.rows, curves


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
