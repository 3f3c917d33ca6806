"""Evaluate a model bundle on labelled text: accuracy, macro-F1, calibration error, Brier score, confusion matrix.

    python jobs/evaluate.py --model models/reviews --data test.parquet --out metrics.json

The labels of the data are the bundle's, by name or number.
"""

from sentiment_core.config import parse, run_job
from sentiment_core.evaluation import EvaluateSettings, describe, evaluate


def main() -> None:
    print(describe(evaluate(parse(EvaluateSettings, __doc__))))


if __name__ == "__main__":
    run_job(main)
