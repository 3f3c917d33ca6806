"""Renewing the model: trains a candidate when there are new labels, and makes it current if it is surely better."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.stats import binomtest

from sentiment_core.api import Classifier
from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, registry
from sentiment_core.runtime import storage
from sentiment_core.training.job import train
from sentiment_core.training.resume import RESUME_MAY_CHANGE
from sentiment_core.training.settings import TrainSettings

SURE = 0.05  # the most that chance may explain of a candidate's being better


@dataclass(frozen=True)
class Comparison:
    """Two bundles on the same rows."""

    rows: int
    left_out: int  # test rows whose texts the candidate was trained on
    accuracy: float  # of the current one
    candidate_accuracy: float
    only_current: int  # rows that it alone gets right
    only_candidate: int
    p_value: float  # exact one-sided McNemar test: that chance makes the candidate look so good

    def verdict(self, margin: float) -> tuple[bool, str]:
        """Whether the candidate is to be promoted, and why."""
        gain = (self.only_candidate - self.only_current) / self.rows
        seen = f", {self.left_out:,} more left out since it was trained on them" if self.left_out else ""
        told = (
            f"accuracy {self.candidate_accuracy:.4f} against {self.accuracy:.4f} on {self.rows:,} rows{seen} (alone "
            f"right: {self.only_candidate} against {self.only_current}, p = {self.p_value:.3g})"
        )
        if gain < margin - 1e-9:
            return False, f"{told}; expected at least {margin:g} more"
        if self.p_value > SURE:
            return False, f"{told}; too few rows to be sure of that: p may be {SURE} at most"
        return True, told


def candidate_name(settings: TrainSettings, fingerprint: str) -> str:
    """The same for the same training rows and settings that matter: a night goes on with the candidate that a killed
    one has begun."""
    told = json.dumps([fingerprint, {k: v for k, v in asdict(settings).items() if k not in RESUME_MAY_CHANGE}])
    return f"candidate-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def train_candidate(settings: TrainSettings, models: str, name: str) -> None:
    """Into the folder `name` of the registry; if it is there, it has been trained by a run that broke off later."""
    place = storage.join(models, name)
    if not storage.exists(storage.join(place, bundle.CARD)):
        train(replace(settings, out=place))


def compare(current: str, candidate: str, test: LabelledTexts, seen: set[str]) -> Comparison:
    """Both bundles on the rows of `test` whose texts are not among those `seen` in training. Raises `UserError` if
    there are none."""
    unseen = test.take(np.flatnonzero([text not in seen for text in test.texts]))
    if not len(unseen):
        raise UserError("all texts of --test-data are also in the training data; expected others")
    right = [_right(place, unseen) for place in (current, candidate)]
    only_current = int((right[0] & ~right[1]).sum())
    only_candidate = int((right[1] & ~right[0]).sum())
    differ = only_current + only_candidate
    p = float(binomtest(only_candidate, differ, alternative="greater").pvalue) if differ else 1.0
    accuracy, candidate_accuracy = (float(r.mean()) for r in right)
    left_out = len(test) - len(unseen)
    return Comparison(len(unseen), left_out, accuracy, candidate_accuracy, only_current, only_candidate, p)


def _right(place: str, test: LabelledTexts) -> np.ndarray:
    """Which rows the bundle labels right, (n,) bool."""
    probabilities = Classifier.load(place).predict_proba(test.texts)
    return np.nan_to_num(probabilities).argmax(axis=1) == test.labels


def renew(
    settings: TrainSettings,
    parts: tuple[LabelledTexts, LabelledTexts],
    models: str,
    name: str,
    test_data: str,
    margin: float,
) -> dict:
    """Train the candidate `name`, compare it with the current bundle on `test_data`, and decide. `parts`: what
    `settings` train and evaluate on."""
    info = bundle.read_info(registry.resolve(models))
    test = labelled.read(test_data, settings.text_column, settings.label_column, info.labels, info.numbered)
    train_candidate(settings, models, name)
    current, candidate = registry.resolve(models), storage.join(models, name)  # by now it may be another one
    if current == candidate:
        return {"candidate": name, "promoted": True, "reason": "another run has made it current"}
    found = compare(current, candidate, test, {text for part in parts for text in part.texts})
    better, reason = found.verdict(margin)
    registry.record_decision(models, name, "promoted" if better else "refused", reason, current)
    return {"candidate": name, "promoted": better, "reason": reason}
