"""When a candidate is better; `chaos/test_nights.py` trains real ones."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.metrics import f1_score

from sentiment_core import Classifier
from sentiment_core.data import labelled as dataset
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import LabelScheme
from sentiment_core.data.origin import DataOrigin
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.distillation_record import Distillation
from sentiment_core.model.guarantee import derive_threshold
from sentiment_core.model.objective import MultiLabel
from sentiment_core.model.records import EvaluationRows, TrainingRecord, TrainingRows
from sentiment_core.model.registry import PromoteSettings, history, promote
from sentiment_core.nightly.renewal import (
    CandidateComparison,
    MicroF1Comparison,
    _compare_micro_f1,
    candidate_name,
    compare,
    count_labelled_rows,
    renew,
)
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


@pytest.mark.parametrize(
    ("micro_f1", "p_worse", "better", "words"),
    [
        (MicroF1Comparison(0.5, 0.55, 0.001), 0.9, True, "micro-F1 0.5500 against 0.5000 (p = 0.001), exact match"),
        (MicroF1Comparison(0.5, 0.502, 0.001), 0.9, False, "expected at least 0.005 more"),
        (MicroF1Comparison(0.5, 0.55, 0.2), 0.9, False, "too few rows to be sure"),
        (MicroF1Comparison(0.5, 0.55, 0.001), 0.01, False, "the exact match may not fall"),
    ],
)
def test_of_several_labels_micro_f1_must_be_better_and_the_exact_match_not_worse(micro_f1, p_worse, better, words):
    comparison = CandidateComparison(1000, 0, 0.8, 0.81, 20, 30, 0.1, p_worse, micro_f1)
    assert comparison.decide(0.005)[0] is better
    assert words in comparison.decide(0.005)[1]


def test_micro_f1_is_compared_by_exchanging_rows():
    rng = np.random.default_rng(0)
    targets = rng.random((400, 3)) < 0.3
    good, bad = targets ^ (rng.random((400, 3)) < 0.05), targets ^ (rng.random((400, 3)) < 0.15)
    better = _compare_micro_f1(bad, targets, good, targets)
    assert better.candidate == pytest.approx(f1_score(targets, good, average="micro"))
    assert better.current == pytest.approx(f1_score(targets, bad, average="micro"))
    assert better.p_value < 0.001
    assert _compare_micro_f1(good, targets, bad, targets).p_value > 0.99
    assert _compare_micro_f1(good, targets, good, targets).p_value == 1.0
    alike = [
        _compare_micro_f1(*(m for flip in flips for m in (targets ^ flip, targets))).p_value
        for flips in (rng.random((20, 2, 400, 3)) < 0.1)
    ]
    assert 0.2 < np.mean(alike) < 0.8


@pytest.mark.slow
def test_several_labels_are_compared_by_their_names(tiny_encoder, multi_label_bundle, tmp_path):
    """The candidate has the same labels in another order."""
    names = ["love", "anger", "joy"]
    other = make_bundle(tiny_encoder, tmp_path / "other", labels=names, objective=MultiLabel())
    rng = np.random.default_rng(0)
    texts = [f"a film {i}" for i in range(60)]
    data = LabelledTexts(texts, rng.random((60, 3)) < 0.5, ["anger", "joy", "love"])
    comparison = compare(multi_label_bundle, other, data, set(texts[:10]))
    chosen = np.array(
        [[name in p.labels for name in data.label_names] for p in Classifier.load(other).predict(texts[10:])]
    )
    assert comparison.rows == 50
    assert comparison.candidate_accuracy == pytest.approx((chosen == data.labels[10:]).all(axis=1).mean())
    assert comparison.micro_f1.candidate == pytest.approx(f1_score(data.labels[10:], chosen, average="micro"))


@pytest.mark.slow
def test_bundles_are_compared_on_rows_they_were_not_trained_on(tiny_encoder, tiny_bundle, labelled, tmp_path):
    other = make_bundle(tiny_encoder, tmp_path / "other", labels=("negative", "positive"), max_length=8)
    data = dataset.read(labelled, scheme=LabelScheme(["negative", "positive"]))
    seen = set(data.texts[:50])
    same = compare(tiny_bundle, tiny_bundle, data, {f" {text}\r\n" for text in seen})  # as a spreadsheet saves them
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


@pytest.mark.slow
@pytest.mark.parametrize("needs_guarantee", [False, True])
def test_a_candidate_that_the_next_night_could_not_use_is_refused(tiny_encoder, tmp_path, needs_guarantee):
    """The candidate decides the contrary of the current bundle, and the test rows agree with it."""
    models = str(tmp_path / "models")
    make_bundle(tiny_encoder, tmp_path / "models" / "first")
    candidate = Path(make_bundle(tiny_encoder, tmp_path / "models" / "candidate"))
    weights = load_file(candidate / bundle.WEIGHTS)
    contrary = {name: -value if name.startswith("classifier.") else value for name, value in weights.items()}
    save_file(contrary, candidate / bundle.WEIGHTS, metadata={"format": "pt"})
    promote(PromoteSettings(models=models, bundle="first"))
    texts = [f"a film {i}" for i in range(60)]
    labels = [prediction.label for prediction in Classifier.load(candidate).predict(texts)]
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "test.parquet")
    part = LabelledTexts(["good", "bad"], np.array([1, 0]), ["negative", "positive"])

    def check_candidate(path: str) -> None:
        if needs_guarantee:
            derive_threshold(path, bundle.read_info(path), 0.95, 0.95)

    settings = TrainSettings(data="d", model="m", out=models)
    data = str(tmp_path / "test.parquet")
    outcome = renew(settings, (part, part), models, "candidate", data, 0.005, check_candidate)
    assert outcome.promoted is not needs_guarantee
    assert ("notes no guarantee" in outcome.reason) == needs_guarantee
    assert history(models)[-1].kind == ("refused" if needs_guarantee else "promoted")


def test_the_same_labels_and_settings_name_the_same_candidate():
    settings = TrainSettings(data="d", model="m", out="one")
    name = candidate_name(settings, "f")
    assert name == candidate_name(replace(settings, out="another", checkpoint_minutes=1.0), "f")
    assert name != candidate_name(settings, "g")
    assert name != candidate_name(replace(settings, lr=1e-3), "f")
    assert re.fullmatch(r"[a-z0-9-]+", name)  # needs no quoting in a path or an address


def test_rows_that_a_teacher_or_folds_added_are_no_labelled_rows_of_a_candidate(tiny_bundle):
    info, trained = bundle.read_info(tiny_bundle), TrainingRows(rows=1_100, train_rows=1_000)
    part = LabelledTexts(["a"] * 270, np.zeros(270, int), ["no", "yes"], DataOrigin("data", rows=300))
    info = replace(info, training=replace(info.training, data=trained))
    assert count_labelled_rows(info, part) == 1_000
    taught = replace(info, distillation=Distillation(teacher="models/large", labelled_rows=200))
    assert count_labelled_rows(taught, part) == 200
    by_folds = TrainingRecord(data=TrainingRows(rows=250, train_rows=250), eval_data=EvaluationRows(folds=5))
    new = len(part) - count_labelled_rows(replace(info, training=by_folds), part)
    assert new == 50  # labelled since
