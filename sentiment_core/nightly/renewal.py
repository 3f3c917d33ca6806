"""Renew the model: train a candidate when there are new labels, and promote it if it is significantly better."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from scipy.stats import binomtest

from sentiment_core.api import Classifier
from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.errors import UserError
from sentiment_core.model import bundle, registry
from sentiment_core.nightly.record import Renewal
from sentiment_core.runtime import storage
from sentiment_core.training.job import train
from sentiment_core.training.resume import RESUME_MAY_CHANGE
from sentiment_core.training.settings import TrainSettings

# settings that 27de93b did not have: at their defaults they name no other candidate than before
ADDED_LATER = ("label_map", "min_label_rows", "csv_separator", "csv_encoding", "label_separator", "precision", "recipe")
MAX_P_VALUE = 0.05  # above, chance may explain that a candidate looks better


@dataclass(frozen=True)
class CandidateComparison:
    """The current bundle and a candidate on the same rows."""

    rows: int
    rows_left_out: int  # test rows whose texts the candidate was trained on
    accuracy: float  # of the current bundle
    candidate_accuracy: float
    only_current: int  # rows that only the current bundle labels correctly
    only_candidate: int
    p_value: float  # exact one-sided McNemar test: probability that chance makes the candidate look so good

    def decide(self, margin: float) -> tuple[bool, str]:
        """Decide whether to promote the candidate, and say why."""
        gain = (self.only_candidate - self.only_current) / self.rows
        left_out = (
            f", {self.rows_left_out:,} more left out because it was trained on them" if self.rows_left_out else ""
        )
        numbers = (
            f"accuracy {self.candidate_accuracy:.4f} against {self.accuracy:.4f} on {self.rows:,} rows{left_out} (only "
            f"one correct: {self.only_candidate} against {self.only_current}, p = {self.p_value:.3g})"
        )
        if gain < margin - 1e-9:
            return False, f"{numbers}; expected at least {margin:g} more"
        if self.p_value > MAX_P_VALUE:
            return False, f"{numbers}; too few rows to be sure: p may be at most {MAX_P_VALUE}"
        return True, numbers


def candidate_name(settings: TrainSettings, fingerprint: str) -> str:
    """Name a candidate by its training rows and the settings that matter.

    A night thereby resumes the candidate that a killed one began to train.
    """
    defaults = {item.name: item.default for item in fields(settings)}
    request = {
        name: value
        for name, value in asdict(settings).items()
        if name not in RESUME_MAY_CHANGE and not (name in ADDED_LATER and value == defaults[name])
    }
    return f"candidate-{hashlib.sha256(json.dumps([fingerprint, request]).encode()).hexdigest()[:12]}"


def train_candidate(
    settings: TrainSettings, parts: tuple[LabelledTexts, LabelledTexts], models: str, name: str
) -> None:
    """Train into the folder `name` of the registry, unless a run that broke off later has done so."""
    path = storage.join(models, name)
    if not storage.exists(storage.join(path, bundle.CARD)):
        train(replace(settings, out=path), parts=parts)


def compare(current: str, candidate: str, test: LabelledTexts, training_texts: set[str]) -> CandidateComparison:
    """Compare two bundles on the rows of `test` whose texts are not among the `training_texts`.

    Raises UserError if there are none.
    """
    unseen = test.take(np.flatnonzero([text not in training_texts for text in test.texts]))
    if not len(unseen):
        raise UserError("all texts of --test-data are also in the training data. Give texts that are not.")
    current_correct, candidate_correct = (_is_correct(path, unseen) for path in (current, candidate))
    only_current = int((current_correct & ~candidate_correct).sum())
    only_candidate = int((candidate_correct & ~current_correct).sum())
    differing = only_current + only_candidate
    p_value = float(binomtest(only_candidate, differing, alternative="greater").pvalue) if differing else 1.0
    return CandidateComparison(
        rows=len(unseen),
        rows_left_out=len(test) - len(unseen),
        accuracy=float(current_correct.mean()),
        candidate_accuracy=float(candidate_correct.mean()),
        only_current=only_current,
        only_candidate=only_candidate,
        p_value=p_value,
    )


def _is_correct(path: str, test: LabelledTexts) -> np.ndarray:
    """Return for each row whether the bundle labels it correctly, (n,) bool."""
    classifier = Classifier.load(path)
    probabilities = np.nan_to_num(classifier.predict_proba(test.texts))  # without tokens: the first label
    own_numbers = {name: number for number, name in enumerate(classifier.labels)}
    targets = np.array([own_numbers.get(name, -1) for name in test.label_names])[test.labels]
    return classifier.info.objective.decide(probabilities)[0] == targets


def renew(
    settings: TrainSettings,
    parts: tuple[LabelledTexts, LabelledTexts],
    models: str,
    name: str,
    test_data: str,
    margin: float,
) -> Renewal:
    """Train a candidate, compare it with the current bundle, and promote or refuse it.

    Args:
        settings: How to train it.
        parts: The rows that these settings train and evaluate on.
        models: Folder of bundles.
        name: Name of the candidate's folder there.
        test_data: Labelled text to compare on.
        margin: Accuracy by which the candidate must be better.
    """
    test = labelled.read(test_data, settings.columns, parts[0].scheme)
    train_candidate(settings, parts, models, name)
    current, candidate = registry.resolve(models), storage.join(models, name)  # it may have changed meanwhile
    if current == candidate:
        return Renewal(name, promoted=True, reason="another run has promoted it")
    comparison = compare(current, candidate, test, {text for part in parts for text in part.texts})
    promoted, reason = comparison.decide(margin)
    registry.record_decision(models, name, "promoted" if promoted else "refused", reason, current)
    return Renewal(name, promoted, reason)
