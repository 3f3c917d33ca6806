"""Check that every input row was scored exactly once: says what is missing, doubled, stale, damaged or foreign; with
--sample or --full also scores again and says what is different.

    python jobs/verify.py --input corpus/ --out scored/
    python jobs/verify.py --input corpus/ --out scored/ --sample 10000

Exit code 0: all is well. 1: it is not. 3: it is for all readable shards, but some shards are unreadable.
"""

from sentiment_core.config import parse, run_job
from sentiment_core.scoring.verify import VerifySettings, verify


def main() -> int:
    findings = verify(parse(VerifySettings, __doc__))
    print(findings.report())
    return findings.exit_code


if __name__ == "__main__":
    run_job(main)
