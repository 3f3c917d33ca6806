"""Texts to token ids: the very ids that transformers gives, without importing it (seconds), faster where possible."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers

from sentiment_core.tokens import EMPTY, NULL, OK, TRUNCATED, TokenLists

ROWS = 1_024  # texts handed to the library at once: bounds the memory of its intermediate objects


class Tokenizer:
    def __init__(self, backend, truncation_side: str = "right") -> None:
        """`backend`: a `tokenizers.Tokenizer`, which is changed, or for families that have none, transformers' own."""
        self.truncation_side = truncation_side
        self.fast = backend if isinstance(backend, tokenizers.Tokenizer) else None
        if self.fast is None:
            self.slow = backend
            self.specials = backend.num_special_tokens_to_add(pair=False)
            return
        self.fast.no_padding()
        self.fast.no_truncation()
        self.specials = self.fast.num_special_tokens_to_add(is_pair=False)
        self.ascii = _AsciiTokenizer.of(self.fast)

    @classmethod
    def from_transformers(cls, tokenizer) -> "Tokenizer":
        fast = getattr(tokenizer, "backend_tokenizer", None)
        copy = tokenizer if fast is None else tokenizers.Tokenizer.from_str(fast.to_str())
        return cls(copy, tokenizer.truncation_side)

    @classmethod
    def from_bundle(cls, folder: str) -> "Tokenizer":
        whole = Path(folder, "tokenizer.json")
        if not whole.exists():
            from sentiment_core.encoder import load_tokenizer

            return cls.from_transformers(load_tokenizer(folder))
        options = json.loads(Path(folder, "tokenizer_config.json").read_text(encoding="utf-8"))
        return cls(tokenizers.Tokenizer.from_file(str(whole)), options.get("truncation_side", "right"))

    def encode(self, texts: Sequence[str | None], max_length: int) -> tuple[TokenLists, np.ndarray]:
        """Token ids with the special tokens, cut to `max_length`, and the status code of each text, (n,) int8.

        The ids are those of transformers' `tokenizer(text, truncation=True, max_length=max_length)`. A text of which
        nothing but special tokens is left is `EMPTY`; such texts and nulls get no ids.
        """
        status = np.zeros(len(texts), np.int8)
        lists: list[Sequence[int]] = [()] * len(texts)
        ascii_rows, other_rows = [], []
        for row, text in enumerate(texts):
            if text is None:
                status[row] = NULL
            elif not text.strip():
                status[row] = EMPTY
            elif self.fast and self.ascii and text.isascii():
                ascii_rows.append(row)
            else:
                other_rows.append(row)
        for rows, encode in ((ascii_rows, self._encode_ascii), (other_rows, self._encode_any)):
            for start in range(0, len(rows), ROWS):
                some = rows[start : start + ROWS]
                for row, (ids, cut) in zip(some, encode([texts[r] for r in some], max_length), strict=True):
                    if len(ids) <= self.specials:
                        status[row] = EMPTY
                        continue
                    lists[row] = ids
                    status[row] = TRUNCATED if cut else OK
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(ids) for ids in lists], out=offsets[1:])
        return TokenLists(np.fromiter(chain.from_iterable(lists), np.int32, count=offsets[-1]), offsets), status

    def _encode_ascii(self, texts: list, max_length: int) -> list[tuple[list[int], bool]]:
        assert self.ascii
        room = max_length - self.specials
        kept = slice(room) if self.truncation_side == "right" else slice(-room, None)
        return [(self.ascii.frame(ids[kept]), len(ids) > room) for ids in self.ascii.encode(texts)]

    def _encode_any(self, texts: list, max_length: int) -> list[tuple[list[int], bool]]:
        if self.fast:
            self.fast.enable_truncation(max_length, direction=self.truncation_side)
            return [(e.ids, bool(e.overflowing)) for e in self.fast.encode_batch_fast(texts)]
        found = []
        for text in texts:  # a tokenizer written in Python: no word on what it cut off, so it is asked for all of it
            full = self.slow(text, verbose=False)["input_ids"]
            cut = len(full) > max_length
            found.append((self.slow(text, truncation=True, max_length=max_length)["input_ids"] if cut else full, cut))
        return found


class _AsciiTokenizer:
    """kitoken: the same ids in a third of the time, on ASCII (elsewhere it follows another version of Unicode) and with
    WordPiece, which BERT, DistilBERT, MiniLM, ELECTRA and MPNet have (byte pairs it may merge in another order)."""

    def __init__(self, definition: str, prefix: list[int], suffix: list[int]) -> None:
        from kitoken import Kitoken

        self.kitoken = Kitoken.from_tokenizers(definition.encode())
        self.prefix, self.suffix = prefix, suffix

    @classmethod
    def of(cls, fast: tokenizers.Tokenizer) -> "_AsciiTokenizer | None":
        """None where kitoken is not installed, cannot load this tokenizer, or differs on a sample."""
        if not isinstance(fast.model, tokenizers.models.WordPiece):
            return None
        whole = fast.encode("a")
        inner = fast.encode("a", add_special_tokens=False).ids
        before = next((i for i, special in enumerate(whole.special_tokens_mask) if not special), 0)
        try:
            found = cls(fast.to_str(), whole.ids[:before], whole.ids[before + len(inner) :])
            sample = _ascii_sample()
            expected = [encoding.ids for encoding in fast.encode_batch_fast(sample)]
            return found if [found.frame(ids) for ids in found.encode(sample)] == expected else None
        except Exception:  # what it cannot read it refuses in many ways
            return None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Without the special tokens around, all of the text; special tokens written out in it count as such."""
        return self.kitoken.encode_all(texts, True)

    def frame(self, ids: list[int]) -> list[int]:
        return [*self.prefix, *ids, *self.suffix]


def _ascii_sample() -> list[str]:
    """Words, spaces, digits, signs and control characters in odd company."""
    rng = np.random.default_rng(0)
    words = [
        *("The", "film", "isn't", "SO", "good", " ", "  ", "\n", "\t"),
        *("1999", "3.14", "a_b", "--", "http://x.y/z?q=1"),
    ]
    some = ["".join(rng.choice(words, 20)) for _ in range(100)] + [" ".join(rng.choice(words, 20)) for _ in range(100)]
    return some + ["".join(map(chr, rng.integers(0, 128, rng.integers(1, 40)))) for _ in range(300)] + ["x" * 300]
