"""Texts to token ids: the very ids that transformers gives, without importing it (seconds), faster where possible."""

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers

from sentiment_core.text.preprocessing import Preprocessing
from sentiment_core.text.status import EMPTY, NULL, OK, TRUNCATED
from sentiment_core.text.token_lists import TokenLists

PROBES = ("a", "the", "0", ".", "人")  # one of which a tokenizer knows, so that the special tokens around it show
ROWS = 1_024  # texts handed to the library at once: bounds the memory of its intermediate objects


class Tokenizer:
    def __init__(self, backend, rules: Preprocessing) -> None:
        """`backend`: a `tokenizers.Tokenizer`, which is changed, or for families that have none, transformers' own."""
        self.rules = rules
        self.fast = backend if isinstance(backend, tokenizers.Tokenizer) else None
        self.slow = None if self.fast else backend
        self.ascii = None
        if self.fast:
            self.fast.no_padding()
            self.fast.no_truncation()
        for word in PROBES:
            if self.fast:
                whole = self.fast.encode(word)
                framed, special = whole.ids, whole.special_tokens_mask
            else:
                framed = backend(word)["input_ids"]
                special = backend.get_special_tokens_mask(framed, already_has_special_tokens=True)
            if 0 in special:
                break
        else:
            raise ValueError(f"the tokenizer knows none of {', '.join(PROBES)}")
        before, after = special.index(0), special[::-1].index(0)
        self.prefix, self.suffix = framed[:before], framed[len(framed) - after :]
        if self.fast:
            self.ascii = _AsciiTokenizer.of(self.fast, self.prefix, self.suffix)
        self.unknown_id = _unknown_id(self.fast) if self.fast else backend.unk_token_id  # None: there is none

    @classmethod
    def from_transformers(cls, tokenizer, rules: Preprocessing) -> "Tokenizer":
        fast = getattr(tokenizer, "backend_tokenizer", None)
        return cls(tokenizer if fast is None else tokenizers.Tokenizer.from_str(fast.to_str()), rules)

    @classmethod
    def load(cls, folder: str, rules: Preprocessing) -> "Tokenizer":
        whole = Path(folder, "tokenizer.json")
        if not whole.exists():
            from transformers import AutoTokenizer

            slow = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return cls.from_transformers(slow, rules)
        return cls(tokenizers.Tokenizer.from_file(str(whole)), rules)

    def encode(self, texts: Sequence[str | None]) -> tuple[TokenLists, np.ndarray]:
        """Token ids with the special tokens, cut as the rules say, and the status code of each text, (n,) int8.

        The ids are those of transformers' `tokenizer(text, truncation=True)` of the cleaned text; those of several
        windows stand one after another, each with its special tokens and `max_length` long. A text of which nothing
        but special tokens is left is `EMPTY`; such texts and nulls get no ids.
        """
        found = [self._encode(texts[start : start + ROWS]) for start in range(0, len(texts), ROWS)]
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([length for _, lengths, _ in found for length in lengths], out=offsets[1:])
        ids = np.concatenate([ids for ids, _, _ in found] or [np.zeros(0, np.int32)])
        status = np.concatenate([status for _, _, status in found] or [np.zeros(0, np.int8)])
        return TokenLists(ids, offsets), status

    def _encode(self, texts: Sequence[str | None]) -> tuple[np.ndarray, list[int], np.ndarray]:
        """The ids of all texts one after another, how many each has, and the status codes. Bounds the memory of the
        lists in between, which take ten times that of the ids."""
        status = np.zeros(len(texts), np.int8)
        lists: list[list[int]] = [[]] * len(texts)
        ascii_rows, other_rows = [], []
        cleaned = [None if text is None else self.rules.cleaned(text) for text in texts]
        for row, text in enumerate(cleaned):
            if text is None:
                status[row] = NULL
            elif not text.strip():
                status[row] = EMPTY
            elif self.ascii and text.isascii():
                ascii_rows.append(row)
            else:
                other_rows.append(row)
        room = self.rules.max_length - len(self.prefix) - len(self.suffix)
        encode_ascii: Callable[[list], list[list[int]]] = self.ascii.encode if self.ascii else self._encode_any
        for rows, encode in ((ascii_rows, encode_ascii), (other_rows, self._encode_any)):
            for row, ids in zip(rows, encode([cleaned[r] for r in rows]) if rows else [], strict=True):
                if not len(ids):
                    status[row] = EMPTY
                    continue
                parts, cut = self.rules.kept(ids, room)
                lists[row] = list(chain.from_iterable((*self.prefix, *part, *self.suffix) for part in parts))
                status[row] = TRUNCATED if cut else OK
        lengths = [len(ids) for ids in lists]
        return np.fromiter(chain.from_iterable(lists), np.int32, count=sum(lengths)), lengths, status

    def _encode_any(self, texts: list) -> list[list[int]]:
        if self.fast:
            found = [encoding.ids for encoding in self.fast.encode_batch_fast(texts)]
        else:  # a tokenizer written in Python
            found = [self.slow(text, verbose=False)["input_ids"] for text in texts]  # type: ignore[misc]
        return [ids[len(self.prefix) : len(ids) - len(self.suffix)] for ids in found]


def _unknown_id(fast: tokenizers.Tokenizer) -> int | None:
    model = json.loads(fast.to_str())["model"]  # of which libraries show some families' only
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else fast.token_to_id(token)


class _AsciiTokenizer:
    """kitoken: the same ids in a third of the time, on ASCII (elsewhere it follows another version of Unicode) and with
    WordPiece, which BERT, DistilBERT, MiniLM, ELECTRA and MPNet have (byte pairs it may merge in another order)."""

    def __init__(self, definition: str) -> None:
        from kitoken import Kitoken

        self.kitoken = Kitoken.from_tokenizers(definition.encode())

    @classmethod
    def of(cls, fast: tokenizers.Tokenizer, prefix: list[int], suffix: list[int]) -> "_AsciiTokenizer | None":
        """None where kitoken is not installed, cannot load this tokenizer, or differs on a sample."""
        if not isinstance(fast.model, tokenizers.models.WordPiece):
            return None
        try:
            found = cls(fast.to_str())
            sample = _ascii_sample()
            expected = [encoding.ids for encoding in fast.encode_batch_fast(sample)]
            return found if [[*prefix, *ids, *suffix] for ids in found.encode(sample)] == expected else None
        except Exception:  # what it cannot read it refuses in many ways
            return None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Without the special tokens around, all of the text; special tokens written out in it count as such."""
        return self.kitoken.encode_all(texts, True)


def _ascii_sample() -> list[str]:
    """Words, spaces, digits, signs and control characters in odd company."""
    rng = np.random.default_rng(0)
    words = [
        *("The", "film", "isn't", "SO", "good", " ", "  ", "\n", "\t"),
        *("1999", "3.14", "a_b", "--", "http://x.y/z?q=1"),
    ]
    some = ["".join(rng.choice(words, 20)) for _ in range(100)] + [" ".join(rng.choice(words, 20)) for _ in range(100)]
    return some + ["".join(map(chr, rng.integers(0, 128, rng.integers(1, 40)))) for _ in range(300)] + ["x" * 300]
