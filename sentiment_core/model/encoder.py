"""Pretrained encoders: a folder here, or a hub model fetched once at a pinned revision."""

import os
from dataclasses import dataclass

from huggingface_hub import HfApi, snapshot_download
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.classifier import positions

# configuration, tokenizer, weights; pickled weights and code are not fetched
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class Encoder:
    name: str  # as the user gave it
    folder: str  # local
    revision: str | None  # of the hub; None for a folder


def fetch(name: str) -> Encoder:
    """The encoder of that name as a local folder. Raises `UserError` if it is not one or cannot be had."""
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise UserError(f"--model {name} is no Hugging Face model: it has no config.json")
        revision = None
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"--model {name} does not exist; expected a folder or the name of a hub model")
    else:
        folder, revision = _fetch_from_hub(name)
    files = os.listdir(folder)
    if not any(file in VOCABULARIES or file.endswith(".model") for file in files):
        raise UserError(
            f"--model {name} has no tokenizer: none of {', '.join(VOCABULARIES)}, *.model; save it there too"
        )
    if bundle.CARD in files and bundle.read_info(folder).head == "mlp":
        raise UserError(f"--model {name} is a bundle with an mlp head, which cannot be trained on; give its encoder")
    if not any(file.endswith(".safetensors") for file in files):
        raise UserError(f"--model {name} has no *.safetensors weights; other kinds (pickle) are not loaded")
    return Encoder(name, folder, revision)


def _fetch_from_hub(name: str) -> tuple[str, str]:
    """Folder and revision of a hub model; without the hub, of the copy that an earlier fetch has left here."""
    unreachable = None
    try:
        revision = HfApi().model_info(name, timeout=20).sha
    except Exception as error:  # the hub's client raises dozens of kinds, all about this name or the network
        unreachable, revision = error, None
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(WANTED),
            ignore_patterns=["*/*"],
            local_files_only=unreachable is not None,
        )
    except Exception as error:
        reason = " ".join(str(unreachable or error).split())[:300]
        raise UserError(
            f"--model {name} is no folder here and cannot be fetched from the hub: {reason}; "
            "check the name and the network, or give a folder"
        ) from None
    return folder, os.path.basename(folder)  # the hub's cache names its folders by revision


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_max_length(
    encoder: Encoder, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, asked: int
) -> None:
    """Refuse a --max-length over what the encoder has positions for."""
    limit = positions(config, asked)
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet", "longformer"):
        limit -= 2  # their position numbers start behind the padding id
    if not os.path.exists(os.path.join(encoder.folder, bundle.CARD)):  # a bundle's tokenizer has its own --max-length
        limit = min(limit, tokenizer.model_max_length)
    if asked > limit:
        raise UserError(f"--max-length is {asked}; {encoder.name} takes at most {limit} tokens")
    least = tokenizer.num_special_tokens_to_add(pair=False) + 1
    if asked < least:
        raise UserError(f"--max-length is {asked}; expected at least {least}, the special tokens and one of the text")
