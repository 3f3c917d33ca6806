"""The model bundle: a Hugging Face model folder plus `sentiment.json`, which says how to use it and how good it is.

A folder is a bundle when it holds `sentiment.json`. That file is written last, so a bundle appears whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from sentiment_core import __version__
from sentiment_core.data.labels import LabelScheme
from sentiment_core.errors import UserError
from sentiment_core.model.cascade import CascadeRecord
from sentiment_core.model.distillation_record import Distillation
from sentiment_core.model.multi_label_records import LabelCalibration, MultiLabelMetrics
from sentiment_core.model.objective import OBJECTIVES, Objective, SingleLabel
from sentiment_core.model.records import (
    BundleHead,
    Calibration,
    GuaranteeGrid,
    Int8Check,
    Metrics,
    ProblemType,
    Record,
    ReferenceStatistics,
    TrainingRecord,
)
from sentiment_core.runtime import storage
from sentiment_core.runtime.failures import FileChanged
from sentiment_core.text.preprocessing import Clean, Preprocessing, Truncation
from sentiment_core.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # importing torch and transformers takes seconds; what only asks what a bundle is does without
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from sentiment_core.model.classifier import Classifier

# 1 knew no other truncation than "head", and no cleaning; 3, which older versions refuse, is that of cascades
FORMAT_VERSION, CASCADE_FORMAT_VERSION = 2, 3
CARD = "sentiment.json"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
INT8 = "int8.safetensors"  # how layers are put into 8 bits; only where that leaves the labels as they are
METRICS = "metrics.json"  # which `sentiment-core evaluate` may put beside
LOG = "training_log.jsonl"
LIBRARIES = ("torch", "transformers", "tokenizers", "ray", "pyarrow")
SMALL, LARGE = PARTS = ("small", "large")  # folders of the models of a cascade, each of them a bundle
FOR_PEOPLE = (".md", ".png", ".jsonl", ".html")  # files that decide no label: changing them leaves the digest as it is


@dataclass(frozen=True)
class BundleInfo:
    """Content of `sentiment.json`."""

    head: BundleHead
    labels: list[str]  # in the order of the logits
    max_length: int  # tokens, special ones included
    metrics: Metrics | MultiLabelMetrics = field(default_factory=Metrics)  # on the evaluation rows, after calibration
    calibration: Calibration | LabelCalibration = field(default_factory=Calibration)
    training: TrainingRecord = field(default_factory=TrainingRecord)
    reference: ReferenceStatistics = field(default_factory=ReferenceStatistics)
    int8: Int8Check = field(default_factory=Int8Check)
    guarantee: GuaranteeGrid = field(default_factory=GuaranteeGrid)  # of accuracy, from the evaluation rows
    distillation: Distillation = field(default_factory=Distillation)
    cascade: CascadeRecord = field(default_factory=CascadeRecord)  # of one only
    truncation: Truncation = "head"  # of a text over max_length
    clean: Clean = "none"
    problem_type: ProblemType = "single_label_classification"
    ordinal: bool = False  # the labels are the steps of a scale, in their order
    thresholds: list[float] = field(default_factory=list)  # of a multi-label model, in the order of the labels
    format_version: int = FORMAT_VERSION
    libraries: dict[str, str] = field(default_factory=lambda: library_versions())

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "BundleInfo":
        """Read the record of any format version; settings that an old file lacks get their defaults.

        Raises KeyError, TypeError or ValueError for content that is no such record, or that asks for a way to read
        texts or to compute labels that this version does not have.
        """
        required = {"format_version", "head", "labels", "max_length"}
        if missing := required - content.keys():
            raise KeyError(*sorted(missing))
        for name, allowed in CHOICES.items():
            if name in content and content[name] not in get_args(allowed):
                raise UnknownSetting(name, content[name])
        if content["head"] == "cascade" and "threshold" not in content.get("cascade", {}):
            raise KeyError("threshold")
        fields = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        records = RECORDS | OBJECTIVES[fields.get("problem_type", SingleLabel.problem_type)].records
        return cls(**fields | {name: record.from_json(content.get(name, {})) for name, record in records.items()})

    def to_json(self) -> dict[str, Any]:
        """Return the record for `json.dumps`."""
        content = asdict(self) | {name: getattr(self, name).to_json() for name in RECORDS}
        if not self.is_cascade:
            del content["cascade"]
        return content

    @property
    def is_cascade(self) -> bool:
        """True if the bundle holds two models: the large one answers where the small one is less sure."""
        return self.head == "cascade"

    @property
    def preprocessing(self) -> Preprocessing:
        """Return how the bundle's texts are cleaned and cut."""
        return Preprocessing(self.max_length, self.truncation, self.clean)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Return the columns whose joined texts the model was trained on; `text` where it was one."""
        columns = self.training.settings.get("text_column", "text")
        return tuple(columns) if isinstance(columns, list | tuple) and len(columns) > 1 else ("text",)

    @property
    def label_separator(self) -> str | None:
        """Return what separated the labels in the texts that the model was trained on, None where each had one."""
        return self.training.settings.get("label_separator")

    @property
    def objective(self) -> Objective:
        """Return what the model was trained for: how logits become labels."""
        return OBJECTIVES[self.problem_type].restore(self.ordinal, self.thresholds)

    @property
    def label_scheme(self) -> LabelScheme:
        """Return how the labels of other data meet the bundle's: as those it was trained on did."""
        training = self.training  # an adopted model has evaluation rows only
        data = training.data if training.data.rows else training.eval_data
        return LabelScheme(self.labels, numbered=data.numbered, mapping=data.label_map, several=self.objective.several)


CHOICES: dict[str, Any] = {"head": BundleHead, "problem_type": ProblemType, "truncation": Truncation, "clean": Clean}
RECORDS: dict[str, type[Record]] = {
    "metrics": Record,  # these two are the objective's own
    "calibration": Record,
    "training": TrainingRecord,
    "reference": ReferenceStatistics,
    "int8": Int8Check,
    "guarantee": GuaranteeGrid,
    "distillation": Distillation,
    "cascade": CascadeRecord,
}


class UnknownSetting(ValueError):
    """A bundle, made by a later version, asks for something that this version cannot do."""

    def __init__(self, name: str, value: Any) -> None:
        super().__init__(f"{name} {value!r}")


def library_versions() -> dict[str, str]:
    """Return the versions of the packages that a bundle depends on, without those that are not installed.

    The engine runs without Ray.
    """
    versions = {"sentiment-core": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def write(
    path: str,
    model: "Classifier",
    config: "PreTrainedConfig",
    tokenizer: "PreTrainedTokenizerBase",
    info: BundleInfo,
    extra: dict[str, bytes],
) -> None:
    """Write a bundle that appears whole or not at all.

    `extra` are further files by name: model card, pictures, log. On a local disk the folder is made beside `path` and
    renamed; to an object store `sentiment.json`, which makes it a bundle, is uploaded last.
    """
    import safetensors.torch

    from sentiment_core.model.classifier import StandardClassifier, progress_bars_hidden

    with tempfile.TemporaryDirectory(prefix="sentiment-core-") as temporary:
        folder = Path(temporary)
        if isinstance(model, StandardClassifier):
            with progress_bars_hidden():
                model.model.save_pretrained(folder)  # type: ignore[operator]
        else:
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
            safetensors.torch.save_model(model, str(folder / WEIGHTS), metadata={"format": "pt"})
        tokenizer.model_max_length = info.max_length
        tokenizer.truncation_side = "left" if info.truncation == "tail" else "right"  # as near as others can come
        tokenizer.save_pretrained(folder)
        for name, content in extra.items():
            (folder / name).write_bytes(content)
        (folder / CARD).write_text(json.dumps(info.to_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _publish(folder, path)


def write_cascade(path: str, info: BundleInfo, parts: dict[str, dict[str, bytes]], extra: dict[str, bytes]) -> None:
    """Write a cascade that appears whole or not at all.

    Args:
        path: Of the new bundle.
        info: Its record.
        parts: Files of its models, by `PARTS`, then by name.
        extra: Further files by name: the model card.
    """
    files = {f"{part}/{name}": content for part, own in parts.items() for name, content in own.items()}
    card = (json.dumps(info.to_json(), indent=2, ensure_ascii=False) + "\n").encode()
    with storage.unpack_files(files | extra | {CARD: card}) as folder:
        _publish(Path(folder), path)


def copy(source: str, path: str, extra: dict[str, bytes]) -> None:
    """Copy the bundle at `source`, together with `extra` files, to `path`, whole or not at all."""
    with storage.unpack_files(read_files(source)[1] | extra) as folder:
        _publish(Path(folder), path)


def _publish(folder: Path, path: str) -> None:
    names = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
    if storage.is_local(path):
        final = Path(storage.locate(path)[1])
        staging = final.with_name(storage.temporary_name())
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            staging.mkdir()  # not the temporary folder itself: that one is closed to other users
            for name in names:
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, staging / name)
            if final.exists():
                check_free(path)  # once more: another process may have filled it meanwhile
                shutil.rmtree(final)  # empty but for hidden leftovers
            os.rename(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return
    # without `sentiment.json` a folder with a configuration is another's classifier, see `source`
    for name in sorted(names, key=lambda name: (name == CARD, name == CONFIG)):
        storage.write_file(storage.join(path, name), (folder / name).read_bytes())


def check_free(path: str, can_resume: bool = False) -> None:
    """Refuse a path for a new bundle that already holds something.

    A run that can resume may have stopped while it uploaded the bundle to an object store, file by file: such a bundle
    without `sentiment.json` is not refused.
    """
    half_uploaded = can_resume and not storage.is_local(path) and not storage.exists(storage.join(path, CARD))
    if storage.is_occupied(path) and not half_uploaded:
        raise UserError(f"--out {path} already holds something. Remove it, or choose a new folder.")


def read_info(path: str) -> BundleInfo:
    """Read the `sentiment.json` of a bundle.

    Raises `UserError` where there is none, or where it was made by a later version for something unknown to this one.
    """
    try:
        content = json.loads(storage.read_file(storage.join(path, CARD)))
        return BundleInfo.from_json(content)
    except UnknownSetting as error:
        raise UserError(
            f"--model {path} needs a newer sentiment-core: this version does not know {error}. "
            "Install the version that made the bundle, or train again."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        problem = f"its {CARD} is missing or damaged" if storage.exists(path) else "the folder does not exist"
        raise UserError(
            f"--model {path} is not a bundle: {problem}. Give a folder made by sentiment-core train, or a Hugging Face "
            "classifier."
        ) from None


def read_files(path: str) -> tuple[BundleInfo, dict[str, bytes]]:
    """Read a bundle's record and its files by name, all of one version. Raises `UserError`."""
    info = read_info(path)
    try:
        files = storage.read_folder(path)
        for part in PARTS if info.is_cascade else ():
            read_info(storage.join(path, part))  # which says what is missing there
        if read_info(path) != info:  # which a store whose clock counts whole seconds may not show in its listing
            raise FileChanged
    except FileChanged:
        raise UserError(f"--model {path} changed while it was read. Run again when nothing writes there.") from None
    except OSError as error:
        raise UserError(f"--model {path} cannot be read: {error}. Check the path and the credentials.") from None
    return info, files


def digest_of(files: dict[str, bytes]) -> str:
    """Hash all that decides a label: weights, configuration, tokenizer, and how texts are cut. Returns sha256.

    Of a cascade its models' digests and the threshold.
    """
    info = json.loads(files[CARD])
    if info["head"] == "cascade":
        digests = [digest_of(part) for part in parts_of(files).values()]
        rule = [info["head"], info["labels"], info["cascade"]["threshold"]]
        return hashlib.sha256(json.dumps([*rule, *digests]).encode()).hexdigest()
    thresholds = [info["thresholds"]] if info.get("thresholds") else []
    rules = [info["head"], info["labels"], *_text_rules(info), *thresholds]
    return hashlib.sha256((storage.hash_files(_deciding(files)) + json.dumps(rules)).encode()).hexdigest()


def tokens_digest_of(files: dict[str, bytes]) -> str:
    """Hash all that decides a text's tokens, so that token counts of equal bundles can be compared. Returns sha256.

    Of a cascade those of its small model, which reads all texts.
    """
    files = next(iter(parts_of(files).values()))
    tokenizer = {name: data for name, data in _deciding(files).items() if name != CONFIG and not is_weights(name)}
    rules = _text_rules(json.loads(files[CARD]))
    return hashlib.sha256((storage.hash_files(tokenizer) + json.dumps(rules)).encode()).hexdigest()


def parts_of(files: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Return the files of a bundle's models: of a cascade by `PARTS`, of another bundle those of one named ""."""
    if json.loads(files[CARD])["head"] != "cascade":
        return {"": files}
    return {
        part: {name.removeprefix(f"{part}/"): content for name, content in files.items() if name.startswith(f"{part}/")}
        for part in PARTS
    }


def info_of(files: dict[str, bytes]) -> BundleInfo:
    """Return the record among the files of a bundle."""
    return BundleInfo.from_json(json.loads(files[CARD]))


def is_weights(name: str) -> bool:
    """Return whether a bundle's file of this name holds weights, all or a part, or says which part holds what."""
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _text_rules(info: dict[str, Any]) -> list[Any]:
    return [info["max_length"], info.get("truncation", "head"), info.get("clean", "none")]


def _deciding(files: dict[str, bytes]) -> dict[str, bytes]:
    return {
        name: content
        for name, content in files.items()
        if name not in (CARD, METRICS) and not name.startswith(".") and not name.endswith(FOR_PEOPLE)
    }


def load_tokenizer(folder: str) -> Tokenizer:
    """Load the tokenizer of a local bundle with one model, with the bundle's preprocessing."""
    return Tokenizer.load(folder, read_info(folder).preprocessing)


def load_tokenizers(folder: str) -> list[Tokenizer]:
    """Load the tokenizers of a local bundle: of a cascade those of its small and its large model."""
    parts = PARTS if read_info(folder).is_cascade else ("",)
    return [load_tokenizer(str(Path(folder, part))) for part in parts]


def load(folder: str) -> tuple["Classifier", BundleInfo]:
    """Load the model of a local bundle with one model, in float32 on the CPU and in evaluation mode, and its record."""
    import safetensors.torch
    from transformers import AutoConfig

    from sentiment_core.model import classifier

    info = read_info(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if info.head == "standard":
        return classifier.from_encoder(folder, config, "standard", with_head=True).eval(), info
    assert info.head != "cascade", "it has two models"
    model = classifier.from_config(config, info.head)
    safetensors.torch.load_model(model, str(Path(folder) / WEIGHTS))
    return model.eval(), info
