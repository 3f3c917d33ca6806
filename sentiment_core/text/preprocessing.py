"""Clean a text and cut its tokens to what the encoder reads.

A bundle keeps these rules, and training, evaluation and scoring all follow them.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Clean = Literal["none", "markup"]
Truncation = Literal["head", "tail", "head_tail", "window"]

MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?(?:-->|\Z)", re.DOTALL)  # HTML tags and comments
HEAD_SHARE = 0.25  # of head_tail, about the 128 of 510 tokens that did best in Sun et al. 2019
WINDOW_OVERLAP = 0.25  # least share of a window that the next one repeats
MAX_WINDOWS = 16  # of one text; what does not fit into them is cut off


@dataclass(frozen=True)
class Preprocessing:
    """The rules by which texts are cleaned, and cut where they have too many tokens."""

    max_length: int  # tokens, special ones included
    truncation: Truncation = "head"
    clean: Clean = "none"

    def clean_text(self, text: str) -> str:
        """Remove markup from a text, if `clean` says so.

        HTML tags and comments become a space, character references the characters they stand for.
        """
        if self.clean == "none" or not ("<" in text or "&" in text):
            return text
        return html.unescape(MARKUP.sub(" ", text))

    def cut(self, ids: Sequence[int], room: int) -> tuple[list[Sequence[int]], bool]:
        """Cut one text's `ids`, without special tokens, to windows of up to `room` tokens.

        Returns the windows that the encoder reads, and whether some ids are in none of them (truncated).

        `head`: the first ids, `tail`: the last, `head_tail`: a quarter of `room` from the beginning and the rest from
        the end (Sun et al. 2019, How to Fine-Tune BERT for Text Classification). Each of these is a single window.
        `window`: overlapping windows, each as long as `room` if there are two or more.
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
        step = room - int(room * WINDOW_OVERLAP)
        count = min(MAX_WINDOWS, 1 + -(-(len(ids) - room) // step))
        last_start = min(len(ids), room + (MAX_WINDOWS - 1) * step) - room
        starts = np.linspace(0, last_start, count).astype(int).tolist()
        return [ids[start : start + room] for start in starts], last_start + room < len(ids)
