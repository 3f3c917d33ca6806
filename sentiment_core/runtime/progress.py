"""Show progress in a notebook, on a terminal or in a log.

A log gets a line now and then. A line says what a run waits for when nothing moves.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from tqdm.auto import tqdm  # the notebook's bar where it runs in one

LOG_EVERY_S = 30.0  # between lines in a plain log
FIRST_LINE_S = 10.0  # after the first progress: soon enough to decide whether to wait, late enough for a rate
STALLED_AFTER_S = 120.0  # without progress until a line says what the run waits for
WATCH_EVERY_S = 0.5


class Progress:
    """Progress towards a known total, shown inside a `with` block in the driver.

    When nothing has moved for `STALLED_AFTER_S` seconds, a line says what the run waits for.
    """

    def __init__(self, description: str, total: int, unit: str, waiting_for: Callable[[], str]) -> None:
        """Prepare the bar.

        `waiting_for` is called, from another thread, for a few words on what the run waits for.
        """
        self._description, self._unit, self._waiting_for = description, unit, waiting_for
        self._has_bar = sys.stderr.isatty() or in_notebook()
        self._bar = tqdm(
            total=total,
            desc=description,
            unit=unit,
            disable=not self._has_bar,
            smoothing=0.1,
            unit_scale=total > 10_000,
        )
        self._total, self._done, self._done_before = total, 0, 0
        self._started = self._moved = time.monotonic()
        self._first_moved: tuple[float, int] | None = None  # when something was first done, and how much then
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._watcher.join()
        self._bar.close()
        if not self._has_bar and error[0] is None:
            self._log(self._line())

    def resume_at(self, done: int) -> None:
        """Count what an earlier run has done, which does not count for this one's speed."""
        self._done_before = done
        self.set(done)

    def add(self, count: int) -> None:
        """Count further units as done."""
        self.set(self._done + count)

    def set(self, done: int) -> None:
        """Set how many units are done; a smaller number than before is ignored."""
        if done > self._done:
            self._moved = time.monotonic()
            self._first_moved = self._first_moved or (self._moved, done)
            self._bar.update(done - self._done)
            self._done = done

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def _log(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        rate = (self._done - self._done_before) / seconds if seconds else 0.0
        left = f", {_duration((self._total - self._done) / steady)} left" if (steady := self._steady_rate(rate)) else ""
        return (
            f"{self._description}: {self._done:,} of {self._total:,} {self._unit} in {_duration(seconds)}, "
            f"{rate:,.1f} {self._unit}/s{left}"
        )

    def _steady_rate(self, mean_rate: float) -> float:
        """Return the rate since the first progress, before which workers start; 0 where nothing is left to do."""
        if self._first_moved is None or self._done >= self._total:
            return 0.0
        began, done_then = self._first_moved
        return (self._done - done_then) / (time.monotonic() - began) if self._done > done_then else mean_rate

    def _watch(self) -> None:
        last_line = last_warning = time.monotonic()
        first_line_due = True
        while not self._stop.wait(WATCH_EVERY_S):
            now = time.monotonic()
            is_first = first_line_due and self._first_moved and now - self._first_moved[0] >= FIRST_LINE_S
            if not self._has_bar and (is_first or now - last_line >= LOG_EVERY_S):
                first_line_due = first_line_due and not is_first
                self._log(self._line())
                last_line = now
            if now - max(self._moved, last_warning) >= STALLED_AFTER_S:
                stalled = _duration(now - self._moved)
                self.say(f"{self._description}: no progress for {stalled}; waiting for {self._waiting_for()}")
                last_warning = now


def in_notebook() -> bool:
    """Return whether this process is the kernel of a Jupyter notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


@contextlib.contextmanager
def repeat_every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` from a thread, every few seconds until the block ends."""
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


def _duration(seconds: float) -> str:
    """Write seconds as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
