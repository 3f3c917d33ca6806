"""Find pretrained encoders: a local folder, or a hub model that is fetched once at a pinned revision."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec

from huggingface_hub import HfApi, snapshot_download
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from sentiment_core.data import hub
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, families
from sentiment_core.model.naming import refuse_names

# configuration, tokenizer, weights; pickled weights and code are not fetched
WANTED = ("*.json", "*.txt", "*.model", "*.safetensors")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
CONVERT = (
    'python -c "from transformers import {model_class}, AutoTokenizer; '
    "[kind.from_pretrained('{name}').save_pretrained('converted') for kind in ({model_class}, AutoTokenizer)]\""
)


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder in a local folder."""

    name: str  # as the user gave it, without a revision
    folder: str  # local
    revision: str | None  # of the hub; None for a folder


def fetch(name: str) -> Encoder:
    """Find the encoder of this name and fetch it if need be. Raises `UserError`."""
    folder, revision = os.path.expanduser(name), None
    if not os.path.isdir(folder):
        if not hub.is_model_name(name):
            refuse_names(name)
            raise UserError(f"--model {name} does not exist. Give a folder or the name of a hub model.")
        name, folder, revision = fetch_from_hub(name)
    files = os.listdir(folder)
    check_files(name, files, "AutoModel")
    if bundle.CARD in files and bundle.read_info(folder).head == "mlp":
        raise UserError(
            f"--model {name} is a bundle with an mlp head, which cannot be trained further. Give its encoder."
        )
    return Encoder(name, folder, revision)


def check_files(name: str, files: Collection[str], model_class: str) -> None:
    """Refuse a folder, of these files, that lacks a part of a model. Raises `UserError`.

    `model_class`: the class of transformers that loads it, for the command that converts pickled weights.
    """
    if bundle.CONFIG not in files:
        raise UserError(f"--model {name} is not a Hugging Face model: it has no config.json. Give a model folder.")
    if not any(file in VOCABULARIES or file.endswith(".model") for file in files):
        raise UserError(
            f"--model {name} has no tokenizer: none of {', '.join(VOCABULARIES)}, *.model. Save it there too."
        )
    if not any(file.endswith(".safetensors") for file in files):
        raise UserError(
            f"--model {name} has no *.safetensors weights, and others are pickles, which may run code. If you trust "
            f"them, convert them: {CONVERT.format(name=name, model_class=model_class)}"
        )
    has_reader = find_spec("sentencepiece") and find_spec("google.protobuf")
    if not any(file in VOCABULARIES for file in files) and not has_reader:
        raise UserError(
            f"--model {name} has a SentencePiece tokenizer. Install what reads it: pip install sentencepiece protobuf"
        )


def fetch_from_hub(name: str) -> tuple[str, str, str]:
    """Fetch a hub model, `owner/name[@revision]`; take it from the local cache where the hub cannot be reached.

    Returns its name without the revision, the local folder and the revision. Raises `UserError`.
    """
    name, _, asked = name.partition("@")
    unreachable, revision = None, asked or None
    try:
        revision = HfApi().model_info(name, revision=revision, timeout=20).sha
    except Exception as error:  # the hub's client raises dozens of kinds, all about this name or the network
        unreachable = error
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
            f"--model {name} is not a folder here and cannot be fetched from the hub: {reason}. "
            "Check the name and the network, or give a folder."
        ) from None
    return name, folder, os.path.basename(folder)  # the hub's cache names its folders by revision


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_max_length(
    encoder: Encoder, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, max_length: int
) -> None:
    """Refuse a --max-length that the encoder has not enough positions for, or that leaves no room for a text."""
    limit = families.longest_text(config, max_length)
    if not os.path.exists(os.path.join(encoder.folder, bundle.CARD)):  # a bundle's tokenizer has its own --max-length
        limit = min(limit, tokenizer.model_max_length)
    if max_length > limit:
        raise UserError(f"--max-length is {max_length}; {encoder.name} takes at most {limit} tokens. Lower it.")
    least = tokenizer.num_special_tokens_to_add(pair=False) + 1
    if max_length < least:
        raise UserError(
            f"--max-length is {max_length}; expected at least {least}: the special tokens and one token of the text"
        )
