"""Open what `--model` names: a bundle, or a Hugging Face classifier, in a folder, at a URI or on the hub.

A classifier that is not a bundle becomes one in memory: its files, and the `sentiment.json` that it would have. So
whatever takes bundles takes it too.
"""

import functools
import json
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from sentiment_core.data import hub
from sentiment_core.data.labels import SHOWN_LABELS
from sentiment_core.errors import Notice, UserError
from sentiment_core.model import bundle, families
from sentiment_core.model.bundle import CARD, CONFIG, WEIGHTS, BundleInfo
from sentiment_core.model.naming import refuse_names
from sentiment_core.model.objective import SingleLabel
from sentiment_core.model.records import EncoderOrigin, Int8Check, TrainingRecord
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import FileChanged
from sentiment_core.text.preprocessing import Preprocessing, Truncation
from sentiment_core.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # importing torch and transformers takes seconds, which bundles do without
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

MODEL_CLASS = "AutoModelForSequenceClassification"
ARCHITECTURE = "ForSequenceClassification"  # how transformers' classes of such models end
INDEX = f"{WEIGHTS}.index.json"  # names the files of weights that are in parts
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model"),
)
UNLIMITED_TOKENS = 512  # that are read of a text where neither tokenizer nor positions have a limit
# texts whose tokens must be those of transformers, which may make another tokenizer than the one in tokenizer.json
SAMPLE = (
    "The film isn't SO good...",
    " two  spaces\tand\na line",
    "a_b--c/d http://x.y/z?q=1 3.14 (1999) 100%",
    "Crème brûlée, naïve Ångström; ﬁn ½ ① ａｂｃ",
    "人工知能は面白い",
    "Привет мир, مرحبا",
    "😀👍🏽 <b>bold</b> [x]",
    "x",
)
MESSAGE_CHARACTERS = 300  # of a library's error in a sentence


@dataclass(frozen=True)
class OpenedModel:
    """A model's files, with the record that says how to use them."""

    path: str  # folder or URI; of a model of the hub `owner/name@revision`
    info: BundleInfo
    files: dict[str, bytes]  # by name, `sentiment.json` among them


def open_model(path: str) -> OpenedModel:
    """Open the bundle, or the classifier that is none, at a path or URI, or of the hub as `owner/name[@revision]`.

    Raises `UserError`.
    """
    path, folder = _locate(path)
    if storage.exists(storage.join(folder, CONFIG)) and not storage.exists(storage.join(folder, CARD)):
        return _open_classifier(path, folder)
    info, files = bundle.read_files(folder)
    return OpenedModel(path, info, files)


def open_classifier(path: str, label_names: tuple[str, ...] = (), max_length: int | None = None) -> OpenedModel:
    """Open a classifier that is not a bundle, so that one can be made of it.

    Args:
        path: Path, URI or name on the hub, as for `open_model`.
        label_names: Names of its labels, in the order of the logits, in place of its own.
        max_length: Tokens to read of a text, in place of what its tokenizer says.

    Raises:
        UserError: It is a bundle, or cannot be used.
    """
    path, folder = _locate(path)
    if storage.exists(storage.join(folder, CARD)):
        raise UserError(f"--model {path} is a bundle already. Use it as it is.")
    return _open_classifier(path, folder, label_names, max_length)


def warn_if_uncalibrated(path: str, info: BundleInfo) -> None:
    """Warn, once in a process, that a model's confidences are those of its network."""
    if not info.calibration.rows:
        _warn_once(
            f"--model {path} is not calibrated: confidences are as the model gives them. To calibrate them, make a "
            "bundle of the model with sentiment-core adopt --data."
        )


@functools.cache  # Python's own filter forgets whenever a library changes it for a moment
def _warn_once(sentence: str) -> None:
    warnings.warn(sentence, Notice, stacklevel=3)


def absolute(path: str) -> str:
    """Return the one spelling of what `open_model` takes; a name on the hub stays as it is."""
    return path if _is_on_hub(path) else storage.absolute(path)


def _is_on_hub(path: str) -> bool:
    return hub.is_model_name(path) and not storage.exists(path)


def _locate(path: str) -> tuple[str, str]:
    """Return the path to note for a model, and the folder or URI that holds its files. Fetches it from the hub."""
    refuse_names(path)
    if not _is_on_hub(path):
        return path, path
    from sentiment_core.model.encoder import fetch_from_hub

    name, folder, revision = fetch_from_hub(path)
    return f"{name}@{revision}", folder


def _open_classifier(
    path: str, folder: str, label_names: tuple[str, ...] = (), max_length: int | None = None
) -> OpenedModel:
    files = _read_files(path, folder)
    with storage.unpack_files(files) as unpacked:
        try:
            info = _describe(path, unpacked, files, label_names, max_length)
        except UserError as error:
            raise UserError(str(error).replace(unpacked, path)) from None
        except Exception as error:  # libraries raise dozens of kinds, all about these files
            _refuse(path, str(error).replace(unpacked, path))
    name, _, revision = (path, "", "") if folder == path else path.partition("@")
    info = replace(info, training=TrainingRecord(encoder=EncoderOrigin(name, revision or None)))
    return OpenedModel(path, info, files | {CARD: json.dumps(info.to_json(), ensure_ascii=False).encode()})


def _refuse(path: str, reason: str) -> NoReturn:
    """Raise `UserError` for a model that a library refuses."""
    if "trust_remote_code" in reason:
        raise UserError(f"--model {path} needs code of its own, which is not run. Choose a family of transformers.")
    raise UserError(f"--model {path} cannot be loaded: {' '.join(reason.split())[:MESSAGE_CHARACTERS]}")


def _read_files(path: str, folder: str) -> dict[str, bytes]:
    """Read what transformers would load: configuration, tokenizer, weights; not what a training left beside them."""
    from sentiment_core.model.encoder import check_files

    try:
        names = [stamp.path for stamp in storage.list_stamps(folder)]
        check_files(path, names, MODEL_CLASS)
        weights = [WEIGHTS]
        if WEIGHTS not in names and INDEX in names:
            index = json.loads(storage.read_file(storage.join(folder, INDEX)))
            weights = [INDEX, *sorted(set(index["weight_map"].values()))]
        absent = [name for name in weights if name not in names]
        if absent:
            raise UserError(f"--model {path} has no file {absent[0]}, which should hold its weights. Save it again.")
        return storage.read_folder(folder, (CONFIG, *TOKENIZER_FILES, *weights))
    except FileChanged:
        raise UserError(f"--model {path} changed while it was read. Run again when nothing writes there.") from None
    except OSError as error:
        raise UserError(f"--model {path} cannot be read: {error}. Check the path and the credentials.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--model {path} has a damaged {INDEX}: {error}. Save the model again.") from None


def _describe(
    path: str, folder: str, files: dict[str, bytes], label_names: tuple[str, ...], max_length: int | None
) -> BundleInfo:
    """Return what the `sentiment.json` of a classifier would say. Raises `UserError`, and what libraries raise.

    Where transformers makes another tokenizer than the one in tokenizer.json, that one is put into `files`.
    """
    from transformers import AutoConfig

    from sentiment_core.model import classifier, encoder, fitness

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    _check_architecture(path, config)
    labels = _label_names(path, config, label_names)
    tokenizer = encoder.load_tokenizer(folder)
    fitness.check_vocabulary(path, config, tokenizer)
    length = _max_length(path, tokenizer, config, max_length)
    truncation: Truncation = "tail" if tokenizer.truncation_side == "left" else "head"
    _check_tokens(path, folder, files, tokenizer)
    fitness.check_padding(classifier.from_encoder(folder, config, "standard", with_head=True).eval())
    int8 = Int8Check(reason="it is not a bundle, which sentiment-core adopt --data makes of it")
    problem_type = config.problem_type or SingleLabel.problem_type
    return BundleInfo("standard", labels, length, truncation=truncation, problem_type=problem_type, int8=int8)


def _check_architecture(path: str, config: "PreTrainedConfig") -> None:
    """Refuse a model that gives texts no labels. Raises `UserError`."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    names = config.architectures or []
    if names and not any(name.endswith(ARCHITECTURE) for name in names):
        raise UserError(
            f"--model {path} is not a classifier: its {CONFIG} names {', '.join(names)}. Give a model for sequence "
            "classification, or train one with sentiment-core train."
        )
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(
            f"--model {path} is of the family {config.model_type}, for which transformers has no classifier."
        )
    if config.problem_type == "regression" or config.num_labels == 1:
        raise UserError(
            f"--model {path} gives a number, not a label (regression). Give a model with two labels or more."
        )


def _label_names(path: str, config: "PreTrainedConfig", label_names: tuple[str, ...]) -> list[str]:
    """Return the labels in the order of the logits. Raises `UserError`."""
    own = {int(number): str(label) for number, label in (config.id2label or {}).items()}
    if sorted(own) != list(range(len(own))):
        raise UserError(
            f"--model {path}: the id2label of its {CONFIG} numbers the labels {', '.join(map(str, sorted(own)))}; "
            f"expected 0 to {len(own) - 1}"
        )
    labels = [own[number] for number in sorted(own)]
    if label_names and len(label_names) != len(labels):
        raise UserError(
            f"--label-names has {len(label_names)} names; expected one for each of the {len(labels)} labels of --model "
            f"{path}: {', '.join(labels[:SHOWN_LABELS])}"
        )
    labels = list(label_names) or labels
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise UserError(
            f"--model {path} has several labels named {twice!r}. Make a bundle of it with other names: sentiment-core "
            "adopt --label-names A,B,..."
        )
    return labels


def _max_length(path: str, tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig", asked: int | None) -> int:
    """Return how many tokens of a text are read, special ones included. Raises `UserError`."""
    positions = families.longest_text(config, UNLIMITED_TOKENS if asked is None else asked)
    length = min(positions, tokenizer.model_max_length) if asked is None else asked
    least = tokenizer.num_special_tokens_to_add(pair=False) + 1
    if not least <= length <= positions:
        raise UserError(f"--max-length is {length}; --model {path} takes {least} to {positions} tokens")
    return length


def _check_tokens(path: str, folder: str, files: dict[str, bytes], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make sure that texts get the tokens that transformers gives them. Raises `UserError`."""
    expected = tokenizer(list(SAMPLE))
    if any(map(any, expected.get("token_type_ids", []))):
        raise UserError(
            f"--model {path}: its tokenizer marks special tokens by a type of their own, which this version cannot do. "
            "Choose another family."
        )

    def agrees(own: Tokenizer) -> bool:
        lists = own.encode(SAMPLE)[0]
        return [ids.tolist() for ids in np.split(lists.ids, lists.offsets[1:-1])] == expected["input_ids"]

    whole_texts = Preprocessing(UNLIMITED_TOKENS)
    if agrees(Tokenizer.load(folder, whole_texts)):
        return
    if not agrees(Tokenizer.from_transformers(tokenizer, whole_texts)):
        raise UserError(f"--model {path}: its tokenizer gives texts other tokens in batches. Choose another family.")
    files["tokenizer.json"] = tokenizer.backend_tokenizer.to_str().encode()
