"""Check that an encoder can be trained as the settings ask, which needs no row of the data."""

from dataclasses import dataclass

import safetensors.torch
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from sentiment_core.errors import UserError
from sentiment_core.model import classifier, encoder, fitness, layer_cut
from sentiment_core.model.objective import Objective
from sentiment_core.runtime import cluster, connection, preflight, storage
from sentiment_core.training.recipe import Recipe, choose_recipe
from sentiment_core.training.settings import TrainSettings


@dataclass(frozen=True)
class CheckedEncoder:
    """Hold what a training takes from an encoder that was checked."""

    recipe: Recipe
    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase


def check_settings(settings: TrainSettings, labels: list[str], objective: Objective) -> None:
    """Check encoder, layers, head, length and optimization before there are rows. Raises `UserError`."""
    with layer_cut.cut_layers(encoder.fetch(settings.model), settings.layers) as start_from:
        check_encoder(settings, start_from, labels, objective, rows=1, evaluation_rows=1)


def check_encoder(
    settings: TrainSettings,
    start_from: encoder.Encoder,
    labels: list[str],
    objective: Objective,
    rows: int,
    evaluation_rows: int | None,
) -> CheckedEncoder:
    """Check an encoder for these labels, and choose the recipe for so many rows. Raises `UserError`."""
    try:
        encoder_config = classifier.make_config(start_from.folder, labels)
        recipe = choose_recipe(settings, encoder_config, rows, len(labels), evaluation_rows)
        model_config = classifier.make_config(start_from.folder, labels, recipe.dropout, objective.problem_type)
        tokenizer = encoder.load_tokenizer(start_from.folder)
        classifier.check(model_config, settings.head, labels, settings.gradient_checkpointing)
        fitness.check_tokenizer(settings.model, model_config, tokenizer)
        with torch.random.fork_rng(devices=[]):  # the session's random numbers stay as they were
            model = classifier.from_encoder(start_from.folder, model_config, settings.head)
        objective.check_last_layer(classifier.last_layer(model, len(labels)))
        fitness.check_attention(settings.model, model, settings.head)
        fitness.check_padding(model)
    except (OSError, ValueError, AttributeError, ImportError, safetensors.SafetensorError) as error:
        raise UserError(f"--model {settings.model} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    encoder.check_max_length(start_from, tokenizer, model_config, settings.max_length)
    return CheckedEncoder(recipe, model_config, tokenizer)


def check_cluster(settings: TrainSettings, path: str) -> None:
    """Connect to a cluster that can train into a folder beside `path`. Raises `UserError` if there is none."""
    connection.connect_for(settings.workers, storage.parent(path), settings.device)
    preflight.check_precision(settings.precision, cluster.device_kind(settings.device))
