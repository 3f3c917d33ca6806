"""Read what `--model` gives a command that takes several models: one place, or places with a name each."""

import os
import re
from collections.abc import Iterable

from sentiment_core.errors import UserError

Models = str | dict[str, str]  # as settings have it: what names one model, or such texts by the models' names
NAME = re.compile(r"\w+")
NAMED = re.compile(r"(\w+)=(.*)", re.DOTALL)
EXPECTED = "expected NAME=MODEL, such as sentiment=models/a,topic=models/b"


def read_models(model: Models) -> dict[str, str]:
    """Return what names each model, by the model's name and in the order of the names; "" is that of a single model.

    A text that begins with a word and `=` gives names, unless there is a file or folder of that name. Raises
    `UserError`.
    """
    if isinstance(model, str):
        if not _gives_names(model):
            return {"": model}
        pairs = [_split(part, model) for part in model.split(",")]
    else:
        pairs = list(model.items())
    if not pairs:
        raise UserError(f"--model gives no model; {EXPECTED}")
    _check_names([name for name, _ in pairs])
    for name, path in pairs:
        if not path.strip():
            raise UserError(f"--model {name}= has no model behind the name; {EXPECTED}")
    return dict(sorted((name, path.strip()) for name, path in pairs))


def refuse_names(model: str) -> None:
    """Refuse names of models where a command takes one model. Raises `UserError`."""
    if _gives_names(model):
        raise UserError(
            f"--model {model} is not the place of one model; expected a folder, URI or hub name. Names of models, as "
            "in sentiment=models/a, are for score, verify and nightly"
        )


def with_name(name: str, text: str) -> str:
    """Return a text about a model with the model's name before it; a single model has none."""
    return f"{name}: {text}" if name else text


def _gives_names(model: str) -> bool:
    return bool(NAMED.fullmatch(model)) and not os.path.lexists(model)


def _split(part: str, model: str) -> tuple[str, str]:
    match = NAMED.fullmatch(part.strip())
    if not match:
        raise UserError(
            f"--model {model} has a part without a name, {part.strip()!r}; {EXPECTED}; a path with a comma needs a "
            "mapping in the --config file"
        )
    return match[1], match[2]


def _check_names(names: Iterable[str]) -> None:
    """Refuse names that are no words, and two whose columns would have the same names.

    To DuckDB and Spark these are the same also if they differ in case only.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not NAME.fullmatch(name):
            raise UserError(f"--model has the name {name!r}; expected letters, digits and '_', such as sentiment")
        earlier = seen.get(name.lower())
        if earlier is not None:
            both = (
                f"the name {name}" if name == earlier else f"the names {earlier} and {name}, which differ in case only"
            )
            raise UserError(f"--model gives two models {both}; their columns would be the same; give them other names")
        seen[name.lower()] = name
