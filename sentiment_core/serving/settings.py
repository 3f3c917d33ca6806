"""Settings of `sentiment-core serve`."""

from dataclasses import dataclass
from typing import Literal

from sentiment_core.config import REQUIRED, check, setting
from sentiment_core.runtime.precision import Precision, precision_setting

# Requests that a copy of the model takes, computed or waiting. Further ones wait where another copy can take them.
MAX_ONGOING_REQUESTS = 128
MAX_EXPLAIN_REQUESTS = MAX_ONGOING_REQUESTS // 2  # of these; the rest is left to scoring


@dataclass(frozen=True)
class ServeSettings:
    """Flags of `sentiment-core serve`."""

    model: str = setting(
        REQUIRED,
        "bundle, folder of bundles or Hugging Face classifier: a folder, URI or hub name",
        "MODEL",
        group="model",
    )
    precision: Precision = precision_setting()  # noqa: RUF009
    min_confidence: float = setting(
        0.0, "leave texts below this confidence without a label (status abstained)", "P", group="output"
    )
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 accepts requests from other machines")
    port: int = setting(8000, "port to listen on; 0 takes a free one")
    workers: int = setting(1, "copies of the model: one for each GPU, or sharing the CPUs")
    device: Literal["auto", "cpu", "gpu"] = setting("auto", "what to compute on; auto: GPUs where the cluster has any")
    max_texts: int = setting(64, "most texts in a request")
    max_bytes: int = setting(1_000_000, "most bytes in a request; a larger one is answered with 413")
    max_waiting: int = setting(
        256, f"most requests that wait while each copy works on {MAX_ONGOING_REQUESTS}; further ones get 503"
    )
    texts_per_second: float = setting(
        0.0, "rate limit for each client in texts a second; above it 429 is answered; 0 = no limit"
    )

    def __post_init__(self) -> None:
        """Check the values. Raises `UserError`."""
        for name in ("workers", "max_texts", "max_bytes", "max_waiting"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(0 <= self.min_confidence <= 1, "min_confidence", self.min_confidence, "a probability from 0 to 1")
        check(0 <= self.port < 65536, "port", self.port, "0 to 65535")
        check(self.texts_per_second >= 0, "texts_per_second", self.texts_per_second, "0 or more")
