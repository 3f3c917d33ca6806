"""Renew the model: train a candidate when there are new labels, and promote it if it is significantly better."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from sentiment_core.api import Classifier
from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.labels import LabelScheme, renumber
from sentiment_core.errors import UserError
from sentiment_core.inference.int8 import require_int8_agreement
from sentiment_core.model import bundle, multi_label, registry, source
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.guarantee import derive_threshold
from sentiment_core.model.known_texts import hash_text
from sentiment_core.model.objective import Objective
from sentiment_core.nightly.plan import NightPlan
from sentiment_core.nightly.record import Night, Renewal
from sentiment_core.runtime import storage
from sentiment_core.training.data import hold_out_always, read_parts
from sentiment_core.training.job import train
from sentiment_core.training.resume import RESUME_MAY_CHANGE
from sentiment_core.training.settings import TrainSettings

# settings that 27de93b did not have: at their defaults they name no other candidate than before
ADDED_LATER = (
    *("label_map", "min_label_rows", "csv_separator", "csv_encoding", "label_separator"),
    *("precision", "recipe", "layers"),
)
MAX_P_VALUE = 0.05  # above, chance may explain that a candidate looks better
PERMUTATIONS, PERMUTATIONS_AT_ONCE = 10_000, 500  # of the test on micro-F1


@dataclass(frozen=True)
class MicroF1Comparison:
    """The micro-F1 of two multi-label bundles on the same rows."""

    current: float
    candidate: float
    p_value: float  # one-sided paired permutation test: probability that chance makes the candidate look so good


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
    p_value_worse: float = 1.0  # the same for that it makes the candidate look so bad
    micro_f1: MicroF1Comparison | None = None  # of multi-label bundles, whose accuracy is the exact match

    def decide(self, margin: float) -> tuple[bool, str]:
        """Decide whether to promote the candidate, and say why.

        It must gain the margin, in accuracy or of several labels a row in micro-F1, by more than chance explains. Of
        several labels a row the exact match may not fall by more than chance explains.
        """
        gain, p_value = (self.only_candidate - self.only_current) / self.rows, self.p_value
        if self.micro_f1:
            gain, p_value = self.micro_f1.candidate - self.micro_f1.current, self.micro_f1.p_value
        numbers = self._describe()
        if gain < margin - 1e-9:
            return False, f"{numbers}; expected at least {margin:g} more"
        if p_value > MAX_P_VALUE:
            return False, f"{numbers}; too few rows to be sure: p may be at most {MAX_P_VALUE}"
        if self.micro_f1 and self.p_value_worse <= MAX_P_VALUE:
            return (
                False,
                f"{numbers}; the exact match may not fall (p = {self.p_value_worse:.3g} that it did by chance)",
            )
        return True, numbers

    def _describe(self) -> str:
        left_out = (
            f", {self.rows_left_out:,} more left out because it was trained on them" if self.rows_left_out else ""
        )
        name, micro_f1 = "accuracy", ""
        if self.micro_f1:
            name = "exact match"
            micro_f1 = (
                f"micro-F1 {self.micro_f1.candidate:.4f} against {self.micro_f1.current:.4f} "
                f"(p = {self.micro_f1.p_value:.3g}), "
            )
        return (
            f"{micro_f1}{name} {self.candidate_accuracy:.4f} against {self.accuracy:.4f} on {self.rows:,} rows"
            f"{left_out} (only one correct: {self.only_candidate} against {self.only_current}, p = {self.p_value:.3g})"
        )


def renew_model(plan: NightPlan, night: Night, retraining: TrainSettings) -> None:
    """Train and compare a candidate if there are new labels; the night's record says what came of it."""
    settings, info = plan.settings, plan.scoring.opened[""].info
    models = str(settings.model)
    names = list(retraining.label_names)
    scheme = info.label_scheme
    scheme = LabelScheme(names, by_user=True, several=scheme.several) if names else scheme
    retraining = hold_out_always(retraining)
    train_part, eval_part = read_parts(retraining, scheme)
    assert eval_part is not None  # since it is held out always
    rows, fingerprint = len(train_part), train_part.fingerprint()
    infos = [bundle.info_of(files) for files in bundle.parts_of(plan.scoring.opened[""].files).values()]
    rows_tried: dict[Any, int] = {
        part.training.data.fingerprint: count_labelled_rows(part, train_part) for part in infos
    }
    rows_tried |= {past.renewal.fingerprint: past.renewal.rows for past in plan.before if past.renewal}
    drifted = any(comparison.drifted for comparison in night.comparisons)
    most = max(rows_tried.values())
    if fingerprint in rows_tried:
        night.not_renewed = "the labelled rows are those of before"
        return
    if rows - most < settings.renew_rows and not drifted:
        night.not_renewed = (
            f"{rows:,} rows to train on, and {most:,} were tried before; expected {settings.renew_rows:,} more "
            "(renew_rows)"
        )
        return
    name = candidate_name(replace(retraining, label_names=tuple(info.labels)), fingerprint)
    if any(decision.bundle == name for decision in registry.history(models)):
        night.not_renewed = f"{name} was decided on before"  # in a night of another output, or it was rolled back
        return

    def check_candidate(path: str) -> None:
        candidate = source.open_model(path)
        if settings.target_accuracy is not None:
            derive_threshold(path, candidate.info, settings.target_accuracy, settings.certainty)
        if settings.int8:
            require_int8_agreement(path, candidate.info, candidate.files)

    outcome = renew(
        retraining,
        (train_part, eval_part),
        models,
        name,
        settings.test_data or "",
        settings.margin,
        check_candidate,
    )
    night.renewal = replace(outcome, rows=rows, fingerprint=fingerprint)


def count_labelled_rows(info: BundleInfo, train_part: LabelledTexts) -> int:
    """Count the labelled rows that a bundle was trained on, for comparison with the training part of a candidate.

    Those that a teacher answered are none. Of cross-validation, which trains on the rows that a candidate holds out,
    the two differ by as many rows as were labelled since.
    """
    trained = info.training
    if info.distillation.teacher:
        return info.distillation.labelled_rows
    if trained.eval_data.folds:
        return len(train_part) - (train_part.origin.rows - trained.data.rows)
    return trained.data.train_rows or 0


def candidate_name(settings: TrainSettings, fingerprint: str) -> str:
    """Name a candidate by its training rows and the settings that matter.

    A night thereby resumes the candidate that a killed one began to train.
    """
    defaults = {item.name: item.default for item in fields(settings)}
    request = {
        name: value
        for name, value in asdict(settings).items()
        if name not in RESUME_MAY_CHANGE and not (name in ADDED_LATER and value == defaults[name])
    } | {"text_column": ",".join(settings.text_column)}  # as 27de93b has it, which knew one
    return f"candidate-{hashlib.sha256(json.dumps([fingerprint, request]).encode()).hexdigest()[:12]}"


def train_candidate(
    settings: TrainSettings, parts: tuple[LabelledTexts, LabelledTexts], models: str, name: str
) -> None:
    """Train into the folder `name` of the registry, unless a run that broke off later has done so."""
    path = storage.join(models, name)
    if not storage.exists(storage.join(path, bundle.CARD)):
        train(replace(settings, out=path), parts=parts)


def compare(current: str, candidate: str, test: LabelledTexts, training_texts: Iterable[str]) -> CandidateComparison:
    """Compare two bundles on the rows of `test` whose texts are not among the `training_texts`, white space aside.

    Raises UserError if there are none.
    """
    seen = set(map(hash_text, training_texts))
    unseen = test.take(np.flatnonzero([hash_text(text) not in seen for text in test.texts]))
    if not len(unseen):
        raise UserError("all texts of --test-data are also in the training data. Give texts that are not.")
    (current_decisions, targets, objective), (candidate_decisions, candidate_targets, _) = (
        _decide(path, unseen) for path in (current, candidate)
    )
    current_correct = objective.is_right(current_decisions, targets)
    candidate_correct = objective.is_right(candidate_decisions, candidate_targets)
    only_current = int((current_correct & ~candidate_correct).sum())
    only_candidate = int((candidate_correct & ~current_correct).sum())
    differing = only_current + only_candidate
    tests = [
        float(binomtest(only_candidate, differing, alternative=side).pvalue) if differing else 1.0
        for side in ("greater", "less")
    ]
    return CandidateComparison(
        rows=len(unseen),
        rows_left_out=len(test) - len(unseen),
        accuracy=float(current_correct.mean()),
        candidate_accuracy=float(candidate_correct.mean()),
        only_current=only_current,
        only_candidate=only_candidate,
        p_value=tests[0],
        p_value_worse=tests[1],
        micro_f1=_compare_micro_f1(current_decisions, targets, candidate_decisions, candidate_targets)
        if objective.several
        else None,
    )


def _decide(path: str, test: LabelledTexts) -> tuple[np.ndarray, np.ndarray, Objective]:
    """Return a bundle's decisions, what is true, both by the bundle's own label numbers, and its objective."""
    classifier = Classifier.load(path)
    objective = classifier.info.objective
    probabilities = np.nan_to_num(classifier.predict_proba(test.texts))  # without tokens: the first label, or none
    return objective.decide(probabilities)[0], renumber(test.labels, test.label_names, classifier.labels), objective


def _compare_micro_f1(
    current: np.ndarray, current_targets: np.ndarray, candidate: np.ndarray, candidate_targets: np.ndarray
) -> MicroF1Comparison:
    """Compare two models' micro-F1 by exchanging their decisions on random rows (Yeh 2000); all (n, labels) bool."""
    hits, hits_of_candidate = (current & current_targets).sum(axis=1), (candidate & candidate_targets).sum(axis=1)
    labels = current.sum(axis=1) + current_targets.sum(axis=1)
    labels_of_candidate = candidate.sum(axis=1) + candidate_targets.sum(axis=1)

    def gain(exchanged: np.ndarray) -> np.ndarray:
        """Compute how much better the candidate looks, with the rows (trials, n) exchanged that are 1."""
        moved_hits, moved_labels = exchanged @ (hits - hits_of_candidate), exchanged @ (labels - labels_of_candidate)
        f1_of_candidate = (
            2 * (hits_of_candidate.sum() + moved_hits) / np.maximum(1, labels_of_candidate.sum() + moved_labels)
        )
        return f1_of_candidate - 2 * (hits.sum() - moved_hits) / np.maximum(1, labels.sum() - moved_labels)

    observed, random = gain(np.zeros((1, len(hits)), np.int64))[0], np.random.default_rng(0)
    as_good = 0
    for _ in range(PERMUTATIONS // PERMUTATIONS_AT_ONCE):
        exchanged = random.integers(0, 2, (PERMUTATIONS_AT_ONCE, len(hits)), np.int64)
        as_good += int((gain(exchanged) >= observed - 1e-12).sum())
    return MicroF1Comparison(
        current=multi_label.micro_f1(current, current_targets),
        candidate=multi_label.micro_f1(candidate, candidate_targets),
        p_value=(1 + as_good) / (1 + PERMUTATIONS),
    )


def renew(
    settings: TrainSettings,
    parts: tuple[LabelledTexts, LabelledTexts],
    models: str,
    name: str,
    test_data: str,
    margin: float,
    check_candidate: Callable[[str], None] = lambda path: None,
) -> Renewal:
    """Train a candidate, compare it with the current bundle, and promote or refuse it.

    Args:
        settings: How to train it.
        parts: The rows that these settings train and evaluate on.
        models: Folder of bundles.
        name: Name of the candidate's folder there.
        test_data: Labelled text to compare on.
        margin: Accuracy, or of several labels a row micro-F1, by which the candidate must be better.
        check_candidate: Raises `UserError` for the path of a candidate that the next night could not score with.
    """
    test = labelled.read(test_data, settings.columns, parts[0].scheme)
    train_candidate(settings, parts, models, name)
    current, candidate = registry.resolve(models), storage.join(models, name)  # it may have changed meanwhile
    if current == candidate:
        return Renewal(name, promoted=True, reason="another run has promoted it")
    comparison = compare(current, candidate, test, (text for part in parts for text in part.texts))
    promoted, reason = comparison.decide(margin)
    if promoted:
        try:
            check_candidate(candidate)
        except UserError as error:
            promoted, reason = False, f"{reason}; {error}"
    registry.record_decision(models, name, "promoted" if promoted else "refused", reason, current)
    return Renewal(name, promoted, reason)
