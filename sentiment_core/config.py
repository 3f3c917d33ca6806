"""Settings of a job: a frozen dataclass beside the code that uses it, filled from a YAML file and flags.

Each field made with `setting` is a flag (`text_column` -> `--text-column`) and a key of `--config FILE.yaml`; flags
win.
"""

import argparse
import dataclasses
import datetime
import difflib
import os
import shlex
import signal
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import yaml

from sentiment_core.errors import EXIT_BAD_REQUEST, EXIT_FAULT, EXIT_OK, UserError

Settings = TypeVar("Settings")
REQUIRED = dataclasses.MISSING


def setting(default: Any, help: str, metavar: str | None = None) -> Any:
    """A dataclass field that is also a flag. `default=REQUIRED` makes it one that must be given."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


def check(ok: bool, flag: str, found: object, expected: str) -> None:
    """Refuse the value `found` of `--flag` unless `ok`."""
    if not ok:
        raise UserError(f"--{flag.replace('_', '-')} is {found!r}; expected {expected}")


def parse(settings_class: type[Settings], description: str | None, argv: list[str] | None = None) -> Settings:
    """Settings from the command line and its `--config` file. Raises `UserError` for a value that cannot be used."""
    kinds = typing.get_type_hints(settings_class)
    fields = {f.name: f for f in dataclasses.fields(settings_class)}  # type: ignore[arg-type]
    parser = _Parser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="the same settings as a YAML file; flags win over it")
    for name, field in fields.items():
        _add_flag(parser, name, kinds[name], field)
    given = vars(parser.parse_args(argv))
    values = {}
    config = given.pop("config", None)
    if config:
        content, written = _read_yaml(config)
        for key, value in content.items():
            name = str(key).replace("-", "_")
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(fields)}"
                raise UserError(f"{config} has the unknown setting {key!r}{hint}")
            values[name] = _from_yaml(config, name, value, kinds[name], written.get(key))
    values.update(given)
    missing = [n for n, f in fields.items() if f.default is REQUIRED and n not in values]
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        raise UserError(f"{flags} must be given, as a flag or in the --config file; see --help")
    return settings_class(**values)


def parse_value(settings_class: type, name: str, text: str) -> Any:
    """The value of a setting that is written like this in a --config file. Raises `UserError`."""
    try:
        value, written = _load(text)
    except (yaml.YAMLError, ValueError):
        value, written = text, text
    return _from_yaml(text, name, value, typing.get_type_hints(settings_class)[name], written)


def command(job: str, settings: Any) -> str:
    """The command line that gives these settings to a job."""
    words = ["python", f"jobs/{job}.py"]
    for field in dataclasses.fields(settings):
        value, flag = getattr(settings, field.name), "--" + field.name.replace("_", "-")
        if field.default is REQUIRED or value != field.default:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            words += [flag] if value is True else [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return shlex.join(words)


def run_job(main: Callable[[], int | None]) -> NoReturn:
    """Run a job and leave with its exit code; a user's mistake is one sentence on stderr, without a stack trace."""
    signal.signal(signal.SIGTERM, _stop)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a sentence with emoji on an ASCII terminal
    try:
        code = main() or EXIT_OK
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_BAD_REQUEST
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        print(
            f"stopped by {signal.Signals(number).name}; what is committed stays, and the same command goes on "
            "from there",
            file=sys.stderr,
        )
        code = 128 + number
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAULT
    sys.exit(code)


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def _add_flag(parser: argparse.ArgumentParser, name: str, kind: Any, field: dataclasses.Field) -> None:
    default = field.default
    text = field.metadata["help"].replace("%", "%%")
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        text += f" (default: {default})"
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    kind = _plain(kind)
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is typing.Literal:
        options["choices"] = typing.get_args(kind)
    else:
        options["type"] = _names if typing.get_origin(kind) is tuple else kind
        options["metavar"] = field.metadata["metavar"] or {str: "NAME", int: "N", float: "X"}.get(kind, "A,B")
    parser.add_argument("--" + name.replace("_", "-"), **options)


def _plain(kind: Any) -> Any:
    """`int | None` -> `int`."""
    if isinstance(kind, types.UnionType):
        return next(k for k in typing.get_args(kind) if k is not type(None))
    return kind


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _load(text: str) -> tuple[Any, Any]:
    """YAML's content, and the same with each value as it is written: names such as no, 01 and 2026-11-30 are texts."""
    return yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)


def _read_yaml(path: str) -> tuple[dict, dict]:
    try:
        with open(path, encoding="utf-8") as file:
            content, written = _load(file.read())
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # that of 2026-02-30 is no YAMLError
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {path} holds {type(content).__name__}; expected settings as 'name: value' lines")
    return content, written


def _from_yaml(path: str, name: str, value: Any, kind: Any, written: Any) -> Any:
    optional, kind = kind is not _plain(kind), _plain(kind)
    if value is None and optional:
        return None
    if typing.get_origin(kind) is tuple:
        if isinstance(written, list) and all(isinstance(item, str) for item in written):
            return tuple(written)
        if isinstance(value, str):
            return _names(value)
        expected = "a list of names"
    elif typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
        expected = "one of " + ", ".join(typing.get_args(kind))
    elif kind is float:
        # YAML 1.1 reads 2e-5 (no dot) as a string
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
        expected = "a number"
    elif kind is str and isinstance(value, datetime.date):  # YAML's 2026-11-30
        return value.isoformat()
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    else:
        expected = {int: "a whole number", str: "a text", bool: "true or false"}[kind]
    raise UserError(f"{path}: {name} is {value!r}; expected {expected}")
