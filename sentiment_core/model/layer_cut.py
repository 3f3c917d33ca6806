"""Cut an encoder down to some of its layers, as a student that is faster than it."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import safetensors.torch
import torch
from transformers import AutoConfig, AutoModel

from sentiment_core.errors import UserError
from sentiment_core.model import bundle, classifier, families
from sentiment_core.model.encoder import Encoder

INDEX = f"{bundle.WEIGHTS}.index.json"  # names the files of weights that are in parts


def choose_layers(layers: int, number: int) -> list[int]:
    """Choose a number of layers, evenly spread, the last among them; they count from 0."""
    return [(i + 1) * layers // number - 1 for i in range(number)]


@contextlib.contextmanager
def cut_layers(encoder: Encoder, number: int | None) -> Iterator[Encoder]:
    """Give an encoder with so many of its layers, in a folder that is deleted afterwards; None keeps all.

    Embeddings, head and tokenizer stay. Raises `UserError` if it has fewer layers, or layers that are not alike.
    """
    if number is None:
        yield encoder
        return
    config = read_config(encoder, number)
    with tempfile.TemporaryDirectory(prefix="sentiment-core-") as folder:
        try:
            _copy_with_layers(
                encoder.folder, folder, _find_list(config), choose_layers(config.num_hidden_layers, number)
            )
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise _describe_damage(encoder, error) from None
        config.num_hidden_layers = number
        config.save_pretrained(folder)
        yield replace(encoder, folder=folder)


def read_config(encoder: Encoder, number: int) -> Any:
    """Read the configuration of an encoder that has so many layers. Raises `UserError` as `cut_layers` does."""
    try:
        config: Any = AutoConfig.from_pretrained(encoder.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _describe_damage(encoder, error) from None
    if config.model_type not in families.PLAIN_LAYERS:
        raise UserError(
            f"--layers: --model {encoder.name} is of the family {config.model_type}, whose layers cannot be taken "
            f"apart. Leave --layers out, or choose one of {', '.join(families.PLAIN_LAYERS)}."
        )
    layers: int = config.num_hidden_layers
    if number > layers:
        raise UserError(f"--layers is {number}; --model {encoder.name} has {layers} layers. Lower it.")
    return config


def _describe_damage(encoder: Encoder, error: Exception) -> UserError:
    return UserError(f"--model {encoder.name} cannot be loaded: {' '.join(str(error).split())[:300]}")


def _find_list(config: Any) -> str:
    """Return the name of the list of layers in the names of an encoder's weights."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    layers = classifier.encoder_layers(model)
    return next(name for name, module in model.named_modules() if module is layers)


def _copy_with_layers(source: str, folder: str, list_name: str, chosen: list[int]) -> None:
    """Copy the files of an encoder, of its weights only the chosen layers', which are numbered from 0 on."""
    for name in os.listdir(source):
        if not bundle.is_weights(name) and os.path.isfile(os.path.join(source, name)):
            shutil.copyfile(os.path.join(source, name), os.path.join(folder, name))
    pattern = re.compile(rf"((?:^|.*\.){re.escape(list_name)}\.)(\d+)(\..*)")
    numbers = {layer: number for number, layer in enumerate(chosen)}
    weights: dict[str, torch.Tensor] = {}
    for name in _weight_files(source):
        for key, tensor in safetensors.torch.load_file(os.path.join(source, name)).items():
            match = pattern.fullmatch(key)
            if not match:
                weights[key] = tensor
            elif int(match[2]) in numbers:
                weights[f"{match[1]}{numbers[int(match[2])]}{match[3]}"] = tensor
    safetensors.torch.save_file(weights, os.path.join(folder, bundle.WEIGHTS), metadata={"format": "pt"})


def _weight_files(folder: str) -> list[str]:
    """Return the names of the files that hold the weights."""
    if os.path.exists(os.path.join(folder, bundle.WEIGHTS)) or not os.path.exists(os.path.join(folder, INDEX)):
        return [bundle.WEIGHTS]
    with open(os.path.join(folder, INDEX), encoding="utf-8") as file:
        return sorted(set(json.load(file)["weight_map"].values()))
