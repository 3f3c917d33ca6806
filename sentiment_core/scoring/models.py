"""The models of a pass over a corpus: one, or several with a name each.

A pass reads each text once. It tokenizes it once for all models that make the same tokens of it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sentiment_core.errors import UserError
from sentiment_core.model import bundle, registry, source
from sentiment_core.model.naming import Models, read_models
from sentiment_core.model.objective import Objective
from sentiment_core.model.source import OpenedModel

TOKENIZER = "tokenizer.json"  # where it is there, no other file decides the tokens


@dataclass(frozen=True)
class PassModel:
    """A model of a pass, as the stages need to know it."""

    name: str  # "" where it is the only one and has none
    bundle: str  # digest
    objective: Objective
    labels: list[str]  # in the order of the probabilities
    # names of the token lists that it computes, which are this or an earlier model's: of a cascade those of its small
    # and its large model, else one; see `tokenizer_owner`
    tokenizers: tuple[str, ...]

    @property
    def tokenizer(self) -> str:
        """The name of the token lists that all its rows have."""
        return self.tokenizers[0]

    @property
    def is_cascade(self) -> bool:
        """True if a large model answers some of its rows."""
        return len(self.tokenizers) > 1


def open_models(model: Models) -> dict[str, OpenedModel]:
    """Open what `--model` gives, by the models' names; of folders of bundles the current ones. Raises `UserError`."""
    paths = read_models(model)
    try:
        return {name: source.open_model(registry.resolve(path)) for name, path in paths.items()}
    except UserError as error:
        if isinstance(model, str) and "" not in paths:  # which may have been meant as the path of one model
            raise UserError(f"{error} (--model {model} does not exist as a path; it was read as NAME=MODEL)") from None
        raise


def describe_models(opened: Mapping[str, OpenedModel]) -> tuple[PassModel, ...]:
    """Describe opened models for the stages, in their order."""
    names: dict[tuple, str] = {}  # of token lists, by what decides the tokens: that of the first model with it
    return tuple(
        PassModel(
            name,
            bundle.digest_of(model.files),
            model.info.objective,
            model.info.labels,
            tuple(
                names.setdefault(_what_decides_tokens(files), f"{name}/{part}" if part else name)
                for part, files in bundle.parts_of(model.files).items()
            ),
        )
        for name, model in opened.items()
    )


def _what_decides_tokens(files: dict[str, bytes]) -> tuple:
    tokenizer = files.get(TOKENIZER)
    return bundle.info_of(files).preprocessing, bundle.tokens_digest_of(files) if tokenizer is None else tokenizer


def tokenizing_models(models: Iterable[PassModel]) -> dict[str, list[PassModel]]:
    """Group models by the names of the token lists that they compute; the first one of a group owns the tokenizer."""
    groups: dict[str, list[PassModel]] = {}
    for model in models:
        for name in dict.fromkeys(model.tokenizers):
            groups.setdefault(name, []).append(model)
    return groups


def tokenizer_owner(name: str) -> tuple[str, str]:
    """Return the name of the model that token lists of this name belong to, and its part, "" of one without parts."""
    model, _, part = name.partition("/")
    return model, part


def digest_of_all(bundles: Mapping[str, str]) -> str:
    """Return one digest for all bundles of a pass, whose digests are given by name; of a single one its own."""
    if "" in bundles:
        return bundles[""]
    return hashlib.sha256(json.dumps(bundles, sort_keys=True).encode()).hexdigest()


def text_columns(opened: Mapping[str, OpenedModel], chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the text columns of a pass: the `chosen` ones, else those that all models remember. Raises `UserError`."""
    remembered = {name: model.info.text_columns for name, model in opened.items()}
    if not chosen and len(set(remembered.values())) > 1:
        shown = "; ".join(f"{name} reads {','.join(columns)}" for name, columns in remembered.items())
        raise UserError(f"the models of --model read different text columns ({shown}); choose with --text-column")
    return chosen or next(iter(remembered.values()))
