"""Measure cascades of two bundles: share of rows handed over, accuracy, promises, and speed of whole jobs.

    python benchmarks/cascades.py --small models/small --large models/large --data unseen.parquet \\
        --test-data test.parquet --corpus corpus/ --name reviews

`--data` chooses the threshold of a cascade for each of `--max-losses`, once with its labels and once without. Figures
are those of `--test-data`, which neither model nor threshold has seen. The first lines are the curve: the accuracy if
the rows on which the small model is least sure are handed over. Then whole jobs score the corpus in turn: each model,
and each cascade with labels. Their speeds are rows by the wall-clock time of `score`, loading included.

Prints a table and writes benchmarks/results/cascades-NAME.json.
"""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sentiment_core.api import Classifier
from sentiment_core.cascading.job import make_cascade
from sentiment_core.cascading.settings import CascadeSettings
from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, check, parse, setting
from sentiment_core.data import labelled
from sentiment_core.data.readers import Columns
from sentiment_core.errors import UserError
from sentiment_core.model import bundle
from sentiment_core.model.cascade import CascadeRecord
from sentiment_core.runtime import hardware
from sentiment_core.scoring.job import score
from sentiment_core.scoring.plan import plan_scoring
from sentiment_core.scoring.settings import ScoreSettings

RESULTS = Path(__file__).parent / "results"
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 1.0)  # of rows handed over


@dataclass(frozen=True)
class CascadesSettings:
    """Settings of `cascades.py`."""

    name: str = setting(REQUIRED, "name of the data in the results", "NAME")
    small: str = setting(REQUIRED, "bundle of the fast model", "BUNDLE")
    large: str = setting(REQUIRED, "bundle of the accurate model", "BUNDLE")
    data: str = setting(REQUIRED, "labelled text that chooses the threshold", "D")
    test_data: str = setting(REQUIRED, "labelled text that the figures are of", "D")
    corpus: str = setting(REQUIRED, "Parquet that whole jobs score", "P")
    max_losses: tuple[str, ...] = setting(("0.01", "0.02", "0.04"), "--max-loss of each cascade", "P,P")
    rounds: int = setting(2, "whole jobs of each model")
    results: str = setting(str(RESULTS), "folder of the results", "DIR")

    def __post_init__(self) -> None:
        check(self.rounds >= 1, "rounds", self.rounds, "1 or more")


@dataclass(frozen=True)
class AnsweredRows:
    """Answers of both models to the test rows."""

    confidence: np.ndarray  # (n,) float32 of the small model
    small_right: np.ndarray  # (n,) bool
    large_right: np.ndarray
    same: np.ndarray  # both models give the same label

    def measure(self, escalated: np.ndarray) -> dict[str, float]:
        """Measure the cascade that hands these rows over, (n,) bool."""
        kept = ~escalated
        return {
            "share": float(escalated.mean()),
            "accuracy": float(np.where(escalated, self.large_right, self.small_right).mean()),
            "loss": float((kept & self.large_right & ~self.small_right).mean()),
            "disagreement": float((kept & ~self.same).mean()),
        }

    def measure_share(self, share: float) -> dict[str, float]:
        """Measure the cascade that hands over the share of rows on which the small model is least sure."""
        escalated = np.zeros(len(self.confidence), bool)
        escalated[np.argsort(self.confidence, kind="stable")[: round(share * len(escalated))]] = True
        return self.measure(escalated)


def answer_test_rows(settings: CascadesSettings, large: Classifier) -> AnsweredRows:
    """Let both models answer the test rows. Raises UserError."""
    small = Classifier.load(settings.small)
    test = labelled.read(settings.test_data, Columns(large.info.text_columns), large.info.label_scheme)
    own = {model: model.predict_proba(test.texts) for model in (small, large)}
    order = [small.info.labels.index(label) for label in large.info.labels]
    decided = {small: own[small][:, order].argmax(axis=1), large: own[large].argmax(axis=1)}
    return AnsweredRows(
        own[small].max(axis=1),
        decided[small] == test.labels,
        decided[large] == test.labels,
        decided[small] == decided[large],
    )


def choose(settings: CascadesSettings, data: str, max_loss: float, out: str) -> CascadeRecord | str:
    """Make a cascade; return its record, or why there is none."""
    try:
        make_cascade(CascadeSettings(settings.small, settings.large, data, out, max_loss=max_loss))
    except UserError as refusal:
        return str(refusal)
    return bundle.read_info(out).cascade


def measure(settings: CascadesSettings) -> dict[str, Any]:
    """Make the cascades, measure them and time whole jobs. Returns the report. Raises UserError."""
    large = Classifier.load(settings.large)
    test = answer_test_rows(settings, large)
    report: dict[str, Any] = {
        "name": settings.name,
        "chip": hardware.chip_id(hardware.device()),
        "test_rows": len(test.confidence),
        "at_shares": [test.measure_share(share) for share in SHARES],
        "promises": [],
    }
    with tempfile.TemporaryDirectory() as work:
        models = {"small": settings.small, "large": settings.large}
        without_labels = f"{work}/texts.parquet"
        texts = labelled.read_texts(settings.data, Columns(large.info.text_columns))
        pq.write_table(pa.table({"text": texts}), without_labels)
        for has_labels, data in ((True, settings.data), (False, without_labels)):
            for max_loss in map(float, settings.max_losses):
                out = f"{work}/cascade-{has_labels}-{max_loss:g}"
                record = choose(settings, data, max_loss, out)
                line: dict[str, Any] = {"labels": has_labels, "max_loss": max_loss}
                if isinstance(record, str):
                    report["promises"].append(line | {"refused": record.replace(work, "")})
                    continue
                shown = test.measure(test.confidence < np.float32(record.threshold))
                chosen = {"rows": record.rows, "threshold": record.threshold, "share_of_data": record.escalated_share}
                report["promises"].append(line | chosen | shown)
                if has_labels:
                    models[f"--max-loss {max_loss:g}"] = out
        report["jobs"] = time_jobs(settings, models, work)
    path = Path(settings.results) / f"cascades-{settings.name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return report


def time_jobs(settings: CascadesSettings, models: dict[str, str], work: str) -> dict[str, dict[str, Any]]:
    """Score the corpus by each model in turn; return seconds and rows/s of each, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    shares: dict[str, float | None] = {}
    rows = 0
    for turn in range(settings.rounds):
        for number, (name, model) in enumerate(models.items()):
            out = f"{work}/scored-{number}-{turn}"
            started = time.monotonic()
            score(plan_scoring(ScoreSettings(model=model, input=settings.corpus, out=out, keep=())))
            seconds[name].append(time.monotonic() - started)
            summary = json.loads(Path(out, "_summary.json").read_text())
            rows, shares[name] = summary["rows"], summary.get("escalated_share")
    return {
        name: {"seconds": own, "rows_per_second": rows / float(np.median(own)), "escalated_share": shares[name]}
        for name, own in seconds.items()
    }


def format_table(report: dict[str, Any]) -> str:
    """Return tables of the curve, the promises and the whole jobs."""
    names = ("share", "accuracy", "loss", "disagreement")
    lines = [f"{report['test_rows']:,} test rows", "  ".join(f"{name:>12}" for name in names)]
    lines += ["  ".join(f"{point[name]:12.4f}" for name in names) for point in report["at_shares"]]
    for line in report["promises"]:
        kind = "labels" if line["labels"] else "disagreement"
        figures = line.get("refused") or "  ".join(f"{name} {line[name]:.4f}" for name in names)
        lines.append(f"--max-loss {line['max_loss']:g} by {kind}: {figures}")
    large = report["jobs"]["large"]["rows_per_second"]
    for name, job in report["jobs"].items():
        handed = "" if job["escalated_share"] is None else f", {100 * job['escalated_share']:.1f} % handed over"
        speed = job["rows_per_second"]
        lines.append(f"{name}: {speed:,.1f} rows/s, {speed / large:.2f} times the large model{handed}")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    print(format_table(measure(parse(CascadesSettings, __doc__))))


if __name__ == "__main__":
    run_and_exit(main)
