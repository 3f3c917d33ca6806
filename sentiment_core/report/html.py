"""Render HTML pages from the templates in the folder `templates`.

A page is one file: style and figures stand in it, so that it opens from a disk, a bucket or a mail. `base.html` is the
frame of every page, `macros.html` has tables, figures and tiles. Values are escaped.
"""

import base64
import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).with_name("templates")


def render(template: str, **values: Any) -> str:
    """Render a template, given by its file name, with `values`."""
    return _environment().get_template(template).render(values)


def make_data_uri(png: bytes) -> str:
    """Return a PNG image as the `src` of an HTML image."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def format_cell(value: object) -> str:
    """Format a value for a table.

    Numbers get thousands separators, fractions below 10 three decimals, larger ones one.
    """
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": format_cell, "data_uri": make_data_uri}
    return environment
