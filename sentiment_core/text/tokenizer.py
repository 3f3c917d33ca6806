"""Turn texts into the token ids that transformers makes, faster.

Importing transformers takes seconds. Its own tokenizers are loaded only for families without a `tokenizer.json`.
"""

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers

from sentiment_core.text.preprocessing import Preprocessing
from sentiment_core.text.status import EMPTY, NULL, OK, TRUNCATED
from sentiment_core.text.token_lists import TokenLists

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# one of these every tokenizer knows; the special tokens around it then show
PROBE_WORDS = ("a", "the", "0", ".", "人")
CHUNK_TEXTS = 1_024  # handed to the library at once: bounds the memory of its intermediate objects


class Tokenizer:
    """A tokenizer that cleans and cuts texts as `preprocessing` says.

    Attributes:
        preprocessing: The rules of the bundle.
        prefix: Ids of the special tokens before each window.
        suffix: Ids of the special tokens after each window.
        unknown_id: Id of the unknown token; None for a tokenizer without one.
        ascii: A faster tokenizer for ASCII texts; None where there is none with the same ids.
    """

    def __init__(self, backend: "tokenizers.Tokenizer | PreTrainedTokenizerBase", preprocessing: Preprocessing) -> None:
        """Wrap the tokenizer of a library.

        `backend`: a `tokenizers.Tokenizer`, which is changed, or transformers' own for families that have none. Raises
        `ValueError` for a tokenizer that knows none of `PROBE_WORDS`.
        """
        self.preprocessing = preprocessing
        self._fast: tokenizers.Tokenizer | None = None
        self._slow: Any = None  # a tokenizer written in Python
        self.ascii: _AsciiTokenizer | None = None
        self.unknown_id: int | None
        if isinstance(backend, tokenizers.Tokenizer):
            self._fast = backend
            self._fast.no_padding()
            self._fast.no_truncation()
            self.unknown_id = _find_unknown_id(self._fast)
        else:
            self._slow = backend
            self.unknown_id = backend.unk_token_id
        self.prefix, self.suffix = self._find_special_tokens()
        if self._fast:
            self.ascii = _AsciiTokenizer.load(self._fast, self.prefix, self.suffix)

    @classmethod
    def from_transformers(cls, tokenizer: "PreTrainedTokenizerBase", preprocessing: Preprocessing) -> "Tokenizer":
        """Make a tokenizer of one that transformers loaded; that one stays as it is."""
        fast = getattr(tokenizer, "backend_tokenizer", None)
        backend = tokenizer if fast is None else tokenizers.Tokenizer.from_str(fast.to_str())
        return cls(backend, preprocessing)

    @classmethod
    def load(cls, folder: str, preprocessing: Preprocessing) -> "Tokenizer":
        """Load the tokenizer of a local model folder."""
        definition = Path(folder, "tokenizer.json")
        if definition.exists():
            return cls(tokenizers.Tokenizer.from_file(str(definition)), preprocessing)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return cls.from_transformers(tokenizer, preprocessing)

    def _find_special_tokens(self) -> tuple[list[int], list[int]]:
        for word in PROBE_WORDS:
            if self._fast:
                encoding = self._fast.encode(word)
                ids, special = encoding.ids, encoding.special_tokens_mask
            else:
                ids = self._slow(word)["input_ids"]
                special = self._slow.get_special_tokens_mask(ids, already_has_special_tokens=True)
            if 0 in special:
                before, after = special.index(0), special[::-1].index(0)
                return ids[:before], ids[len(ids) - after :]
        raise ValueError(f"the tokenizer knows none of {', '.join(PROBE_WORDS)}")

    def encode(self, texts: Sequence[str | None]) -> tuple[TokenLists, np.ndarray]:
        """Encode texts; return their token lists and status codes, (n,) int8.

        The ids are those of transformers' `tokenizer(text, truncation=True)` of the cleaned text, cut as the
        preprocessing says. Those of several windows stand one after another, each with its special tokens and
        `max_length` long. A text that leaves only special tokens is `EMPTY`; such texts and nulls have no
        ids.
        """
        chunks = [self._encode_chunk(texts[start : start + CHUNK_TEXTS]) for start in range(0, len(texts), CHUNK_TEXTS)]
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([length for _, lengths, _ in chunks for length in lengths], out=offsets[1:])
        ids = np.concatenate([ids for ids, _, _ in chunks] or [np.zeros(0, np.int32)])
        status = np.concatenate([status for _, _, status in chunks] or [np.zeros(0, np.int8)])
        return TokenLists(ids, offsets), status

    def _encode_chunk(self, texts: Sequence[str | None]) -> tuple[np.ndarray, list[int], np.ndarray]:
        """Encode a few texts; return their joined ids, lengths and status codes.

        Few at once: the Python lists in between take ten times the memory of the ids.
        """
        status = np.zeros(len(texts), np.int8)
        lists: list[list[int]] = [[]] * len(texts)
        ascii_rows, unicode_rows = [], []
        cleaned = [None if text is None else self.preprocessing.clean_text(text) for text in texts]
        for row, text in enumerate(cleaned):
            if text is None:
                status[row] = NULL
            elif not text.strip():
                status[row] = EMPTY
            elif self.ascii and text.isascii():
                ascii_rows.append(row)
            else:
                unicode_rows.append(row)
        room = self.preprocessing.max_length - len(self.prefix) - len(self.suffix)
        encode_ascii: Callable[[list], list[list[int]]] = self.ascii.encode if self.ascii else self._encode_all
        for rows, encode in ((ascii_rows, encode_ascii), (unicode_rows, self._encode_all)):
            for row, ids in zip(rows, encode([cleaned[r] for r in rows]) if rows else [], strict=True):
                if not len(ids):
                    status[row] = EMPTY
                    continue
                windows, truncated = self.preprocessing.cut(ids, room)
                lists[row] = list(chain.from_iterable((*self.prefix, *window, *self.suffix) for window in windows))
                status[row] = TRUNCATED if truncated else OK
        lengths = [len(ids) for ids in lists]
        return np.fromiter(chain.from_iterable(lists), np.int32, count=sum(lengths)), lengths, status

    def _encode_all(self, texts: list) -> list[list[int]]:
        """Encode whole texts, whatever is in them, without the special tokens around."""
        if self._fast:
            lists = [encoding.ids for encoding in self._fast.encode_batch_fast(texts)]
        else:
            lists = [self._slow(text, verbose=False)["input_ids"] for text in texts]
        return [ids[len(self.prefix) : len(ids) - len(self.suffix)] for ids in lists]


def _find_unknown_id(fast: tokenizers.Tokenizer) -> int | None:
    model = json.loads(fast.to_str())["model"]  # the library's own attributes show it for some families only
    token = model.get("unk_token")
    return model.get("unk_id") if token is None else fast.token_to_id(token)


class _AsciiTokenizer:
    """A kitoken tokenizer: the same ids in a third of the time.

    It serves ASCII texts and WordPiece only. Beyond ASCII it follows another version of Unicode. WordPiece is what
    BERT, DistilBERT, MiniLM, ELECTRA and MPNet have; byte pairs it may merge in another order.
    """

    def __init__(self, definition: str) -> None:
        from kitoken import Kitoken

        self._kitoken = Kitoken.from_tokenizers(definition.encode())

    @classmethod
    def load(cls, fast: tokenizers.Tokenizer, prefix: list[int], suffix: list[int]) -> "_AsciiTokenizer | None":
        """Load `fast` into kitoken.

        Returns None where kitoken is not installed, cannot load it, or differs on a sample.
        """
        if not isinstance(fast.model, tokenizers.models.WordPiece):
            return None
        try:
            tokenizer = cls(fast.to_str())
            sample = _ascii_sample()
            expected = [encoding.ids for encoding in fast.encode_batch_fast(sample)]
            same = [[*prefix, *ids, *suffix] for ids in tokenizer.encode(sample)] == expected
        except Exception:  # kitoken refuses in many ways what it cannot read
            return None
        return tokenizer if same else None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Encode whole texts without the special tokens around.

        Special tokens that are written in a text count as such.
        """
        return self._kitoken.encode_all(texts, True)


def _ascii_sample() -> list[str]:
    """Make odd texts of words, spaces, digits, signs and control characters."""
    rng = np.random.default_rng(0)
    words = [
        *("The", "film", "isn't", "SO", "good", " ", "  ", "\n", "\t"),
        *("1999", "3.14", "a_b", "--", "http://x.y/z?q=1"),
    ]
    glued = ["".join(rng.choice(words, 20)) for _ in range(100)]
    spaced = [" ".join(rng.choice(words, 20)) for _ in range(100)]
    characters = ["".join(map(chr, rng.integers(0, 128, rng.integers(1, 40)))) for _ in range(300)]
    return [*glued, *spaced, *characters, "x" * 300]
