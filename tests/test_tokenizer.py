"""Token ids are those of transformers, whatever the text, the family of tokenizer, or the library that makes them."""

import random

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sentiment_core.encoder import load_tokenizer
from sentiment_core.tokenizer import Tokenizer
from sentiment_core.tokens import EMPTY, NULL, OK, TRUNCATED

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
    """Odd pieces, any ASCII, any Unicode but surrogates, and ordinary words with one odd character."""
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
    """A bundle's tokenizer files: BERT's, or small ones as RoBERTa's and XLM-RoBERTa's are made."""
    place = str(tmp_path_factory.mktemp("tokenizer"))
    if request.param == "wordpiece":
        load_tokenizer(packaged_encoder).save_pretrained(place)
        return place
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
    PreTrainedTokenizerFast(tokenizer_object=fast, **names).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def wordpiece(packaged_encoder, tmp_path_factory) -> str:
    place = str(tmp_path_factory.mktemp("wordpiece"))
    load_tokenizer(packaged_encoder).save_pretrained(place)
    return place


@pytest.mark.parametrize("side", ["right", "left"])
def test_ids_are_those_of_transformers(folder, side, tmp_path):
    theirs = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_bundle(str(tmp_path))
    rows = 100_000 if ours.ascii and side == "right" else 10_000
    texts = [text for text in fuzzed(rows, seed=2) if text.strip()]
    lists, status = ours.encode(texts, 48)
    expected = theirs(texts, truncation=True, max_length=48)["input_ids"]
    for i, (text, ids) in enumerate(zip(texts, expected, strict=True)):
        found = lists.ids[lists.offsets[i] : lists.offsets[i + 1]].tolist()
        assert found == (ids if status[i] != EMPTY else []), ascii(text)


def test_the_fast_way_is_taken_for_bert(wordpiece):
    assert Tokenizer.from_bundle(wordpiece).ascii is not None


def test_status_tells_what_became_of_a_text(wordpiece):
    lists, status = Tokenizer.from_bundle(wordpiece).encode(TEXTS, 16)
    assert status.tolist() == [OK, EMPTY, EMPTY, NULL, TRUNCATED, OK, EMPTY, OK, OK, EMPTY, OK]
    assert ((lists.lengths == 0) == [s in (EMPTY, NULL) for s in status]).all()
    assert lists.lengths[-1] == 16  # exactly the limit is not truncated


@pytest.mark.parametrize("letter", ["o", "ö"])
def test_a_long_text_is_cut_not_refused(wordpiece, letter):
    lists, status = Tokenizer.from_bundle(wordpiece).encode([f"hell{letter} world " * 100_000], 32)
    assert (lists.lengths.tolist(), status.tolist()) == ([32], [TRUNCATED])
