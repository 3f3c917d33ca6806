"""Run the commands from Python: keywords in, results out.

The keywords are the flags of the command of the same name, with underscores: `--text-column` is `text_column`. A
user's mistake raises `UserError` with the sentence that the command prints. A Ray that runs already is joined; else one
is started on this machine.
"""

import warnings
from typing import TYPE_CHECKING, Any

from sentiment_core.config import from_keywords
from sentiment_core.runtime.environment import variables_set

if TYPE_CHECKING:
    from sentiment_core.scoring.job import ScoreResult
    from sentiment_core.scoring.plan import ScorePlan
    from sentiment_core.scoring.verify import Findings
    from sentiment_core.training.job import TrainResult


def train(**settings: Any) -> "TrainResult":
    """Fine-tune an encoder on labelled text and write a calibrated model bundle.

    What the command would warn of, such as a model that has not learned, is a Python warning here.

    Args:
        **settings: Flags of `sentiment-core train`; `data`, `model` and `out` are required.

    Returns:
        The result: `place` (path of the bundle), `metrics` (on the evaluation rows), `log` (one record an epoch).

    Raises:
        UserError: The request cannot be carried out; nothing was started.
    """
    with variables_set():
        from sentiment_core.training import job
        from sentiment_core.training.settings import TrainSettings

        result = job.train(from_keywords(TrainSettings, "train", settings))
    for text in result.warnings:
        warnings.warn(text, stacklevel=2)
    return result


def evaluate(**settings: Any) -> dict[str, Any]:
    """Evaluate a bundle on labelled text.

    Args:
        **settings: Flags of `sentiment-core evaluate`; `model` and `data` are required.

    Returns:
        The metrics: `n`, `accuracy`, `macro_f1`, `ece`, `brier`, `confusion` (rows true, columns predicted), `labels`.
        Of a multi-label bundle `micro_f1`, `exact_match` and others in place of accuracy and confusion.

    Raises:
        UserError: The request cannot be carried out.
    """
    with variables_set():
        from sentiment_core import evaluation

        return evaluation.evaluate(from_keywords(evaluation.EvaluateSettings, "evaluate", settings)).to_json()


def score(**settings: Any) -> "ScoreResult | ScorePlan":
    """Score a Parquet corpus; the same call again does only what is missing.

    With `dry_run=True` nothing is scored: the plan is returned, whose `describe()` says what would be done.

    Args:
        **settings: Flags of `sentiment-core score`; `model`, `input` and `out` are required. Several models in one pass
            are a mapping, `model={"sentiment": "models/a", "topic": "models/b"}`.

    Returns:
        The result: `place` (path of the scored Parquet), `summary` (the content of `_summary.json`), `exit_code` (0:
        all done; 1: stopped; 3: some shards could not be scored).

    Raises:
        UserError: The request cannot be carried out; nothing was started.
    """
    with variables_set():
        from sentiment_core.scoring import job
        from sentiment_core.scoring.plan import plan_scoring
        from sentiment_core.scoring.settings import ScoreSettings

        parsed = from_keywords(ScoreSettings, "score", settings)
        plan = plan_scoring(parsed)
        return plan if parsed.dry_run else job.score(plan)


def verify(**settings: Any) -> "Findings":
    """Check that every input row was scored exactly once.

    Args:
        **settings: Flags of `sentiment-core verify`; `input` and `out` are required. Named models are a mapping, as for
            `score`.

    Returns:
        The findings: `exit_code` (0: all is well), lists of what is missing, doubled, stale, damaged or foreign.

    Raises:
        UserError: The input or the output does not exist.
    """
    with variables_set():
        from sentiment_core.scoring.verify import VerifySettings
        from sentiment_core.scoring.verify import verify as run

        return run(from_keywords(VerifySettings, "verify", settings))
