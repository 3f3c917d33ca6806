"""Load tokenizers and engines in the worker processes of scoring."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.naming import with_name
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import describe_error
from sentiment_core.scoring.models import PassModel, tokenizer_owner, tokenizing_models
from sentiment_core.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # importing torch takes seconds, which processes that read texts need not spend
    from sentiment_core.inference.cascade import Cascade
    from sentiment_core.inference.engine import Engine

CACHED_TOKENIZERS = 2  # in a worker process, at least: a process is reused by later runs, which may have other bundles

FilesByModel = Mapping[str, ray.ObjectRef]  # a bundle's files, by the model's name


def load_engine(
    name: str, models: tuple[PassModel, ...], files: FilesByModel, settings: dict[str, dict[str, Any]]
) -> "Engine | Cascade":
    """Load the engine of a model. Raises `UserError` where the models do not fit into memory."""
    # here, since torch and transformers take seconds that only this stage needs to spend
    from sentiment_core.inference import cascade
    from sentiment_core.runtime import hardware

    try:
        with storage.unpack_files(ray.get(files[name])) as folder:
            return cascade.load_engine(folder, **settings[name])
    except Exception as error:
        if len(models) == 1 or not (isinstance(error, MemoryError) or hardware.is_out_of_memory(error)):
            if not name:
                raise
            raise RuntimeError(with_name(name, describe_error(error))) from error
        names = ", ".join(model.name for model in models)
        raise UserError(
            f"the models {names} do not fit into the memory of one worker: it ran out at {name}; score with fewer "
            "models in one pass, or give each worker more memory"
        ) from None


# A worker process of Ray runs many tasks, and loads a bundle's tokenizers once for all of them.
_tokenizers: OrderedDict[tuple[str, str], Tokenizer] = OrderedDict()  # by digest and part, the latest used last


def load_tokenizers(models: tuple[PassModel, ...], files: FilesByModel) -> dict[str, Tokenizer]:
    """Return the tokenizers of a pass by the names of their token lists, from this process's cache if they are there.

    `files` are those of the models that own the tokenizers, see `tokenizer_owner`.
    """
    groups = tokenizing_models(models)
    return {name: _load_tokenizer(name, group[0].bundle, files, len(groups)) for name, group in groups.items()}


def _load_tokenizer(name: str, digest: str, files: FilesByModel, needed: int) -> Tokenizer:
    model, part = tokenizer_owner(name)
    key = digest, part
    if key not in _tokenizers:
        # Many tasks run side by side, so that none needs threads of its own. This is a worker process that Ray started
        # for this project's tasks: no user's process is changed.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with storage.unpack_files(ray.get(files[model])) as folder:
            _tokenizers[key] = bundle.load_tokenizer(str(Path(folder, part)))
    _tokenizers.move_to_end(key)
    while len(_tokenizers) > max(CACHED_TOKENIZERS, needed):
        _tokenizers.popitem(last=False)
    return _tokenizers[key]
