"""Name the number types that users can insist on, and the flag for it."""

from typing import Any, Literal

from sentiment_core.config import setting

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def precision_setting() -> Any:
    """Declare the flag `--precision`."""
    return setting("auto", "number type to compute in; auto: the fastest on the chip, as measured", group="model")
