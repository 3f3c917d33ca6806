"""Score what is new, verify it, compare it with past nights, write the night's record and pages, renew the model.

    python jobs/nightly.py --config nightly.yaml --dry-run
    python jobs/nightly.py --config nightly.yaml

All flags of jobs/score.py hold. Records and pages lie in OUT/_nights; open index.html there. Safe to start twice and to
start again. Exit code 0: done; 1: a fault; 2: the request is wrong; 3: some shards could not be scored; 4: done, but
someone should look.
"""

from sentiment_core.config import parse, run_job
from sentiment_core.nightly.job import NightlySettings, make_plan, nightly, report
from sentiment_core.nightly.record import AtWork


def main() -> int:
    settings = parse(NightlySettings, __doc__)
    if settings.dry_run:
        print(make_plan(settings).describe())
        return 0
    try:
        night = nightly(settings)
    except AtWork:
        print(f"another run is at work on {settings.out}; nothing done")
        return 0
    print(report(night))
    return night.exit_code or 0


if __name__ == "__main__":
    run_job(main)
