"""When a candidate is better; `chaos/test_nights.py` trains real ones."""

import re
from dataclasses import replace

import pytest

from sentiment_core.data import labelled as dataset
from sentiment_core.data.labels import LabelScheme
from sentiment_core.errors import UserError
from sentiment_core.nightly.renewal import CandidateComparison, candidate_name, compare
from sentiment_core.training.settings import TrainSettings
from tests.conftest import make_bundle


@pytest.mark.parametrize(
    ("alone_right", "better", "words"),
    [
        ((30, 60), True, "accuracy 0.8300 against 0.8000 on 1,000 rows"),
        ((58, 60), False, "expected at least 0.005 more"),
        ((0, 5), True, "accuracy 0.8050 against 0.8000"),
        ((4, 10), False, "too few rows to be sure"),
        ((60, 30), False, "expected at least 0.005 more"),
    ],
)
def test_a_candidate_must_be_significantly_better(alone_right, better, words):
    from scipy.stats import binomtest

    current, candidate = alone_right
    p = binomtest(candidate, current + candidate, alternative="greater").pvalue
    comparison = CandidateComparison(1000, 0, 0.8, 0.8 + (candidate - current) / 1000, current, candidate, p)
    assert comparison.decide(0.005)[0] is better
    assert words in comparison.decide(0.005)[1]


@pytest.mark.slow
def test_bundles_are_compared_on_rows_they_were_not_trained_on(tiny_encoder, tiny_bundle, labelled, tmp_path):
    other = make_bundle(tiny_encoder, tmp_path / "other", labels=("negative", "positive"), max_length=8)
    data = dataset.read(labelled, scheme=LabelScheme(["negative", "positive"]))
    seen = set(data.texts[:50])
    same = compare(tiny_bundle, tiny_bundle, data, seen)
    unseen = [text for text in data.texts if text not in seen]
    assert (same.rows, same.rows_left_out) == (len(unseen), len(data) - len(unseen))
    assert (same.only_current, same.only_candidate, same.p_value) == (0, 0, 1.0)
    assert not same.decide(0.0)[0]
    comparison = compare(tiny_bundle, other, data, seen)
    assert comparison.candidate_accuracy - comparison.accuracy == pytest.approx(
        (comparison.only_candidate - comparison.only_current) / comparison.rows
    )
    with pytest.raises(UserError, match="also in the training data"):
        compare(tiny_bundle, other, data, set(data.texts))


def test_the_same_labels_and_settings_name_the_same_candidate():
    settings = TrainSettings(data="d", model="m", out="one")
    name = candidate_name(settings, "f")
    assert name == candidate_name(replace(settings, out="another", checkpoint_minutes=1.0), "f")
    assert name != candidate_name(settings, "g")
    assert name != candidate_name(replace(settings, lr=1e-3), "f")
    assert re.fullmatch(r"[a-z0-9-]+", name)  # needs no quoting in a path or an address
