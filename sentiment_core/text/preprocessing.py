"""From a text to what the encoder reads of it: the bundle keeps these rules, and training, evaluation and scoring all
follow them."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Clean = Literal["none", "markup"]
Truncation = Literal["head", "tail", "head_tail", "window"]

TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?(?:-->|\Z)", re.DOTALL)
HEAD_SHARE = 0.25  # of head_tail, about the 128 of 510 tokens that did best in Sun et al. 2019
OVERLAP = 0.25  # of a window, at least, with the next one
WINDOWS = 16  # of one text, at most; what does not fit into them is cut off


@dataclass(frozen=True)
class Preprocessing:
    """How texts are cleaned, and what is kept of one that has more tokens than the encoder is given at a time."""

    max_length: int  # tokens, special ones included
    truncation: Truncation = "head"
    clean: Clean = "none"

    def cleaned(self, text: str) -> str:
        """`markup`: HTML tags and comments become a space, character references what they stand for."""
        if self.clean == "none" or not ("<" in text or "&" in text):
            return text
        return html.unescape(TAG.sub(" ", text))

    def kept(self, ids: Sequence[int], room: int) -> tuple[list[Sequence[int]], bool]:
        """Of one text's `ids`, without special ones, the parts of up to `room` that the encoder reads, and whether
        some are in none of them.

        `head`: the first, `tail`: the last, `head_tail`: a quarter of `room` from the beginning and the rest from the
        end (Sun et al. 2019, How to Fine-Tune BERT for Text Classification), `window`: overlapping windows, all but
        one as long as `room` if there are two or more.
        """
        if len(ids) <= room:
            return [ids], False
        if self.truncation == "head":
            return [ids[:room]], True
        if self.truncation == "tail":
            return [ids[-room:]], True
        if self.truncation == "head_tail":
            head = int(room * HEAD_SHARE)
            return [[*ids[:head], *ids[head - room :]]], True
        step = room - int(room * OVERLAP)
        windows = min(WINDOWS, 1 + -(-(len(ids) - room) // step))
        last = min(len(ids), room + (WINDOWS - 1) * step) - room
        starts = np.linspace(0, last, windows).astype(int).tolist()
        return [ids[start : start + room] for start in starts], last + room < len(ids)
