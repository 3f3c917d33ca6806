"""Fill in the generated parts of pages when the site is built: the flags of every command and the JSON Schemas.

A line `<!-- generated: command-line -->` becomes the flags, `<!-- generated: schema NAME -->` the schema of a record.
"""

import dataclasses
import inspect
import json
import re
import types
import typing
from importlib import import_module
from typing import Any, Literal

from sentiment_core.config import GROUPS, REQUIRED, flag_of
from sentiment_core.subcommands import COMMANDS

MARK = re.compile(r"^<!-- generated: (command-line|schema) ?([\w-]*) -->$", re.MULTILINE)
RECORDS = {  # records that are written as JSON: where, and the dataclasses whose fields stand there side by side
    "sentiment": ("sentiment.json", ["sentiment_core.model.bundle:BundleInfo"]),
    "metrics": ("metrics.json", ["sentiment_core.model.records:Metrics", "sentiment_core.model.records:Evaluation"]),
    "multi_label_metrics": (
        "metrics.json of a multi-label bundle",
        ["sentiment_core.model.multi_label_records:MultiLabelMetrics", "sentiment_core.model.records:Evaluation"],
    ),
    "epoch": ("a line of training_log.jsonl", ["sentiment_core.model.records:EpochRecord"]),
    "decision": ("current.json, decisions", ["sentiment_core.model.registry:Decision"]),
    "run": ("_run.json", ["sentiment_core.scoring.records:Run", "sentiment_core.scoring.records:RunFile"]),
    "summary": ("_summary.json", ["sentiment_core.scoring.summary:Summary"]),
    "origin": ("footer sentiment_core.origin", ["sentiment_core.scoring.records:Origin"]),
    "counts": (
        "footer sentiment_core.counts",
        ["sentiment_core.scoring.statistics:PassCounts", "sentiment_core.scoring.statistics:Counts"],
    ),
    "counts_of_models": (
        "footer sentiment_core.counts of named models",
        ["sentiment_core.scoring.statistics:PassCounts"],
    ),
    "share": ("an entry of the list that shares --to writes", ["sentiment_core.analysis.records:Share"]),
    "night": ("_nights/NIGHT.json", ["sentiment_core.nightly.record:Night"]),
}
NOT_WRITTEN = {
    "run": ("run",),
    "origin": ("unknown_settings",),
    "counts": ("models",),
    "metrics": ("metrics",),
    "multi_label_metrics": ("metrics",),
}  # fields of these records that the file does not have
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page."""
    return MARK.sub(lambda mark: command_line() if mark[1] == "command-line" else schema_block(mark[2]), markdown)


def command_line() -> str:
    """Return the flags of all commands as Markdown."""
    return "\n\n".join(_command(name) for name in COMMANDS)


def schema_block(name: str) -> str:
    """Return the JSON Schema of a record as a block that can be opened."""
    text = json.dumps(schema(name), indent=2, ensure_ascii=False)
    block = "\n".join(f"    {line}" for line in ["```json", *text.splitlines(), "```"])
    return f'??? note "JSON Schema of `{RECORDS[name][0]}`"\n\n{block}'


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a record."""
    where, paths = RECORDS[name]
    parts = []
    for path in paths:
        module, _, record = path.partition(":")
        parts.append(schema_of(getattr(import_module(module), record)))
    properties = {key: value for part in parts for key, value in part["properties"].items()}
    left_out = NOT_WRITTEN.get(name, ())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": where,
        "description": parts[-1]["description"],
        "type": "object",
        "properties": {key: value for key, value in properties.items() if key not in left_out},
        "required": [key for part in parts for key in part["required"] if key not in left_out],
    }


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type: a dataclass, or what stands in the fields of one."""
    if kind in JSON_TYPES:
        return {"type": JSON_TYPES[kind]}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [schema_of(argument) for argument in arguments]}
    if kind in (list, tuple) or origin in (list, tuple):
        return {"type": "array"} | ({"items": schema_of(arguments[0])} if arguments else {})
    if kind is dict or origin is dict:
        return {"type": "object"} | ({"additionalProperties": schema_of(arguments[1])} if arguments else {})
    if kind is Any:
        return {}
    if hasattr(kind, "add_rows"):  # a statistic: its value alone stands in JSON
        return schema_of(_value_of_statistic(kind)) | {"description": _first_line(kind)}
    return _schema_of_record(kind)


def _schema_of_record(record: type) -> dict[str, Any]:
    kinds, comments = typing.get_type_hints(record), _comments(record)
    properties, required = {}, []
    for field in dataclasses.fields(record):
        key = field.metadata.get("json_name", field.name)
        properties[key] = schema_of(kinds[field.name])
        if field.name in comments:
            properties[key]["description"] = comments[field.name]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(key)
    return {"type": "object", "description": _first_line(record), "properties": properties, "required": required}


def _value_of_statistic(statistic: type) -> Any:
    for base in statistic.__mro__:
        for generic in getattr(base, "__orig_bases__", ()):
            arguments = typing.get_args(generic)
            if arguments and not isinstance(arguments[0], typing.TypeVar):
                return arguments[0]
    raise TypeError(f"{statistic} does not say which type its value has")


def _comments(record: type) -> dict[str, str]:
    """Return the comments behind the fields of a dataclass, by field."""
    bases = [base for base in reversed(record.__mro__) if dataclasses.is_dataclass(base)]
    pattern = re.compile(r"^    (\w+): [^#\n]*#\s*(?!noqa|type:)(\S.*)$", re.MULTILINE)
    return {name: text for base in bases for name, text in pattern.findall(inspect.getsource(base))}


def _first_line(record: type) -> str:
    return (inspect.getdoc(record) or "").partition("\n\n")[0].replace("\n", " ")


def _command(name: str) -> str:
    command, parent = COMMANDS[name], parent_of(name)
    examples = [line.strip() for line in command.details.splitlines() if line.startswith("  ")]
    words = " ".join(line for line in command.details.splitlines() if not line.startswith("  ")).strip()
    lines = [f"## {name}", "", command.summary, "", "```sh", *examples, "```", "", words]
    inherited = {field.name for field in dataclasses.fields(COMMANDS[parent].settings_class)} if parent else set()
    if parent:
        lines += ["", f"All flags of [`{parent}`](#{parent}), and:"]
    fields = [field for field in dataclasses.fields(command.settings_class) if field.name not in inherited]
    kinds = typing.get_type_hints(command.settings_class)
    for group in GROUPS:
        rows = [_row(field, kinds[field.name]) for field in fields if field.metadata["group"] == group]
        if rows:
            lines += ["", f"**{group.capitalize()}**", "", "| flag | meaning | default |", "| --- | --- | --- |", *rows]
    return "\n".join(lines)


def parent_of(name: str) -> str | None:
    """Return the command whose settings this command's settings extend."""
    bases = COMMANDS[name].settings_class.__mro__[1:]
    return next((other for other, command in COMMANDS.items() if command.settings_class in bases), None)


def _row(field: dataclasses.Field, kind: Any) -> str:
    """Return a table row of a setting."""
    value = field.metadata["metavar"] or ""
    if typing.get_origin(kind) is Literal:
        value = "|".join(typing.get_args(kind))
    flag = f"`{flag_of(field.name)}`" + (f" {_escape(value)}" if value else "")
    default = "required" if field.default is REQUIRED else field.default
    shown = "" if default in (None, "", ()) or isinstance(default, bool) else str(default)
    return f"| {flag} | {_escape(field.metadata['help'])} | {shown} |"


def _escape(text: str) -> str:
    """Return text in which Markdown sees no links, tables or emphasis."""
    return re.sub(r"([\[\]|*_<>`])", r"\\\1", text)
