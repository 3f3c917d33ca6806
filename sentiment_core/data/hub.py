"""Fetch a labelled data set from the Hugging Face hub, at the revision it has now; know the hub's names."""

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from sentiment_core.errors import UserError

if TYPE_CHECKING:  # importing datasets takes a second, and most data are files
    import datasets

HUB_NAME = re.compile(r"^[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+){0,2}$")  # owner/name[:config][:split]
MODEL_NAME = re.compile(r"^[\w-][\w.-]*(/[\w.-]+)?(@[\w./-]+)?$")  # owner/name[@revision]
DEFAULT_SPLIT = "train"
TIMEOUT_S = 20  # for the hub to answer
MAX_REASON_CHARACTERS = 300  # of the client's error in a message


@dataclass(frozen=True)
class HubDataset:
    """A split of a hub data set, on the local disk."""

    rows: "datasets.Dataset"
    revision: str | None

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        return self.rows.column_names

    def read(self, columns: list[str]) -> pa.Table:
        """Read columns into memory."""
        return self.rows.select_columns(columns).with_format("arrow")[:]

    def class_names(self, column: str) -> list[str] | None:
        """Return the names of the numbers in a label column, None if the data names none."""
        feature = self.rows.features[column]
        return getattr(getattr(feature, "feature", feature), "names", None)  # of a list: those of its values


def is_hub_name(name: str) -> bool:
    """Return whether `name` may be a hub data set, `owner/name[:config][:split]`."""
    return HUB_NAME.match(name) is not None


def is_model_name(name: str) -> bool:
    """Return whether `name` may be a hub model, `owner/name[@revision]`."""
    return MODEL_NAME.match(name) is not None


def fetch(name: str) -> HubDataset:
    """Download a hub data set, once per revision. Raises `UserError`."""
    import datasets
    from huggingface_hub import HfApi

    repository, *options = name.split(":")
    config, split = options if len(options) == 2 else (None, options[0] if options else DEFAULT_SPLIT)
    try:
        revision = HfApi().dataset_info(repository, timeout=TIMEOUT_S).sha
        return HubDataset(datasets.load_dataset(repository, config, split=split, revision=revision), revision)
    except Exception as error:  # the hub's client raises dozens of kinds, all about this name or the network
        reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS]
        raise UserError(
            f"{name} is not a local file or folder, and fetching it as a hub data set failed: {reason}; "
            "check the name and the network, or give a local file"
        ) from None


def class_names_in(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the class names that the `datasets` library left in a Parquet file."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(metadata)["info"]["features"][column] if metadata else {}
        return (feature[0] if isinstance(feature, list) else feature.get("feature", feature)).get("names")
    except (ValueError, KeyError, IndexError, AttributeError, TypeError):
        return None
