"""Fill in the generated parts of pages when the site is built: the flags of every command and the JSON Schemas.

A line `<!-- generated: command-line -->` becomes the flags, `<!-- generated: schema NAME -->` the schema of a record.
"""

import dataclasses
import json
import re
import typing
from importlib import import_module
from typing import Any, Literal

from pydantic import TypeAdapter

from sentiment_core.cli import COMMANDS
from sentiment_core.config import GROUPS, REQUIRED, flag_of

MARK = re.compile(r"^<!-- generated: (command-line|schema) ?([\w-]*) -->$", re.MULTILINE)
RECORDS = {  # records that are written as JSON: file or footer key, and the dataclass that reads it
    "sentiment": ("sentiment.json", "sentiment_core.model.bundle:BundleInfo"),
    "run": ("_run.json", "sentiment_core.scoring.outputs:Run"),
    "counts": ("footer sentiment_core.counts", "sentiment_core.scoring.outputs:Counts"),
    "night": ("_nights/NIGHT.json", "sentiment_core.nightly.record:Night"),
}


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
    path, _, record = RECORDS[name][1].partition(":")
    module = import_module(path)
    if name == "sentiment" and not hasattr(module, "Head"):  # imported there for type checkers only
        module.Head = import_module("sentiment_core.model.classifier").Head  # type: ignore[attr-defined]
    return TypeAdapter(getattr(module, record)).json_schema()


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
