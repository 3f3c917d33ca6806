"""Texts become answers, without HTTP."""

import asyncio
from collections.abc import Callable

import pytest
from pydantic import TypeAdapter

from sentiment_core.model import bundle
from sentiment_core.serving import model
from sentiment_core.serving.model import Results, ServedModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tiny_bundle):
    return bundle.read_files(tiny_bundle)[1]


def test_texts_below_the_threshold_abstain_but_keep_their_probabilities(files):
    (results,) = ServedModel(files, 1, min_confidence=1.0).answer([["a wonderful film", ""]])
    abstained, empty = results.results
    assert (abstained.label, abstained.status) == (None, "abstained")
    assert abstained.confidence == max(abstained.probabilities.values())
    assert (empty.label, empty.confidence, empty.probabilities, empty.status) == (None, None, None, "empty")
    assert results.bundle == bundle.digest_of(files)


def test_every_request_gets_the_results_of_its_own_texts(files):
    served = ServedModel(files, 1, min_confidence=0.0)
    first, second, nothing = served.answer([["a film"], ["", "a wonderful film"], []])
    assert [len(request.results) for request in (first, second, nothing)] == [1, 2, 0]
    assert [result.status for result in second.results] == ["empty", "ok"]
    assert first.results[0].confidence == pytest.approx(served.answer([["a film"]])[0].results[0].confidence, abs=1e-3)


def test_an_empty_text_is_explained_by_no_words(files):
    explanation = asyncio.run(ServedModel(files, 1, min_confidence=0.0).explain(" "))
    assert (explanation.label, explanation.status, explanation.words) == (None, "empty", [])


def test_only_the_first_words_are_explained(files, monkeypatch):
    monkeypatch.setattr(model, "EXPLAINED_WORDS", 2)
    explanation = asyncio.run(ServedModel(files, 1, min_confidence=0.0).explain("a wonderful film"))
    assert [word for word, _ in explanation.words] == ["a", "wonderful"]


def test_an_explanation_is_computed_in_slices(files, monkeypatch):
    served, calls = ServedModel(files, 1, min_confidence=0.0), []

    async def compute(call: Callable, left_out: list) -> object:
        calls.append(len(left_out))
        return call(left_out)

    together = asyncio.run(served.explain("a wonderful film, he said", compute))
    monkeypatch.setattr(model, "SLICE_TEXTS", 4)
    sliced = asyncio.run(served.explain("a wonderful film, he said", compute))
    assert calls == [6, 4, 2]
    assert sliced.confidence == pytest.approx(together.confidence, abs=1e-3)
    assert [word for word, _ in sliced.words] == ["a", "wonderful", "film,", "he", "said"]
    assert [fall for _, fall in sliced.words] == pytest.approx([fall for _, fall in together.words], abs=1e-2)


def test_several_labels_are_answered_as_a_list_and_the_most_probable_one_explained(multi_label_bundle):
    files = bundle.read_files(multi_label_bundle)[1]
    served = ServedModel(files, 1, min_confidence=0.0)
    (results,) = served.answer([["a wonderful film", "", "dull"]])
    full, empty, _ = results.results
    thresholds = dict(zip(full.probabilities, (0.5, 0.45, 0.55), strict=True))
    assert full.labels == [name for name, p in full.probabilities.items() if p >= thresholds[name]]
    assert full.confidence == pytest.approx(
        min(p if name in full.labels else 1 - p for name, p in full.probabilities.items())
    )
    assert (empty.labels, empty.confidence, empty.status) == (None, None, "empty")
    as_json = TypeAdapter(Results).dump_python(results, mode="json")
    assert list(as_json["results"][0]) == ["labels", "confidence", "probabilities", "status"]
    assert TypeAdapter(Results).validate_python(as_json) == results
    explanation = asyncio.run(served.explain("a wonderful film"))
    assert explanation.labels == full.labels
    assert [word for word, _ in explanation.words] == ["a", "wonderful", "film"]
    abstained = ServedModel(files, 1, min_confidence=1.0).answer([["a film"]])[0].results[0]
    assert (abstained.labels, abstained.status) == (None, "abstained")
