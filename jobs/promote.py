"""Make a bundle the current one of a folder of bundles, go back to the one before, or show what was decided when.

    python jobs/promote.py --models models/reviews --bundle first
    python jobs/promote.py --models models/reviews --back
    python jobs/promote.py --models models/reviews

The other jobs take such a folder as --model, and use its current bundle.
"""

from sentiment_core.config import parse, run_job
from sentiment_core.model.registry import PromoteSettings, promote


def main() -> None:
    print(promote(parse(PromoteSettings, __doc__)))


if __name__ == "__main__":
    run_job(main)
