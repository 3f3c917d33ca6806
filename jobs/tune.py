"""Search for the settings that suit labelled text best, and keep the best bundle.

    python jobs/tune.py --data reviews.csv --model distilbert-base-uncased --out models/reviews --trials 16
    python jobs/tune.py ... --search lr=1e-5..2e-4,batch_size=16/32,dropout=0/0.1 --epochs 4

Every trial is a training as jobs/train.py does it; those that fall behind are stopped early. All its flags may be
given; they hold for what is not searched for. Whatever stops the search, the same command goes on with it.
"""

from sentiment_core.config import parse, run_job
from sentiment_core.training.tuning import TuneSettings, tune


def main() -> None:
    print(tune(parse(TuneSettings, __doc__)))


if __name__ == "__main__":
    run_job(main)
