"""A bundle's records and a series of nights, made up, as the pages for people get them."""

from dataclasses import replace

import numpy as np

from sentiment_core.analysis.records import Estimate, Share
from sentiment_core.analysis.shares import CORRECTED, SAMPLED
from sentiment_core.data.shards import FailedShard
from sentiment_core.model import metrics
from sentiment_core.model.bundle import BundleInfo
from sentiment_core.model.records import (
    Calibration,
    EpochRecord,
    EvaluationScores,
    GuaranteeGrid,
    Int8Check,
    Metrics,
    ReferenceStatistics,
    TrainingRecord,
)
from sentiment_core.nightly import drift
from sentiment_core.nightly.drift import Profile
from sentiment_core.nightly.record import (
    PAST,
    REFERENCE,
    WHOLE,
    Night,
    NightRun,
    Renewal,
    SharesReport,
    baseline_nights,
    baseline_profile,
)

LABELS = ["negative", "neutral", "positive"]
COMMAND = "python jobs/train.py --data reviews.csv --model distilbert-base-uncased --out models/reviews"
MISTAKES = [
    {"label": "negative", "predicted": "positive", "confidence": 0.991, "text": "Great, <b>another</b> sequel. " * 9},
    {"label": "neutral", "predicted": "positive", "confidence": 0.964, "text": "It runs for two hours & a half."},
]


def held_out_metrics(rows: int = 900, labels: list[str] = LABELS, seed: int = 0) -> Metrics:
    """Metrics of made-up predictions, most of them right."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, len(labels), rows)
    logits = rng.normal(size=(rows, len(labels))) + 2 * np.eye(len(labels))[targets]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return metrics.evaluate(probabilities, targets, labels)


def bundle_info(data: str = "reviews.csv", revision: str | None = None) -> BundleInfo:
    """What a bundle says of itself after a training. With a `revision`, encoder and data are from the hub."""
    encoder = "distilbert/distilbert-base-uncased" if revision else "encoders/distilbert"
    origin = {"place": data, "rows": 9_000, "dropped": {}, "truncated_rows": 45}
    origin |= {"revision": revision} if revision else {"files": 1}
    return BundleInfo(
        head="standard",
        labels=LABELS,
        max_length=256,
        metrics=replace(held_out_metrics(), mae=0.25),
        calibration=Calibration(temperature=1.3125, rows=900, ece_before=0.0625, ece_cross_fitted=0.03125),
        training=TrainingRecord.from_json(
            {
                "settings": {"batch_size": 32, "lr": 2e-5, "head_lr": 1e-4, "out": "models/reviews", "eval_data": None},
                "encoder": {"name": encoder, "revision": revision},
                "data": origin | {"train_rows": 8_100, "fingerprint": "c0ffee"},
                "eval_data": origin | {"eval_rows": 900, "fingerprint": "decaf"},
                "label_shares": {"negative": 0.25, "neutral": 0.125, "positive": 0.625},
                "best_epoch": 2,
                "epochs": 3,
                "device": "AMD EPYC",
                "dtype": "bfloat16",
                "rows_per_second": 168.5,
                "seconds": 152.25,
            }
        ),
        reference=ReferenceStatistics.from_json(
            {
                "rows": 900,
                "predicted_shares": {"negative": 0.3, "neutral": 0.1, "positive": 0.6},
                "confidence_histogram": [0] * 8 + [20, 30, 40, 40, 50, 60, 60, 80, 100, 120, 140, 160],
                "tokens": 22_500,
                "tokens_quantiles": {"0.05": 6.0, "0.25": 12.0, "0.5": 19.0, "0.75": 30.0, "0.95": 61.0},
                "unknown_token_share": 0.0025,
            }
        ),
        int8=Int8Check(
            agreement=0.9975,
            rows=9_000,
            accuracy=0.8425,
            float32_accuracy=0.845,
            accuracy_rows=900,
            layers=34,
            all_layers=36,
        ),
        guarantee=GuaranteeGrid(
            rows=900,
            comparisons=3,
            min_confidence=[1 - i / 32 for i in range(1, 20)] + [0.0],
            rows_above=[45 * i for i in range(1, 21)],
            right_above=[45 * i - 1 - 12 * max(0, i - 7) for i in range(1, 21)],
        ),
    )


def epoch_log() -> list[EpochRecord]:
    """The records of three epochs, the second of which was kept."""
    rng = np.random.default_rng(0)
    log = []
    for epoch, (loss, accuracy) in enumerate([(0.50, 0.80), (0.40, 0.85), (0.45, 0.84)], 1):
        losses = (1.1 / epoch + rng.uniform(0, 0.2, 250)).tolist()
        scores = EvaluationScores(loss, accuracy, macro_f1=accuracy - 0.05, ece=0.05)
        log.append(EpochRecord(epoch, losses, 48.0, 8_100, scores, accuracy, "AMD EPYC", "float32"))
    return log


def nights(number: int = 20) -> list[Night]:
    """Nights of two partitions. The last one drifted, has a failed shard and renewed the model."""
    rng = np.random.default_rng(0)
    reference = Profile(
        900, {drift.LABELS: [270.0, 90, 540], drift.CONFIDENCES: [0.0] * 8 + [*map(float, range(20, 32))]}
    )
    past: list[Night] = []
    for day in range(1, number + 1):
        drifted = day == number
        halves = [_profile(rng, 30_000, shift=3 * drifted) for _ in range(2)]
        night = Night(
            f"2026-09-{day:02}",
            state="done",
            exit_code=4 if drifted else 0,
            model="models/reviews/second",
            bundle="4f2d" * 16,
            tokens_by="a" * 64,
            labels=LABELS,
            rows=60_000,
            left=1_250 * drifted,
            corpus_rows=60_000 * day,
            tokens=1_900_000,
            verified={"missing": 0, "doubled": 0, "stale": 0, "orphaned": 0, "unreadable": int(drifted)},
            profile=halves[0] + halves[1],
            reference=reference,
            partitions={f"kind={name}": half for name, half in zip(("<tweets>", "b"), halves, strict=True)},
            runs=[
                NightRun(
                    begun=f"2026-09-{day:02}T02:00:00+00:00",
                    seconds=241.5,
                    outcome=f"exit code {4 if drifted else 0}",
                    rows=60_000,
                    rows_per_second=250.5 + day,
                    computed_by=["openvino bfloat16, 2 threads"],
                )
            ],
        )
        night.comparisons = drift.compare(halves[0] + halves[1], reference, WHOLE, REFERENCE, 0.25)
        baseline = baseline_profile(baseline_nights(past), night)
        night.comparisons += drift.compare(halves[0] + halves[1], baseline, WHOLE, PAST, 0.25)
        if drifted:
            night.alarms = [f"drift: {comparison}" for comparison in night.comparisons if comparison.drifted]
            night.alarms.append("scoring stopped: <script>alert('x')</script>")
            night.failed_shards = [FailedShard("kind=b/part-7.parquet", "Couldn't deserialize thrift: damaged")]
            night.shares = _shares()
            night.renewal = Renewal("20260920-c0ffee", promoted=True, reason="accuracy 0.91, before 0.89")
        past.append(night)
    return past


def _shares() -> SharesReport:
    """Shares of two days: one that a sample was drawn from, and one that came later."""
    sampled = [(0.312, 0.351, 0.297, 0.405), (0.118, 0.102, 0.061, 0.143), (0.570, 0.547, 0.489, 0.605)]
    corrected = [(0.402, 0.455), (0.101, 0.083), (0.497, 0.462)]
    accuracy = Estimate(0.874, 0.821, 0.927)
    shares = [
        Share({"day": "2026-09-01"}, label, 60_000, counted, estimate, low, high, SAMPLED, 50, accuracy)
        for label, (counted, estimate, low, high) in zip(LABELS, sampled, strict=True)
    ]
    note = "the sample was not drawn from all of these rows; draw a new one for an interval"
    for by in ({}, {"day": "2026-09-02"}):
        shares += [
            Share(by, label, 60_000, counted, estimate, None, None, CORRECTED, note=note)
            for label, (counted, estimate) in zip(LABELS, corrected, strict=True)
        ]
    shares.sort(key=lambda share: len(share.by))
    due = "the sample was drawn from 60,000 rows, and the corpus has 120,000 rows with text now"
    return SharesReport(shares, 0.95, ["250 rows of the corpus are not scored yet; they are in no share"], due)


def _profile(rng: np.random.Generator, rows: int, shift: int) -> Profile:
    """The counts of `rows` random texts, `shift` powers of two longer than usual."""
    lengths = np.bincount(np.minimum(rng.poisson(4, rows) + shift, 14), minlength=15)
    confidences = np.bincount((19 - np.minimum(rng.poisson(4, rows), 11)), minlength=20)
    labels = rng.multinomial(rows, [0.3, 0.1, 0.6])
    return Profile(
        rows,
        {
            drift.LABELS: [*map(float, labels)],
            drift.CONFIDENCES: [*map(float, confidences)],
            drift.LENGTHS: [*map(float, lengths)],
        },
        {drift.UNKNOWN: (100.0, 950_000.0, 10.0)},
    )
