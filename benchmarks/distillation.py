"""Compare students of a teacher with training on labels alone: accuracy, agreement, calibration, speed.

    python benchmarks/distillation.py --teacher models/large --texts corpus/ --data train.parquet \\
        --eval-data dev.parquet --test-data test.parquet --model ENCODER --layers 3 --name reviews

The arm `labels` trains on labels alone, `teacher` learns the teacher's probabilities of the texts, `both` learns both.
Each arm runs for the whole encoder and for each number of layers, with each seed. The teacher scores the texts once.
The same evaluation rows choose the epoch and calibrate in all arms. Figures are those of the test rows, which no
training reads; neither may the teacher have seen them.

Prints a table, and writes all figures to benchmarks/results/distillation-NAME.json after each training. Trainings that
have figures there are skipped.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sentiment_core.api import Classifier
from sentiment_core.cli import run_and_exit
from sentiment_core.config import REQUIRED, check, parse, setting
from sentiment_core.data import labelled
from sentiment_core.data.labelled import LabelledTexts
from sentiment_core.data.readers import Columns
from sentiment_core.distillation.comparison import measure_speed
from sentiment_core.distillation.job import distill
from sentiment_core.distillation.settings import DistillSettings
from sentiment_core.runtime import hardware
from sentiment_core.scoring.job import score
from sentiment_core.scoring.plan import plan_scoring
from sentiment_core.scoring.settings import ScoreSettings
from sentiment_core.training.job import train
from sentiment_core.training.settings import TrainSettings

RESULTS = Path(__file__).parent / "results"
LABELS, TEACHER, BOTH = "labels", "teacher", "both"  # arms


@dataclass(frozen=True)
class DistillationSettings:
    """Settings of `distillation.py`."""

    name: str = setting(REQUIRED, "name of the data in the results", "NAME")
    teacher: str = setting(REQUIRED, "bundle that teaches", "MODEL")
    texts: str = setting(REQUIRED, "Parquet with texts that the teacher answers", "P")
    data: str = setting(REQUIRED, "labelled text to train on, as for jobs/train.py", "D")
    eval_data: str = setting(REQUIRED, "labelled text that chooses the epoch and calibrates", "D")
    test_data: str = setting(REQUIRED, "labelled text that the figures are of", "D")
    model: str = setting(REQUIRED, "the encoder of the students", "DIR")
    layers: tuple[str, ...] = setting((), "numbers of layers, besides the whole encoder", "N,N")
    seeds: int = setting(3, "trainings of each arm")
    epochs: int | None = setting(None, "epochs of a training; default: by the recipe")
    adversarial: float | None = setting(None, "adversarial steps of a training; default: by the recipe")
    max_length: int = setting(128, "tokens that students read of a text")
    scored: str | None = setting(None, "folder of the teacher's answers; is read again if it is there", "DIR")
    results: str = setting(str(RESULTS), "folder of the results", "DIR")

    def __post_init__(self) -> None:
        check(self.seeds >= 1, "seeds", self.seeds, "1 or more")
        check(all(number.isdigit() for number in self.layers), "layers", ",".join(self.layers), "whole numbers")


def list_runs(settings: DistillationSettings) -> Iterator[dict[str, Any]]:
    """Yield what tells the trainings apart."""
    for seed in range(settings.seeds):
        for layers in (None, *map(int, settings.layers)):
            for arm in (LABELS, TEACHER, BOTH):
                yield {"arm": arm, "layers": layers, "seed": seed}


def run(settings: DistillationSettings, key: dict[str, Any], scored: str, out: str) -> None:
    """Train a student into the bundle `out`; `scored` has the texts with the teacher's answers."""
    common: dict[str, Any] = {
        "model": settings.model,
        "out": out,
        "eval_data": settings.eval_data,
        "epochs": settings.epochs,
        "adversarial": settings.adversarial,
        "max_length": settings.max_length,
        "layers": key["layers"],
        "seed": key["seed"],
    }
    if key["arm"] == LABELS:
        train(TrainSettings(data=settings.data, **common))
    else:
        distill(DistillSettings(texts=scored, data=settings.data if key["arm"] == BOTH else None, **common))


def evaluate(classifier: Classifier, test: LabelledTexts, teacher: np.ndarray) -> dict[str, float]:
    """Measure a model on the test rows; `teacher` has the teacher's probabilities of them."""
    objective, probabilities = classifier.info.objective, classifier.predict_proba(test.texts)
    metrics = objective.evaluate(probabilities, test.labels, test.label_names)
    return {
        "accuracy": metrics.accuracy,
        "ece": metrics.ece,
        "brier": metrics.brier,
        "agreement": float(objective.same_decision(probabilities, teacher).mean()),
        "rows_per_second": measure_speed(classifier, test.texts),
    }


def measure(settings: DistillationSettings) -> dict[str, Any]:
    """Run the trainings that have no figures yet. Returns the report. Raises UserError."""
    path = Path(settings.results) / f"distillation-{settings.name}.json"
    report = json.loads(path.read_text()) if path.exists() else {"runs": []}
    teacher = Classifier.load(settings.teacher)
    test = labelled.read(settings.test_data, Columns(teacher.info.text_columns), teacher.info.label_scheme)
    probabilities = teacher.predict_proba(test.texts)
    report |= {
        "name": settings.name,
        "chip": hardware.chip_id(hardware.device()),
        "test_rows": len(test),
        "teacher": evaluate(teacher, test, probabilities),
    }
    columns = teacher.info.text_columns
    with tempfile.TemporaryDirectory() as work:
        scored = settings.scored or str(Path(work, "scored"))
        scoring = ScoreSettings(
            model=settings.teacher, input=settings.texts, out=scored, probabilities=True, keep=columns
        )
        for key in list_runs(settings):
            if any(key.items() <= line.items() for line in report["runs"]):
                continue
            score(plan_scoring(scoring))  # only what has no output yet
            started, out = time.monotonic(), str(Path(work, f"{key['arm']}-{key['layers']}-{key['seed']}"))
            run(settings, key, scored, out)
            line = key | evaluate(Classifier.load(out), test, probabilities)
            report["runs"].append(line | {"seconds": time.monotonic() - started})
            path.write_text(json.dumps(report, indent=2) + "\n")
            print(f"{key}: accuracy {line['accuracy']:.4f}, agreement {line['agreement']:.4f}", flush=True)
    return report


def format_table(report: dict[str, Any]) -> str:
    """Return a table of means and standard deviations over the seeds."""
    names = ("accuracy", "agreement", "ece", "rows_per_second")
    table = [f"{'arm':8}  layers  " + "  ".join(f"{name:>17}" for name in names)]
    groups: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for line in [report["teacher"] | {"arm": "(itself)", "layers": None}, *report["runs"]]:
        groups.setdefault((line["arm"], line["layers"]), []).append(line)
    for (arm, layers), lines in groups.items():
        cells = [_describe([line[name] for line in lines]) for name in names]
        table.append(f"{arm:8}  {layers or 'all':>6}  " + "  ".join(cells))
    return "\n".join(table)


def _describe(values: Sequence[float]) -> str:
    return f"{np.mean(values):8.4f} ± {np.std(values, ddof=int(len(values) > 1)):6.4f}"


def main() -> None:
    """Run the trainings that have no figures yet, and print the table."""
    print(format_table(measure(parse(DistillationSettings, __doc__))))


if __name__ == "__main__":
    run_and_exit(main)
