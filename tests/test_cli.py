"""The command line: its help, its mistakes, and the ways to call it."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sentiment_core import __version__, cli
from sentiment_core.config import GROUPS
from sentiment_core.errors import EXIT_FAULT
from sentiment_core.subcommands import COMMANDS

REPO = Path(__file__).resolve().parents[1]


def test_help_lists_every_command_with_a_line(command):
    code, out, _ = command("--help")
    assert code == 0
    for name, entry in COMMANDS.items():
        assert f"  {name:10}{entry.summary}" in out


def test_version_is_printed(command):
    assert command("--version") == (0, f"sentiment-core {__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_flags_in_groups(name, command):
    code, out, _ = command(name, "--help")
    assert code == 0
    assert out.startswith(f"usage: sentiment-core {name} [flags]\n\n{COMMANDS[name].summary}\n")
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
def test_a_mistake_is_one_sentence_that_suggests_the_near_one(arguments, sentence, command):
    assert command(*arguments) == (2, "", sentence)


def test_an_unknown_command_far_from_all_lists_them(command):
    code, _, err = command("frobnicate")
    assert code == 2
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize("caller", [["-m", "sentiment_core", "promote"], [str(REPO / "jobs" / "promote.py")]])
def test_module_and_job_script_run_the_same_command(caller, tmp_path):
    done = subprocess.run(
        [sys.executable, *caller, "--models", str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --models {tmp_path} has no current.json yet")


def test_a_fault_is_one_sentence_and_the_place_of_a_log(own_process, tmp_path, capsys, monkeypatch):
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
