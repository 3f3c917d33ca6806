"""Run `python -m sentiment_core COMMAND`, which is `sentiment-core COMMAND`."""

from sentiment_core.cli import main

if __name__ == "__main__":
    main(prog="python -m sentiment_core")
