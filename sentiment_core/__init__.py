"""Fine-tune a text classifier on labelled text and score large Parquet corpora with it.

    from sentiment_core import Classifier, UserError, evaluate, score, train, verify

Importing this package is cheap: names are loaded when they are used, and nothing of the process is changed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentiment_core.api import Classifier, Prediction
    from sentiment_core.commands import evaluate, score, train, verify
    from sentiment_core.errors import UserError

__version__ = "0.2.0.dev0"
__all__ = ["Classifier", "Prediction", "UserError", "__version__", "evaluate", "score", "train", "verify"]

_MODULES = {
    "Classifier": "sentiment_core.api",
    "Prediction": "sentiment_core.api",
    "UserError": "sentiment_core.errors",
    "evaluate": "sentiment_core.commands",
    "score": "sentiment_core.commands",
    "train": "sentiment_core.commands",
    "verify": "sentiment_core.commands",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
