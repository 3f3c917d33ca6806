"""The stability index and its limits."""

import re
from dataclasses import replace

import numpy as np
import pytest

from sentiment_core.model.objective import MultiLabel, SingleLabel
from sentiment_core.model.records import ReferenceStatistics
from sentiment_core.nightly import drift
from sentiment_core.nightly.drift import Profile, compare, stability_index
from sentiment_core.scoring.rows import ScoredRows
from sentiment_core.scoring.statistics import Counts, DistinctTexts, UnknownTokens
from sentiment_core.text import distinct_sketch


def test_the_stability_index_is_that_of_its_definition():
    counts, others = [30.0, 70.0, 0.0], [50.0, 50.0, 0.0]
    p, q = np.array([30.5, 70.5]) / 101, np.array([50.5, 50.5]) / 101  # half a row more in each bin that is not empty
    value, noise_limit = stability_index(counts, others)
    assert value == pytest.approx(((p - q) * np.log(p / q)).sum())
    assert noise_limit == pytest.approx(10.828 * 2 / 101, rel=1e-3)  # of chi-square with one degree, 0.1 % are above
    assert stability_index(counts, counts)[0] == 0


def test_chance_passes_the_noise_limit_about_as_often_as_alpha_says():
    rng = np.random.default_rng(0)
    shares = [0.05, 0.1, 0.25, 0.4, 0.2]
    pairs = (rng.multinomial(rows, shares).astype(float) for _ in range(4000) for rows in (3000, 5000))
    above = [
        value > noise_limit for value, noise_limit in (stability_index(a, b) for a, b in zip(pairs, pairs, strict=True))
    ]
    assert 0 < np.mean(above) < 4 * drift.ALPHA


def test_many_comparisons_raise_no_more_false_alarms_than_one():
    rng = np.random.default_rng(0)
    usual = Profile(5000, {"labels": [2500.0, 2500.0]})

    def alarms(tests: int) -> int:
        nights = (
            Profile(200, {"labels": rng.multinomial(200, [0.5, 0.5]).astype(float).tolist()}) for _ in range(8000)
        )
        return sum(
            comparison.drifted for night in nights for comparison in compare(night, usual, "a", "b", 0.01, tests)
        )

    assert alarms(tests=1) > 0
    assert alarms(tests=8000) == 0


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
    return Profile.from_counts(replace(counts, unknown_tokens=unknown_tokens, texts=distinct_texts))


def several(rows, joy, love=0.1, rng=None):
    """The profile of rows with up to two labels, of these shares of rows."""
    rng = rng or np.random.default_rng(0)
    labels = [float(rng.binomial(rows, share)) for share in (joy, love)]
    return Profile(rows, {"labels": labels}, labelled_rows=float(rows))


def test_of_several_labels_a_row_the_share_of_the_one_that_changed_most_is_compared():
    (comparison,) = compare(several(1000, 0.6), several(3000, 0.3), "now", "before", 0.25, labels=["joy", "love"])
    assert comparison.drifted
    assert comparison.statistic == "labels"
    assert re.search(r"labels: [56]\d\.\d % of now have 'joy', (29|30|31)\.\d % of before", str(comparison))
    (comparison,) = compare(several(1000, 0.3), several(3000, 0.32), "now", "before", 0.25, labels=["joy", "love"])
    assert not comparison.drifted
    # both labels more often together would not show in a distribution of labels
    both, before = several(2000, 0.8, 0.8), several(2000, 0.3, 0.3)
    assert compare(both, before, "now", "before", 0.25, labels=["joy", "love"])[0].drifted
    as_one_label = [replace(profile, labelled_rows=None) for profile in (both, before)]
    assert not compare(*as_one_label, "now", "before", 0.25)[0].drifted


def test_shares_of_several_labels_pass_the_noise_limit_as_seldom_as_alpha_says():
    rng, usual = np.random.default_rng(0), several(100_000, 0.3)
    drifted = [
        compare(several(500, 0.3, rng=rng), usual, "a", "b", 0.0, labels=["joy", "love"])[0].drifted
        for _ in range(4000)
    ]
    assert np.mean(drifted) < 4 * drift.ALPHA


def test_rows_with_several_labels_are_counted_and_added_up():
    names = ["joy", "love"]
    probabilities = np.array([[0.9, 0.8], [0.1, 0.2], [0.7, 0.1], [np.nan] * 2], np.float32)
    status = np.array([0, 0, 4, 2], np.int8)  # the third one abstained
    rows = ScoredRows(MultiLabel(), names, status, probabilities, np.array([3, 3, 3, 0]))
    profile = Profile.from_counts(Counts.zero(names).add_unit(rows), several=True)
    assert (profile.distributions["labels"], profile.labelled_rows) == ([1.0, 1.0], 2.0)
    assert profile.bin_shares("labels").tolist() == [0.5, 0.5]
    total = Profile() + profile + profile
    assert total.labelled_rows == 4.0
    assert Profile.from_json(total.to_json()) == total
    assert profile.without_model(same_tokenizer=True).labelled_rows is None
    assert "labelled_rows" not in counted(300).to_json()


@pytest.mark.parametrize(
    ("changed", "statistic"),
    [
        ({"positive": 0.8}, "labels"),
        ({"length": 90}, "text length"),
        ({"unknown": 0.03}, "unknown tokens"),
        ({"empty": 200}, "empty texts"),
        ({"texts": [f"text {i % 300}" for i in range(1000)]}, "repeated texts"),
    ],
)
def test_a_changed_statistic_drifts_and_is_described(changed, statistic):
    comparisons = compare(counted(1000, **changed), counted(3000), "now", "before", 0.25)
    assert [comparison.statistic for comparison in comparisons if comparison.drifted] == [statistic]
    sentence = next(str(comparison) for comparison in comparisons if comparison.drifted)
    assert sentence.startswith(f"{statistic}: ")
    assert "before" in sentence


def test_small_changes_and_few_rows_are_no_drift():
    comparisons = compare(counted(1000, positive=0.55, unknown=0.005), counted(3000), "now", "before", 0.25)
    assert len(comparisons) == 6
    assert not any(comparison.drifted for comparison in comparisons)
    assert compare(counted(100, positive=1.0), counted(3000), "now", "before", 0.25) == []


def test_a_bundle_of_an_older_version_is_compared_by_what_it_noted():
    reference = {
        "rows": 1000, "predicted_shares": {"negative": 0.5, "positive": 0.5},
        "confidence_histogram": counted(1000).distributions["confidence"], "unknown_token_share": 0.0,
    }  # fmt: skip
    before = Profile.from_reference(ReferenceStatistics.from_json(reference), ["negative", "positive"])
    comparisons = compare(counted(1000, positive=1.0, length=90), before, "now", "before", 0.25)
    assert [comparison.statistic for comparison in comparisons if comparison.drifted] == ["labels"]
    assert compare(counted(1000), Profile.from_reference(ReferenceStatistics(), ["a"]), "now", "before", 0.25) == []
