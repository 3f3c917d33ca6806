"""The model bundle: a Hugging Face model folder plus `sentiment.json`, which tells how to use and to trust it.

A folder is a bundle when it holds `sentiment.json`; that file is written last, so a bundle is whole or none.
"""

import hashlib
import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sentiment_core import __version__
from sentiment_core.errors import UserError
from sentiment_core.model.objective import Objective
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import FileChanged
from sentiment_core.text.preprocessing import Clean, Preprocessing, Truncation
from sentiment_core.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # importing torch and transformers takes seconds; what only asks what a bundle is does without
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from sentiment_core.model.classifier import Classifier, Head

FORMAT_VERSION = 2  # 1 knew no other truncation than "head", and no cleaning
CARD = "sentiment.json"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
METRICS = "metrics.json"  # what jobs/evaluate.py may put beside
LOG = "training_log.jsonl"
LIBRARIES = ("torch", "transformers", "tokenizers", "ray", "pyarrow")
FOR_PEOPLE = (".md", ".png", ".jsonl", ".html")  # files that decide no label: changing them leaves the digest as it is


@dataclass(frozen=True)
class BundleInfo:
    """The content of `sentiment.json`."""

    head: "Head"
    labels: list[str]  # in the order of the logits
    max_length: int  # tokens, special ones included
    metrics: dict  # on the evaluation part, after calibration
    calibration: dict  # temperature; expected calibration error before and after; on how many rows
    training: dict  # settings, data with fingerprint and dropped rows, time, device, best epoch
    reference: dict  # statistics of the evaluation part, to tell drift from
    int8: dict = field(default_factory=dict)  # share of rows with the same label in 8 bits, or why that is not known
    truncation: Truncation = "head"  # of a text over max_length
    clean: Clean = "none"
    ordinal: bool = False  # the labels are steps of a scale, in their order
    format_version: int = FORMAT_VERSION
    libraries: dict = field(default_factory=lambda: library_versions())

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.max_length, self.truncation, self.clean)

    @property
    def objective(self) -> Objective:
        return Objective(self.ordinal)

    @property
    def numbered(self) -> bool:
        """Whether the labels it was trained on were numbers that count `labels`, as `dataset.read` understands it."""
        return self.training.get("data", {}).get("numbered", False)


def library_versions() -> dict[str, str]:
    own = {"sentiment-core": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in LIBRARIES}


def write(
    place: str,
    model: "Classifier",
    config: "PreTrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    info: BundleInfo,
    extra: dict[str, bytes],
) -> None:
    """Write a bundle that appears whole or not at all. `extra` are further files: model card, plots, log.

    On a local disk the folder is made beside its final place and renamed; on an object store `sentiment.json`, which
    makes it a bundle, is uploaded last.
    """
    import safetensors.torch

    from sentiment_core.model.classifier import StandardClassifier

    with tempfile.TemporaryDirectory(prefix="sentiment-core-") as folder:
        work = Path(folder)
        if isinstance(model, StandardClassifier):
            model.model.save_pretrained(work)  # type: ignore[operator]
        else:
            config.architectures = [type(model).__name__]
            config.save_pretrained(work)
            safetensors.torch.save_model(model, str(work / WEIGHTS), metadata={"format": "pt"})
        tokenizer.model_max_length = info.max_length
        tokenizer.truncation_side = "left" if info.truncation == "tail" else "right"  # as near as others can come
        tokenizer.save_pretrained(work)
        for name, content in extra.items():
            (work / name).write_bytes(content)
        (work / CARD).write_text(json.dumps(asdict(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _publish(work, place)


def copy(source: str, place: str, extra: dict[str, bytes]) -> None:
    """Write the bundle at `source` with `extra` files to another place, whole or not at all."""
    with storage.unpack_files(read_files(source)[1] | extra) as folder:
        _publish(Path(folder), place)


def _publish(work: Path, place: str) -> None:
    if storage.is_local(place):
        final = Path(storage.locate(place)[1])
        beside = final.with_name(storage.temporary_name())
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.mkdir()  # not the temporary folder itself: that one is closed to other users
            for name in os.listdir(work):
                shutil.copyfile(work / name, beside / name)
            if final.exists():
                check_free(place)  # once more: what came meanwhile is not ours
                shutil.rmtree(final)  # empty but for leavings
            os.rename(beside, final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return
    for name in sorted(os.listdir(work), key=lambda name: name == CARD):
        storage.write_file(storage.join(place, name), (work / name).read_bytes())


def check_free(place: str, begun: bool = False) -> None:
    """Refuse a place for a new bundle that already holds something; but not a bundle without its card where a run that
    had `begun` broke off while it put it into an object store, file by file."""
    half_there = begun and not storage.is_local(place) and not storage.exists(storage.join(place, CARD))
    if storage.is_occupied(place) and not half_there:
        raise UserError(f"--out {place} already holds something; expected a new folder; remove it or choose another")


def read_info(place: str) -> BundleInfo:
    """What a bundle says of itself. Raises `UserError` if it is none, or newer than this version reads."""
    try:
        content = json.loads(storage.read_file(storage.join(place, CARD)))
        if not 1 <= content["format_version"] <= FORMAT_VERSION:
            raise UserError(
                f"--model {place} has bundle format {content['format_version']}; this version reads 1 to "
                f"{FORMAT_VERSION}; "
                "install the sentiment-core that made it or train again"
            )
        return BundleInfo(**content)
    except (OSError, ValueError, KeyError, TypeError):
        found = f"its {CARD} is missing or damaged" if storage.exists(place) else "there is no such folder"
        raise UserError(f"--model {place} is no bundle: {found}; expected a folder made by jobs/train.py") from None


def read_files(place: str) -> tuple[BundleInfo, dict[str, bytes]]:
    """What a bundle says of itself, and its files, all of one version. Raises `UserError`."""
    info = read_info(place)
    try:
        files = storage.read_folder(place)
        if read_info(place) != info:  # which a store whose clock counts whole seconds may not show in its listing
            raise FileChanged
    except FileChanged:
        raise UserError(
            f"--model {place} changed while it was read; expected a bundle that stays as it is; run again"
        ) from None
    except OSError as error:
        raise UserError(f"--model {place} cannot be read: {error}; check the place and the credentials") from None
    return info, files


def digest_of(files: dict[str, bytes]) -> str:
    """sha256 over all that decides a label: weights, configuration, tokenizer, and how texts are cut."""
    info = json.loads(files[CARD])
    rules = [info["head"], info["labels"], info["max_length"], info["truncation"], info.get("clean", "none")]
    return hashlib.sha256((storage.hash_files(_deciding(files)) + json.dumps(rules)).encode()).hexdigest()


def tokens_digest_of(files: dict[str, bytes]) -> str:
    """sha256 over all that decides which tokens a text has: bundles with the same count them alike."""
    tokenizer = {name: data for name, data in _deciding(files).items() if name not in (WEIGHTS, CONFIG)}
    info = json.loads(files[CARD])
    rules = [info["max_length"], info["truncation"], info.get("clean", "none")]
    return hashlib.sha256((storage.hash_files(tokenizer) + json.dumps(rules)).encode()).hexdigest()


def _deciding(files: dict[str, bytes]) -> dict[str, bytes]:
    return {
        name: content
        for name, content in files.items()
        if name not in (CARD, METRICS) and not name.startswith(".") and not name.endswith(FOR_PEOPLE)
    }


def load_tokenizer(folder: str) -> Tokenizer:
    """Load the tokenizer of a local bundle, with the bundle's preprocessing."""
    return Tokenizer.load(folder, read_info(folder).preprocessing)


def load(folder: str) -> tuple["Classifier", BundleInfo]:
    """Model in float32 on the CPU in evaluation mode, and info, from a local bundle."""
    import safetensors.torch
    from transformers import AutoConfig

    from sentiment_core.model import classifier

    info = read_info(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if info.head == "standard":
        return classifier.from_encoder(folder, config, "standard").eval(), info
    model = classifier.from_config(config, info.head)
    safetensors.torch.load_model(model, str(Path(folder) / WEIGHTS))
    return model.eval(), info
