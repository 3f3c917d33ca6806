"""Statistics add up, whatever the units that the rows are cut into, and survive their JSON."""

import json

import numpy as np
import pytest

from sentiment_core.model.objective import SingleLabel
from sentiment_core.scoring.rows import ReadTexts, ReusedRows, ScoredRows
from sentiment_core.scoring.statistics import STATISTICS, Counts, PassCounts
from sentiment_core.text.status import ABSTAINED, EMPTY, NULL, OK, TRUNCATED
from sentiment_core.text.token_lists import TokenLists

LABELS = ["no", "yes"]
STATUS = np.array([OK, TRUNCATED, NULL, EMPTY, ABSTAINED], np.int8)
NAN = np.nan
PROBABILITIES = np.array([[0.9, 0.1], [0.2, 0.8], [NAN, NAN], [NAN, NAN], [0.55, 0.45]], np.float32)
LENGTHS = np.array([3, 8, 0, 0, 5])


def texts_of(rows: slice) -> ReadTexts:
    """Return the texts of these rows; token 100 is unknown."""
    lengths = LENGTHS[rows]
    ids = np.full(lengths.sum(), 7, np.int32)
    ids[:1] = 100
    row_tokens = TokenLists(ids, np.concatenate([[0], np.cumsum(lengths)]))
    return ReadTexts([f"text {i}" for i in range(5)][rows], lengths, row_tokens, 100)


def counts_of(rows: slice) -> Counts:
    scored = ScoredRows(SingleLabel(), LABELS, STATUS[rows], PROBABILITIES[rows], LENGTHS[rows])
    return Counts.zero(LABELS).add_texts(texts_of(rows)).add_unit(scored)


def test_a_unit_is_counted():
    counts = counts_of(slice(None))
    assert counts.rows == 5
    assert counts.status.value == {"ok": 1, "truncated": 1, "empty": 1, "null": 1, "abstained": 1}
    assert counts.labels.value == {"no": 1, "yes": 1}  # a row that abstains has none
    histogram = counts.confidence_histogram.value
    assert (sum(histogram), histogram[18], histogram[16], histogram[11]) == (3, 1, 1, 1)
    assert counts.length_histogram.value[:4] == [0, 1, 1, 1]
    assert (counts.tokens.value, counts.unknown_tokens.value, len(counts.texts.value)) == (16, 1, 3)


@pytest.mark.parametrize("cut", range(6))
def test_parts_add_up_to_the_whole(cut):
    parts = [counts_of(slice(None, cut)), counts_of(slice(cut, None))]
    total, whole = parts[0].merge(parts[1]).to_json(), counts_of(slice(None)).to_json()
    for name in ("units", "unknown_tokens"):  # each part has one of its own
        total.pop(name), whole.pop(name)
    assert total == whole


def test_zero_changes_no_sum():
    counts = counts_of(slice(None))
    assert counts.merge(Counts.zero(LABELS)) == Counts.zero(LABELS).merge(counts) == counts


def test_json_has_the_keys_of_the_format_and_comes_back():
    counts = counts_of(slice(None))
    content = json.loads(json.dumps(counts.to_json()))
    assert list(content) == [
        "units", "status", "labels", "confidence_histogram", "length_histogram", "tokens", "unknown_tokens", "texts",
    ]  # fmt: skip
    assert Counts.from_json(content) == counts


@pytest.mark.parametrize("name", sorted(set(STATISTICS) - {"status", "labels"}))
def test_a_statistic_that_an_old_footer_does_not_have_is_zero(name):
    content = counts_of(slice(None)).to_json()
    content.pop(name, None)  # of rows that no cascade computed there is none
    counts = Counts.from_json(content | {"of a newer version": 1})
    assert getattr(counts, name) == STATISTICS[name].zero(LABELS)
    assert counts.rows == 5


def test_statistics_of_a_single_model_are_its_own_and_of_named_ones_stand_by_name():
    counts = counts_of(slice(None))
    assert PassCounts({"": counts}).to_json() == counts.to_json()
    named = PassCounts({"a": counts, "b": counts})
    assert named.to_json() == {"models": {"a": counts.to_json(), "b": counts.to_json()}}
    for one in (PassCounts({"": counts}), named):
        assert PassCounts.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert (named.units, named.rows, named.tokens) == (1, 5, 32)
    assert named.merge(PassCounts.zero({"a": LABELS, "b": LABELS})) == named


def test_texts_count_for_the_models_that_read_them_so():
    counts = PassCounts.zero({"a": LABELS, "b": LABELS, "c": LABELS}).add_texts(["a", "c"], texts_of(slice(None)))
    assert [counts.models[name].unknown_tokens.value for name in "abc"] == [1, 0, 1]
    assert counts.models["a"].texts == counts.models["c"].texts != counts.models["b"].texts


def test_a_footer_without_a_model_is_none_of_ours():
    with pytest.raises(KeyError):
        PassCounts.from_json({"models": {}})


def test_reused_rows_are_counted_apart():
    zero = PassCounts.zero({"a": LABELS, "b": LABELS})
    confidence = np.array([0.9, np.nan, 0.6], np.float32)
    reused = ReusedRows(LABELS, np.array([0, 3, 4]), confidence, np.array([0, 1]))
    scored = ScoredRows(SingleLabel(), LABELS, STATUS, PROBABILITIES, LENGTHS)
    counts = zero.add_reused_texts({"a": [5, 7], "b": [5]}).add_unit(
        {"a": scored, "b": scored}, {"a": reused, "b": reused}
    )
    assert (counts.units, counts.rows, counts.reused_rows) == (1, 5, 3)
    assert counts.reused["a"].labels.value == {"no": 0, "yes": 1}
    assert counts.reused["a"].status.value == {"ok": 1, "truncated": 0, "empty": 0, "null": 1, "abstained": 1}
    assert (sum(counts.reused["a"].confidence_histogram.value), counts.reused["a"].tokens.value) == (2, 0)
    assert [counts.reused[name].texts.value for name in "ab"] == [[5, 7], [5]]
    assert PassCounts.from_json(json.loads(json.dumps(counts.to_json()))) == counts
    total = counts.merge(counts)
    assert (total.units, total.rows, total.reused_rows) == (2, 10, 6)
    assert zero.merge(counts) == counts.merge(zero) == counts
    everything = counts.all_rows
    assert (everything.units, everything.rows, everything.reused_rows) == (1, 8, 0)
    assert everything.models["a"].labels.value == {"no": 1, "yes": 2}
    assert "reused" not in everything.to_json()


def test_a_unit_of_reused_rows_alone_is_one_unit():
    reused = ReusedRows(LABELS, np.array([0]), np.array([0.9], np.float32), np.array([1, 0]))
    nothing = ScoredRows(SingleLabel(), LABELS, STATUS[:0], PROBABILITIES[:0], LENGTHS[:0])
    counts = PassCounts.zero({"": LABELS}).add_unit({"": nothing}, {"": reused})
    assert (counts.units, counts.rows, counts.reused_rows, counts.all_rows.units) == (1, 0, 1, 1)
    assert list(counts.to_json()["reused"]) == [""]
    assert PassCounts.from_json(counts.to_json()) == counts
    with pytest.raises(KeyError):
        PassCounts.from_json(counts.to_json() | {"reused": {"other": counts.to_json()}})
