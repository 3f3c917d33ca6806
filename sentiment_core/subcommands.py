"""The commands of `sentiment-core`.

A command is an entry of `COMMANDS`: what `--help` says, its settings, and a function from settings to an exit code.
Modules are imported when a command runs, so that `--help` and mistakes take no seconds.
"""

import contextlib
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sentiment_core.errors import EXIT_OK


@dataclass(frozen=True)
class Command:
    """A subcommand of `sentiment-core`."""

    summary: str  # one line in the list of commands
    details: str  # examples and exit codes, below the summary in its own --help
    settings: str  # "module:class" of its settings
    run: Callable[[Any], int]

    @property
    def settings_class(self) -> type:
        """The dataclass of its settings; imports its module."""
        module, _, name = self.settings.partition(":")
        return getattr(import_module(module), name)

    @property
    def description(self) -> str:
        """Return the text that `--help` shows above the flags."""
        return f"{self.summary}\n\n{self.details}"


def _train(settings: Any) -> int:
    from sentiment_core.training.job import train

    print(train(settings).summary())
    return EXIT_OK


def _tune(settings: Any) -> int:
    from sentiment_core.training.tuning import tune

    print(tune(settings))
    return EXIT_OK


def _distill(settings: Any) -> int:
    from sentiment_core.distillation.job import distill
    from sentiment_core.distillation.teachers import ScoringStopped

    try:
        print(distill(settings).summary())
    except ScoringStopped as stop:
        print(f"error: {stop}", file=sys.stderr)
        return stop.exit_code
    return EXIT_OK


def _evaluate(settings: Any) -> int:
    from sentiment_core.evaluation import describe_evaluation, evaluate

    print(describe_evaluation(evaluate(settings)))
    return EXIT_OK


def _adopt(settings: Any) -> int:
    from sentiment_core.adoption import adopt

    print(adopt(settings).summary())
    return EXIT_OK


def _cascade(settings: Any) -> int:
    from sentiment_core.cascading.job import make_cascade

    print(make_cascade(settings).summary())
    return EXIT_OK


def _score(settings: Any) -> int:
    from sentiment_core.scoring.job import score
    from sentiment_core.scoring.plan import plan_scoring

    plan = plan_scoring(settings)
    if settings.dry_run:
        print(plan.describe())
        return EXIT_OK
    for line in plan.describe_cascades():
        print(line, flush=True)
    result = score(plan)
    print(result.report())
    return result.exit_code


def _shares(settings: Any) -> int:
    from sentiment_core.analysis.shares import shares

    print(shares(settings).report())
    return EXIT_OK


def _verify(settings: Any) -> int:
    from sentiment_core.scoring.verify import verify

    findings = verify(settings)
    print(findings.report())
    return findings.exit_code


def _sample(settings: Any) -> int:
    from sentiment_core.analysis.sample import sample

    print(sample(settings).report())
    return EXIT_OK


def _nightly(settings: Any) -> int:
    from sentiment_core.nightly.job import describe_night, make_plan, nightly
    from sentiment_core.nightly.lock import AlreadyRunning

    if settings.dry_run:
        print(make_plan(settings).describe())
        return EXIT_OK
    try:
        night = nightly(settings)
    except AlreadyRunning:
        print(f"another run is at work on {settings.out}; nothing was done")
        return EXIT_OK
    print(describe_night(night))
    return night.exit_code or EXIT_OK


def _promote(settings: Any) -> int:
    from sentiment_core.model.registry import promote

    print(promote(settings))
    return EXIT_OK


def _serve(settings: Any) -> int:
    from sentiment_core.serving.app import start, stop

    print(f"serving on {start(settings)}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    stop()
    print("stopped")
    return EXIT_OK


def _demo(settings: Any) -> int:
    from sentiment_core.demo import demo

    print(demo(settings))
    return EXIT_OK


COMMANDS = {
    "train": Command(
        "Fine-tune an encoder on labelled text and write a calibrated model bundle.",
        """\
  sentiment-core train --data reviews.csv --model distilbert-base-uncased --out models/reviews

The bundle is a Hugging Face model folder with calibrated confidences, a model card and a report. If a training is
killed, rerun the same command to resume it.""",
        "sentiment_core.training.settings:TrainSettings",
        _train,
    ),
    "tune": Command(
        "Search for good training settings and keep the best bundle.",
        """\
  sentiment-core tune --data reviews.csv --model distilbert-base-uncased --out models/reviews --trials 16
  sentiment-core tune ... --search lr=1e-5..2e-4,batch_size=16/32 --epochs 4

Every trial is a training; trials that fall behind are stopped early. All flags of `train` may be given and hold for
what is not searched. If a search is killed, rerun the same command to resume it.""",
        "sentiment_core.training.tuning:TuneSettings",
        _tune,
    ),
    "adopt": Command(
        "Make a bundle of a Hugging Face classifier; with labelled text calibrate it.",
        """\
  sentiment-core adopt --model distilbert-base-uncased-finetuned-sst-2-english --out models/sst2 --data reviews.csv

`score`, `evaluate`, `nightly` and `serve` also take such a classifier as it is. A bundle has its metrics, calibrated
confidences, and the statistics from which `nightly` measures drift.""",
        "sentiment_core.adoption:AdoptSettings",
        _adopt,
    ),
    "distill": Command(
        "Train a small, fast student by a teacher's answers on texts without labels.",
        """\
  sentiment-core distill --teacher models/large --texts corpus/ --model distilbert-base-uncased --out models/small
  sentiment-core distill --texts answers.jsonl --model distilbert-base-uncased --layers 3 --out models/small

The teacher scores the texts, and the student learns its probabilities, with --data labels, too. Answers may also be
there already, such as those of an LLM. If it is killed, rerun the same command to resume it.""",
        "sentiment_core.distillation.settings:DistillSettings",
        _distill,
    ),
    "evaluate": Command(
        "Evaluate a bundle on labelled text: accuracy, F1, calibration, confusion matrix.",
        """\
  sentiment-core evaluate --model models/reviews --data test.parquet --out metrics.json
  sentiment-core evaluate --model models/reviews --data test.parquet --target-accuracy 0.95

The labels of the data are the bundle's, by name or by number. --target-accuracy finds the confidence threshold above
which so many labels are right, guaranteed with --certainty.""",
        "sentiment_core.evaluation:EvaluateSettings",
        _evaluate,
    ),
    "cascade": Command(
        "Join a fast and an accurate bundle: the accurate one answers where the fast one is unsure.",
        """\
  sentiment-core cascade --small models/small --large models/large --data unseen.csv --out models/cascade

The result is a bundle wherever one is taken. At most --max-loss of rows like those of --data are ones that the large
model gets right and the cascade gets wrong; --certainty is how sure that is. Exit code 2 also for nothing to gain.""",
        "sentiment_core.cascading.settings:CascadeSettings",
        _cascade,
    ),
    "score": Command(
        "Score a Parquet corpus; the same command again does only what is missing.",
        """\
  sentiment-core score --model models/reviews --input corpus/ --out scored/
  ray job submit --working-dir . -- python jobs/score.py --model s3://b/models/a --input s3://b/corpus --out s3://b/out

Exit code 3: finished, but some shards could not be scored. They are listed; all others are scored.""",
        "sentiment_core.scoring.settings:ScoreSettings",
        _score,
    ),
    "verify": Command(
        "Check that every input row was scored exactly once.",
        """\
  sentiment-core verify --input corpus/ --out scored/
  sentiment-core verify --input corpus/ --out scored/ --sample 10000

Lists what is missing, doubled, stale, damaged or foreign. --sample and --full also score again and compare.
Exit code 0: all is well. 1: it is not. 3: it is, but some shards are unreadable.""",
        "sentiment_core.scoring.verify:VerifySettings",
        _verify,
    ),
    "sample": Command(
        "Draw scored rows for people to label: for shares of the corpus, or for training.",
        """\
  sentiment-core sample --scored scored/ --rows 300 --to sample.csv
  sentiment-core sample --scored scored/ --rows 200 --to next.csv --for training --exclude sample.csv

The CSV file opens in a spreadsheet. Fill its column label and leave the others as they are. A sample for shares stands
for the whole corpus. A sample for training has uncertain rows that differ, from which the model learns most.""",
        "sentiment_core.analysis.sample:SampleSettings",
        _sample,
    ),
    "shares": Command(
        "Report the shares of labels in a scored corpus, with intervals from a labelled sample.",
        """\
  sentiment-core shares --scored scored/ --labelled sample.csv --by month --to shares.json
  sentiment-core shares --scored scored/

Counting predicted labels is biased. With a sample of `sample --for shares` the bias is measured and removed. Without
one, counts are corrected by the errors on the model's evaluation rows, and have no interval.""",
        "sentiment_core.analysis.shares:SharesSettings",
        _shares,
    ),
    "nightly": Command(
        "Score what is new, verify it, compare it with past nights, renew the model.",
        """\
  sentiment-core nightly --config nightly.yaml --dry-run
  sentiment-core nightly --config nightly.yaml

All flags of `score` hold. Records and pages are in OUT/_nights; open index.html there. It is safe to start twice and
to start again. Exit code 0: done. 1: a fault. 2: the request is wrong. 3: some shards could not be scored. 4: done, but
someone should look.""",
        "sentiment_core.nightly.settings:NightlySettings",
        _nightly,
    ),
    "promote": Command(
        "Make a bundle the current one of a folder of bundles, roll back, or show the history.",
        """\
  sentiment-core promote --models models/reviews --bundle first
  sentiment-core promote --models models/reviews --back
  sentiment-core promote --models models/reviews

The other commands take such a folder as --model and use its current bundle.""",
        "sentiment_core.model.registry:PromoteSettings",
        _promote,
    ),
    "serve": Command(
        "Serve a bundle over HTTP: POST texts, get labels and calibrated confidences.",
        """\
  sentiment-core serve --model models/reviews
  curl -H 'Content-Type: application/json' -d '{"texts": ["What a film!"]}' http://127.0.0.1:8000/score

POST /score, POST /explain, GET /healthz, GET / (a page to try it), GET /openapi.json. Ctrl-C ends it.""",
        "sentiment_core.serving.settings:ServeSettings",
        _serve,
    ),
    "demo": Command(
        "Train, evaluate and score real text in a few minutes, and show the result.",
        """\
  sentiment-core demo

Leaves runs/demo/ with bundle/, corpus/, scored/ and report.html. Needs the package index for its texts (2.4 MB).""",
        "sentiment_core.demo:DemoSettings",
        _demo,
    ),
}
