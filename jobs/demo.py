"""The whole circle on real text in a few minutes: fine-tune, evaluate, score 23,703 sentences, show the result.

    python jobs/demo.py

Leaves runs/demo/ with bundle/, corpus/, scored/ and report.html.
"""

from sentiment_core.config import parse, run_job
from sentiment_core.demo import DemoSettings, demo


def main() -> None:
    print(demo(parse(DemoSettings, __doc__)))


if __name__ == "__main__":
    run_job(main)
