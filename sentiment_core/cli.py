"""Run the commands: `sentiment-core COMMAND`, `python -m sentiment_core COMMAND`, `python jobs/COMMAND.py`.

`subcommands` lists them. Here are arguments, signals, exit codes, warnings and faults.
"""

import functools
import os
import platform
import shlex
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from sentiment_core import __version__
from sentiment_core.config import parse, suggest
from sentiment_core.errors import EXIT_BAD_REQUEST, EXIT_FAULT, EXIT_OK, Notice, UserError
from sentiment_core.runtime import environment
from sentiment_core.subcommands import COMMANDS

MAX_REASON_CHARACTERS = 500  # of an error in a message


def main(argv: list[str] | None = None, prog: str = "sentiment-core") -> NoReturn:
    """Run the command that `argv` (default: the process's arguments) names, and exit with its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    run_and_exit(lambda: _dispatch(arguments, prog))


def run_command(name: str) -> NoReturn:
    """Run one command with the process's arguments, as `python jobs/NAME.py` does, and exit with its exit code."""
    run_and_exit(lambda: _run(name, sys.argv[1:], f"python jobs/{name}.py"))


def run_and_exit(action: Callable[[], int | None]) -> NoReturn:
    """Run `action` and exit with the code it returns; a user's mistake is one sentence on stderr and exit code 2."""
    signal.signal(signal.SIGTERM, _raise_interrupt)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a sentence with emoji on an ASCII terminal
    environment.set_variables()
    warnings.showwarning = functools.partial(_show_warning, warnings.showwarning)
    try:
        code = action() or EXIT_OK
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_REQUEST
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        print(
            f"stopped by {signal.Signals(number).name}; finished files are kept; rerun the same command to resume",
            file=sys.stderr,
        )
        code = 128 + number
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAULT
    except Exception as error:
        print(f"fault: {_log_fault(error)}", file=sys.stderr)
        code = EXIT_FAULT
    sys.exit(code)


def _show_warning(
    show_others: Callable[..., None], message: Warning | str, category: type[Warning], *arguments: Any, **keywords: Any
) -> None:
    """Show a `Notice` as a sentence, without the line of code that made it."""
    if issubclass(category, Notice):
        print(f"note: {message}", file=sys.stderr)
    else:
        show_others(message, category, *arguments, **keywords)


def _log_fault(error: Exception) -> str:
    """Write the traceback of a fault of ours to a file, and return a sentence that says what to report."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON_CHARACTERS]
    lines = [f"sentiment-core {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [shlex.join(sys.argv), "".join(traceback.format_exception(error))]
    try:
        with tempfile.NamedTemporaryFile("w", prefix="sentiment-core-fault-", suffix=".log", delete=False) as log:
            log.write("\n".join(lines))
    except OSError as disk_error:
        return f"{reason}; no log could be written ({disk_error})\n{lines[-1]}"
    return (
        f"{reason}. This is a fault of sentiment-core, not of your request. Please report it with the log "
        f"{log.name}; finished files are kept"
    )


def _raise_interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _dispatch(arguments: list[str], prog: str) -> int:
    """Run the command that the first argument names."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_overview(prog))
        return EXIT_OK
    if name in ("-V", "--version"):
        print(f"sentiment-core {__version__}")
        return EXIT_OK
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command{suggest(name, COMMANDS)}")
    return _run(name, rest, f"{prog} {name}")


def _run(name: str, arguments: list[str], prog: str) -> int:
    command = COMMANDS[name]
    return command.run(parse(command.settings_class, command.description, arguments, prog))


def _overview(prog: str) -> str:
    """Return what `sentiment-core --help` prints."""
    lines = [f"usage: {prog} COMMAND [flags]", ""]
    lines += ["Fine-tune a text classifier on labelled text and score large Parquet corpora with it.", "", "commands:"]
    lines += [f"  {name:10}{command.summary}" for name, command in COMMANDS.items()]
    lines += ["", f"`{prog} COMMAND --help` explains a command's flags.", "`--version` prints the version."]
    return "\n".join(lines)
