"""Fill settings dataclasses from flags, a YAML file or Python keywords.

The settings of a command are a frozen dataclass beside the code that uses them. Each field made with `setting` is a
flag (`text_column` is `--text-column`), a key of `--config FILE.yaml` and a keyword in Python. Flags win over the file.
"""

import argparse
import dataclasses
import datetime
import difflib
import keyword
import os
import shlex
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from sentiment_core.errors import UserError

Settings = TypeVar("Settings")
Group = Literal["data", "model", "optimization", "long texts", "output", "run"]
GROUPS = typing.get_args(Group)  # in the order in which `--help` shows them
REQUIRED = dataclasses.MISSING


def setting(default: Any, help: str, metavar: str | None = None, *, group: Group = "run") -> Any:
    """Declare a dataclass field that is also a flag.

    Args:
        default: Value without the flag. `REQUIRED` makes it a flag that must be given.
        help: One plain line for `--help`, without the default.
        metavar: Name of the value in `--help`.
        group: Heading under which `--help` lists the flag.
    """
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar, "group": group})


def check(ok: bool, name: str, value: object, expected: str) -> None:
    """Raise `UserError` for the `value` of the setting `name` unless `ok`."""
    if not ok:
        raise UserError(f"{flag_of(name)} is {value!r}; expected {expected}")


def flag_of(name: str) -> str:
    """Return the flag of a setting: `text_column` becomes `--text-column`, and `for_` becomes `--for`."""
    return "--" + name.rstrip("_").replace("_", "-")


def name_of(key: str) -> str:
    """Return the name of a setting by its key in a file; one that is a word of Python ends with `_`."""
    name = key.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def parse(
    settings_class: type[Settings], description: str | None, argv: list[str] | None = None, prog: str | None = None
) -> Settings:
    """Read settings from a command line and its `--config` file.

    Raises `UserError` for an unknown flag or a value that cannot be used. `--help` prints the help and exits.
    """
    parser = make_parser(settings_class, description, prog)
    flags, rest = parser.parse_known_args(argv)
    if rest:
        known_flags = [option for action in parser._actions for option in action.option_strings]
        raise UserError(f"{rest[0]} is not a flag of this command{suggest(rest[0].partition('=')[0], known_flags)}")
    values = vars(flags)
    config_path = values.pop("config", None)
    if config_path:
        values = read_config(settings_class, config_path) | values
    return _build(settings_class, values, "{flags} must be given, as flags or in the --config file. See --help.")


def from_keywords(settings_class: type[Settings], function: str, keywords: Mapping[str, Any]) -> Settings:
    """Make settings from the keywords of a Python call of `function`. Raises `UserError`."""
    fields, kinds = _fields(settings_class), typing.get_type_hints(settings_class)
    values = {}
    for name, value in keywords.items():
        if name not in fields:
            raise UserError(f"{function}() has no setting {name!r}{suggest(name, fields)}")
        plain_value = _plain_value(value)
        values[name] = _convert(f"{function}()", name, plain_value, kinds[name], plain_value)
    return _build(settings_class, values, f"{function}() needs {{names}}")


def make_parser(settings_class: type, description: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """Make the argument parser of a settings class, its flags under the headings of `GROUPS`."""
    kinds = typing.get_type_hints(settings_class)
    parser = _Parser(
        prog=prog,
        usage="%(prog)s [flags]",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for name, field in _fields(settings_class).items():
        _add_flag(groups[field.metadata["group"]], name, kinds[name], field)
    groups["run"].add_argument("-h", "--help", action="help", help="print this and exit")
    groups["run"].add_argument(
        "--config", metavar="FILE.yaml", default=argparse.SUPPRESS, help="the same settings as YAML; flags win over it"
    )
    return parser


def read_config(settings_class: type, path: str) -> dict[str, Any]:
    """Read the settings that a `--config` file gives, by name. Raises `UserError`."""
    fields, kinds = _fields(settings_class), typing.get_type_hints(settings_class)
    content, texts = _read_yaml(path)
    values = {}
    for key, value in content.items():
        name = name_of(str(key))
        if name not in fields:
            raise UserError(f"{path} has the unknown setting {key!r}{suggest(name, fields)}")
        values[name] = _convert(path, name, value, kinds[name], texts.get(key))
    return values


def parse_value(settings_class: type, name: str, text: str) -> Any:
    """Read the value of a setting as it stands in a `--config` file. Raises `UserError`."""
    try:
        value, written = _load_yaml(text)
    except (yaml.YAMLError, ValueError):
        value, written = text, text
    return _convert(text, name, value, typing.get_type_hints(settings_class)[name], written)


def defaults_of(settings: Any) -> dict[str, Any]:
    """Return the defaults of a settings dataclass, by name; required settings have none."""
    return {item.name: item.default for item in dataclasses.fields(settings) if item.default is not dataclasses.MISSING}


def command_line(command: str, settings: Any) -> str:
    """Return the command line that gives these settings to a command."""
    words = ["sentiment-core", command]
    for name, field in _fields(type(settings)).items():
        value, flag = getattr(settings, name), flag_of(name)
        if field.default is REQUIRED or value != field.default:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            words += [flag] if value is True else [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return shlex.join(words)


def suggest(name: str, names: typing.Iterable[str]) -> str:
    """Return the end of a sentence about the unknown `name`: the nearest of `names`, or all of them."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(names)}"


def _build(settings_class: type[Settings], values: Mapping[str, Any], missing_sentence: str) -> Settings:
    names = [name for name, field in _fields(settings_class).items() if field.default is REQUIRED]
    missing = [name for name in names if name not in values]
    if missing:
        raise UserError(missing_sentence.format(flags=", ".join(map(flag_of, missing)), names=", ".join(missing)))
    return settings_class(**values)


def _fields(settings_class: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(settings_class)}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See --help.")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def _add_flag(group: argparse._ArgumentGroup, name: str, kind: Any, field: dataclasses.Field) -> None:
    default = field.default
    text = field.metadata["help"].replace("%", "%%")
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        text += f" (default: {default})"
    options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    kind = _without_none(kind)
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif typing.get_origin(kind) is Literal:
        options["choices"] = typing.get_args(kind)
    else:
        options["type"] = _split_names if typing.get_origin(kind) is tuple else kind
        options["metavar"] = field.metadata["metavar"] or {str: "NAME", int: "N", float: "X"}.get(kind, "A,B")
    group.add_argument(flag_of(name), **options)


def _without_none(kind: Any) -> Any:
    """Return `int` for `int | None`, and for a text or a mapping of texts `str`, as a flag has it."""
    return next((k for k in _kinds_of(kind) if k is not type(None)), kind)


def _kinds_of(kind: Any) -> tuple[Any, ...]:
    """Return the types of a union; of another type none."""
    # `Literal[...] | None` is one of the second kind
    return typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else ()


def _split_names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _plain_value(value: Any) -> Any:
    """Return a Python value as YAML would give it.

    Paths are text, sequences and columns lists, and numpy's numbers Python's.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {name: _plain_value(item) for name, item in value.items()}
    if isinstance(value, str | bool | int | float | list | None):
        return value
    for method in ("tolist", "to_list"):  # of numpy, pandas, torch and pyarrow; of polars
        if hasattr(value, method):
            return getattr(value, method)()
    return value


def _load_yaml(text: str) -> tuple[Any, Any]:
    """Return YAML's content, and the same with each value as it is written.

    Names such as no, 01 and 2026-11-30 are texts, which YAML reads as something else.
    """
    return yaml.safe_load(text), yaml.load(text, _TextLoader)


class _TextLoader(yaml.SafeLoader):
    """Load each value as it is written, and follow merge keys. Refuse a name that a mapping has twice.

    Merge keys: https://yaml.org/type/merge.html. A mapping's own names win over merged ones.
    """

    # all but merge keys are texts
    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping as it is written, before names are merged into it."""
        node = super().compose_mapping_node(anchor)
        names: set[str] = set()
        for key, _ in node.value:
            if key.value in names:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} has the name {key.value} for the second time")
            names.add(key.value)
        return node


def _read_yaml(path: str) -> tuple[dict, dict]:
    try:
        with open(path, encoding="utf-8") as file:
            content, texts = _load_yaml(file.read())
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # that of 2026-02-30 is no YAMLError
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"--config {path} holds {type(content).__name__}; expected settings as 'name: value' lines")
    return content, texts


def _convert(origin: str, name: str, value: Any, kind: Any, written: Any) -> Any:
    """Return `value` as the type `kind` of a setting, or raise `UserError`. `written`: the value as it is written."""
    kinds, kind = _kinds_of(kind), _without_none(kind)
    if value is None and types.NoneType in kinds:
        return None
    if isinstance(value, dict) and dict[str, str] in kinds:
        return _convert_mapping(origin, name, value, written)
    if typing.get_origin(kind) is tuple:
        if isinstance(written, list) and all(isinstance(item, str) for item in written):
            return tuple(written)
        if isinstance(value, str):
            return _split_names(value)
        expected = "a list of names"
    elif typing.get_origin(kind) is Literal:
        if isinstance(value, str) and value in typing.get_args(kind):  # a table of pandas is compared cell by cell
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
    raise UserError(f"{origin}: {name} is {value!r}; expected {expected}")


def _convert_mapping(origin: str, name: str, value: dict, written: Any) -> dict[str, str]:
    """Return a mapping of texts by name, both as they are written. Raises `UserError`."""
    texts = written if isinstance(written, dict) else value
    empty = [key for key, item in value.items() if item is None]  # which may be written ~ or null
    if empty:
        raise UserError(f"{origin}: {name} has nothing under {empty[0]!r}; expected a text for each name")
    for key, text in texts.items():
        if not (isinstance(key, str) and isinstance(text, str)):
            raise UserError(f"{origin}: {name} has {text!r} under {key!r}; expected a text for each name")
    return dict(texts)
