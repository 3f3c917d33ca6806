"""Run `sentiment-core cascade` as a script, which `ray job submit` wants: same flags, same exit codes."""

from sentiment_core.cli import run_command

if __name__ == "__main__":
    run_command("cascade")
