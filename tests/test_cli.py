"""The command line: its help, its mistakes, and the ways to call it."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sentiment_core import __version__, cli
from sentiment_core.config import GROUPS
from sentiment_core.errors import EXIT_FAULT

REPO = Path(__file__).resolve().parents[1]


def run(*arguments: str, capsys) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


@pytest.fixture(autouse=True)
def own_process():
    """Restore what a command changes of its process: the environment and the answer to SIGTERM."""
    environment, on_stop = dict(os.environ), signal.getsignal(signal.SIGTERM)
    yield
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, on_stop)


def test_help_lists_every_command_with_a_line(capsys):
    code, out, _ = run("--help", capsys=capsys)
    assert code == 0
    for name, command in cli.COMMANDS.items():
        assert f"  {name:10}{command.summary}" in out


def test_version_is_printed(capsys):
    assert run("--version", capsys=capsys) == (0, f"sentiment-core {__version__}\n", "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_its_flags_in_groups(name, capsys):
    code, out, _ = run(name, "--help", capsys=capsys)
    assert code == 0
    assert out.startswith(f"usage: sentiment-core {name} [flags]\n\n{cli.COMMANDS[name].summary}\n")
    headings = re.findall(r"^([a-z ]+):$", out, re.MULTILINE)
    assert headings == [group for group in GROUPS if group in headings]
    assert "run" in headings
    assert "--config FILE.yaml" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "error: 'trian' is not a command; did you mean 'train'?\n"),
        (["train", "--epoch", "3"], "error: --epoch is not a flag of this command; did you mean '--epochs'?\n"),
        (
            ["promote"],
            "error: --models must be given, as flags or in the --config file. See --help.\n",
        ),
    ],
)
def test_a_mistake_is_one_sentence_that_suggests_the_near_one(arguments, sentence, capsys):
    assert run(*arguments, capsys=capsys) == (2, "", sentence)


def test_an_unknown_command_far_from_all_lists_them(capsys):
    code, _, err = run("frobnicate", capsys=capsys)
    assert code == 2
    assert all(name in err for name in cli.COMMANDS)


@pytest.mark.parametrize("caller", [["-m", "sentiment_core", "promote"], [str(REPO / "jobs" / "promote.py")]])
def test_module_and_job_script_run_the_same_command(caller, tmp_path):
    done = subprocess.run(
        [sys.executable, *caller, "--models", str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --models {tmp_path} has no current.json yet")


def test_a_fault_is_one_sentence_and_the_place_of_a_log(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        cli.run_and_exit(lambda: [].pop())
    assert stop.value.code == EXIT_FAULT
    (log,) = tmp_path.glob("sentiment-core-fault-*.log")
    line, end = capsys.readouterr().err.split("\n")
    assert line.startswith("fault: IndexError: pop from empty list. This is a fault of sentiment-core")
    assert str(log) in line
    assert end == ""
    assert "Traceback" in log.read_text()
    assert f"sentiment-core {__version__}, Python" in log.read_text()
