"""Fine-tune a BERT-family encoder on labelled text and write a calibrated model bundle.

    python jobs/train.py --data reviews.csv --model distilbert-base-uncased --out models/reviews
    ray job submit --working-dir . -- python jobs/train.py --data s3://bucket/labelled/ --model ... --out s3://bucket/models/a

The bundle is a Hugging Face model folder that scores, evaluates and loads elsewhere with calibrated confidences.
"""

from sentiment_core.config import parse, run_job
from sentiment_core.training.job import TrainSettings, train


def main() -> None:
    trained = train(parse(TrainSettings, __doc__))
    print(trained.summary())


if __name__ == "__main__":
    run_job(main)
