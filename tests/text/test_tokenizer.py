"""Token ids equal those of transformers, whatever the text and tokenizer."""

import itertools
import random

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sentiment_core.model.encoder import load_tokenizer
from sentiment_core.text.preprocessing import MAX_WINDOWS, WINDOW_OVERLAP, Preprocessing
from sentiment_core.text.status import EMPTY, NULL, OK, TRUNCATED
from sentiment_core.text.tokenizer import Tokenizer

TEXTS = [
    "Good.",
    "",
    "  \n\t ",
    None,
    "word " * 40,
    "naïve café 😀",
    "\x00\x01",
    "a\u200b",
    "x" * 300,
    "\ufffd",
    "ok " * 14,
]
PIECES = [
    *("[SEP]", "[CLS]", "</s>", "<pad>", " ", "  ", "\n", "\t", "a", "##b", "hello", "1999", "3.14", "isn't", "--"),
    *("\u200d", "é", "e\u0301", "İ", "ß", "ﬁ", "中", "한글", "ا", "😀", "\ue000", "\u0378", "\ufeff", "\x00", "\x7f"),
    *("\xa0", "x" * 250),
]


def fuzzed(rows: int, seed: int) -> list[str]:
    """Make texts of odd pieces, any characters, and words with an odd character."""
    rng = random.Random(seed)
    words = ["the", "film", "was", "not", "what", "she'd", "hoped", "for,", "42", "(or", "more)", "said:", "'Bravo!'"]

    def character() -> str:
        return chr(rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0xE000, 0x110000)]))

    kinds = (
        lambda: "".join(rng.choices(PIECES, k=rng.randrange(30))),
        lambda: "".join(chr(rng.randrange(0x80)) for _ in range(rng.randrange(60))),
        lambda: "".join(character() for _ in range(rng.randrange(20))),
        lambda: " ".join([*rng.choices(words, k=rng.randrange(40)), character(), *rng.choices(words, k=5)]),
        lambda: " ".join(rng.choices(words, k=rng.randrange(60))),
    )
    return [rng.choice(kinds)() for _ in range(rows)]


@pytest.fixture(scope="module", params=["wordpiece", "byte-level bpe", "unigram"])
def folder(request, packaged_encoder, tmp_path_factory) -> str:
    """Make BERT's tokenizer, or small ones like RoBERTa's and XLM-RoBERTa's."""
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    if request.param == "wordpiece":
        load_tokenizer(packaged_encoder).save_pretrained(folder)
        return folder
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    corpus = [text for text in fuzzed(3_000, seed=1) if text.isascii()]
    if request.param == "unigram":
        fast = Fast(models.Unigram())
        fast.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
        fast.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=2_000, special_tokens=special, unk_token="<unk>")
        fast.train_from_iterator(corpus, trainer)
    else:
        fast = Fast(models.BPE())
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=2_000, special_tokens=special, initial_alphabet=alphabet)
        fast.train_from_iterator(corpus, trainer)
    ends = [(name, fast.token_to_id(name)) for name in ("<s>", "</s>")]
    fast.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=fast, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wordpiece(packaged_encoder, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("wordpiece"))
    load_tokenizer(packaged_encoder).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("truncation", "side"), [("head", "right"), ("tail", "left")])
def test_ids_are_those_of_transformers(folder, truncation, side):
    theirs = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    ours = Tokenizer.load(folder, Preprocessing(48, truncation))
    rows = 100_000 if ours.ascii and side == "right" else 10_000
    # beyond the first, only those that the faster tokenizer takes
    texts = [text for i, text in enumerate(fuzzed(rows, seed=2)) if text.strip() and (i < 10_000 or text.isascii())]
    lists, status = ours.encode(texts)
    expected = theirs(texts, truncation=True, max_length=48)["input_ids"]
    for i, (text, ids) in enumerate(zip(texts, expected, strict=True)):
        our_ids = lists.ids[lists.offsets[i] : lists.offsets[i + 1]].tolist()
        assert our_ids == (ids if status[i] != EMPTY else []), ascii(text)


def test_bert_gets_the_faster_tokenizer(wordpiece):
    assert Tokenizer.load(wordpiece, Preprocessing(48)).ascii is not None


def test_the_status_says_what_came_of_a_text(wordpiece):
    lists, status = Tokenizer.load(wordpiece, Preprocessing(16)).encode(TEXTS)
    assert status.tolist() == [OK, EMPTY, EMPTY, NULL, TRUNCATED, OK, EMPTY, OK, OK, EMPTY, OK]
    assert ((lists.lengths == 0) == [s in (EMPTY, NULL) for s in status]).all()
    assert lists.lengths[-1] == 16  # exactly the limit is not truncated


@pytest.mark.parametrize("letter", ["o", "ö"])
def test_a_long_text_is_cut_not_refused(wordpiece, letter):
    lists, status = Tokenizer.load(wordpiece, Preprocessing(32)).encode([f"hell{letter} world " * 100_000])
    assert (lists.lengths.tolist(), status.tolist()) == ([32], [TRUNCATED])


def test_a_long_text_is_cut_as_the_truncation_says(folder):
    """Each window has the special tokens around it and the length allowed."""
    text = "said the film was not what she hoped for " * 40
    theirs = AutoTokenizer.from_pretrained(folder)
    full = theirs(text)["input_ids"]
    first, inner, last = full[:1], full[1:-1], full[-1:]
    for truncation, windows in {
        "head": [inner[:30]],
        "tail": [inner[-30:]],
        "head_tail": [inner[:7] + inner[-23:]],
    }.items():
        lists, status = Tokenizer.load(folder, Preprocessing(32, truncation)).encode([text])
        assert lists.ids.tolist() == [id for window in windows for id in first + window + last]
        assert status.tolist() == [TRUNCATED]
    text = text[:800]
    inner = theirs(text)["input_ids"][1:-1]
    ours = Tokenizer.load(folder, Preprocessing(64, "window"))
    lists, status = ours.encode([text, "short", None])
    windows, first_windows = lists.windows(64)
    assert status.tolist() == [OK, OK, NULL]
    assert windows.lengths.tolist() == [64] * first_windows[1] + [len(theirs("short")["input_ids"]), 0]
    ids = windows.ids[: 64 * first_windows[1]].reshape(-1, 64)
    assert ids[0, 1:-1].tolist() == inner[:62]
    assert ids[-1, 1:-1].tolist() == inner[-62:]
    assert (ids[:, 0] == first).all()
    assert (ids[:, -1] == last).all()


@given(length=st.integers(0, 4000), room=st.integers(1, 80))
def test_windows_hold_all_tokens_of_a_text_or_it_is_truncated(length, room):
    windows, truncated = Preprocessing(room, "window").cut(range(length), room)
    assert len(windows) <= MAX_WINDOWS
    assert all(len(window) == room for window in windows) or len(windows) == 1
    seen = sorted({id for window in windows for id in window})
    assert seen == list(range(len(seen)))
    assert truncated == (len(seen) < length)
    overlaps = [before[-1] - after[0] + 1 for before, after in itertools.pairwise(windows)]
    assert all(overlap >= int(room * WINDOW_OVERLAP) for overlap in overlaps)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Fine.<br /><br />But long.", "Fine.  But long."),
        ("<p class='a'>a &lt; b &amp; c</p><!-- no\nword -->", " a < b & c  "),
        ("So <b>it</b> ends <!-- here " + "<!--" * 100_000, "So  it  ends  "),
        ("1 < 2 and 3 > 2 <3 R&B", "1 < 2 and 3 > 2 <3 R&B"),
    ],
)
def test_markup_is_cleaned_only_where_the_preprocessing_says_so(wordpiece, text, cleaned):
    preprocessing = Preprocessing(64, clean="markup")
    assert preprocessing.clean_text(text) == cleaned
    assert Preprocessing(64).clean_text(text) == text
    tokens, _ = Tokenizer.load(wordpiece, preprocessing).encode([text])
    expected, _ = Tokenizer.load(wordpiece, Preprocessing(64)).encode([cleaned])
    assert tokens.ids.tolist() == expected.ids.tolist()
    assert Tokenizer.load(wordpiece, preprocessing).encode(["<br/>"])[1].tolist() == [EMPTY]
