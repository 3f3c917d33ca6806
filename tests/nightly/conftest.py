"""A folder of bundles for the tests of nights."""

from pathlib import Path

import pytest

from sentiment_core.model.registry import PromoteSettings, promote
from tests.conftest import make_bundle


@pytest.fixture(scope="module")
def models(tiny_encoder, tmp_path_factory) -> Path:
    """Make a folder of two bundles. The first is current."""
    folder = tmp_path_factory.mktemp("registry")
    few_rows = {
        "rows": 50,
        "predicted_shares": {"negative": 0.4, "positive": 0.6},
        "confidence_histogram": [0] * 19 + [50],
    }
    make_bundle(tiny_encoder, folder / "first", reference=few_rows)
    make_bundle(tiny_encoder, folder / "second", max_length=24)
    promote(PromoteSettings(models=str(folder), bundle="first"))
    return folder
