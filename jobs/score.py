"""Score a Parquet corpus with a model bundle; the same command again does only what is missing.

    python jobs/score.py --model models/reviews --input corpus/ --out scored/
    ray job submit --working-dir . -- python jobs/score.py --model s3://b/models/a --input s3://b/corpus --out s3://b/scored

Exit code 3: finished, but some shards could not be scored; they are listed, the others are.
"""

from sentiment_core.config import parse, run_job
from sentiment_core.scoring.job import ScoreSettings, prepare, score


def main() -> int:
    settings = parse(ScoreSettings, __doc__)
    work = prepare(settings)
    if settings.dry_run:
        print(work.describe())
        return 0
    scored = score(work)
    print(scored.report())
    return scored.exit_code


if __name__ == "__main__":
    run_job(main)
