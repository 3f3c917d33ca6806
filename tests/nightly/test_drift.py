"""The stability index and its limits."""

from dataclasses import replace

import numpy as np
import pytest

from sentiment_core.model.objective import SingleLabel
from sentiment_core.model.records import ReferenceStatistics
from sentiment_core.nightly import drift
from sentiment_core.nightly.drift import Profile, compare, stability_index
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.statistics import Counts, DistinctTexts, UnknownTokens
from sentiment_core.text import distinct_sketch


def test_the_stability_index_is_that_of_its_definition():
    one, other = [30.0, 70.0, 0.0], [50.0, 50.0, 0.0]
    p, q = np.array([30.5, 70.5]) / 101, np.array([50.5, 50.5]) / 101  # half a row more in each bin that is not empty
    value, chance = stability_index(one, other)
    assert value == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert chance == pytest.approx(10.828 * 2 / 101, rel=1e-3)  # of chi-square with one degree, 0.1 % are above
    assert stability_index(one, one)[0] == 0


def test_chance_passes_its_limit_about_as_often_as_said():
    rng = np.random.default_rng(0)
    shares = [0.05, 0.1, 0.25, 0.4, 0.2]
    pairs = (rng.multinomial(rows, shares).astype(float) for _ in range(4000) for rows in (3000, 5000))
    above = [value > chance for value, chance in (stability_index(a, b) for a, b in zip(pairs, pairs, strict=True))]
    assert 0 < np.mean(above) < 4 * drift.CHANCE


def test_however_many_are_compared_chance_alarms_no_more_often():
    rng = np.random.default_rng(0)
    usual = Profile(5000, {"labels": [2500.0, 2500.0]})

    def alarms(among: int) -> int:
        nights = (
            Profile(200, {"labels": rng.multinomial(200, [0.5, 0.5]).astype(float).tolist()}) for _ in range(8000)
        )
        return sum(found.drifted for night in nights for found in compare(night, usual, "a", "b", 0.01, among))

    assert alarms(among=1) > 0
    assert alarms(among=8000) == 0


def counted(rows, positive=0.5, length=20, unknown=0.0, empty=0, texts=None):
    lengths = np.full(rows, length)
    lengths[:empty] = 0
    probabilities = np.full((rows, 2), np.nan, np.float32)
    probabilities[empty:] = [0.2, 0.8]
    probabilities[empty : empty + round((rows - empty) * (1 - positive))] = [0.8, 0.2]
    status = np.zeros(rows, np.int8)
    status[:empty] = 2
    names = texts or [f"text {i}" for i in range(rows)]
    labels = ["negative", "positive"]
    counts = Counts.zero(labels).add_unit(ScoredRows(SingleLabel(), labels, status, probabilities, lengths))
    unknown_tokens, distinct_texts = (
        UnknownTokens(round(unknown * lengths.sum())),
        DistinctTexts(distinct_sketch.sketch_texts(names)),
    )
    return Profile.of(replace(counts, unknown_tokens=unknown_tokens, texts=distinct_texts))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"positive": 0.8}, "labels"),
        ({"length": 90}, "text length"),
        ({"unknown": 0.03}, "unknown tokens"),
        ({"empty": 200}, "empty texts"),
        ({"texts": [f"text {i % 300}" for i in range(1000)]}, "repeated texts"),
    ],
)
def test_what_has_changed_is_told(changed, what):
    found = compare(counted(1000, **changed), counted(3000), "now", "before", 0.25)
    assert [one.what for one in found if one.drifted] == [what]
    told = next(str(one) for one in found if one.drifted)
    assert told.startswith(f"{what}: ")
    assert "before" in told


def test_what_has_hardly_changed_or_is_of_few_rows_is_no_drift():
    found = compare(counted(1000, positive=0.55, unknown=0.005), counted(3000), "now", "before", 0.25)
    assert len(found) == 6
    assert not any(one.drifted for one in found)
    assert compare(counted(100, positive=1.0), counted(3000), "now", "before", 0.25) == []


def test_a_bundle_of_an_older_version_is_compared_as_far_as_it_tells():
    reference = {
        "rows": 1000, "predicted_shares": {"negative": 0.5, "positive": 0.5},
        "confidence_histogram": counted(1000).distributions["confidence"], "unknown_token_share": 0.0,
    }  # fmt: skip
    before = Profile.of_reference(ReferenceStatistics.from_json(reference), ["negative", "positive"])
    found = compare(counted(1000, positive=1.0, length=90), before, "now", "before", 0.25)
    assert [one.what for one in found if one.drifted] == ["labels"]
    assert compare(counted(1000), Profile.of_reference(ReferenceStatistics(), ["a"]), "now", "before", 0.25) == []
