"""Run the jobs as commands: exit codes, and one clear sentence on stderr for a user's mistake."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.ray
REPO = Path(__file__).resolve().parents[1]
CORPUS_AND_OUT = ["--input", "{corpus}", "--out", "{out}"]


def run(job: str, *arguments: object, cwd: Path = REPO) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / "jobs" / job), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_help_describes_every_flag():
    done = run("score.py", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: python jobs/score.py [flags]")
    assert "--config FILE.yaml" in done.stdout


@pytest.fixture
def corpus(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["good"], "n": [1]}), tmp_path / "in" / "a.parquet")
    return tmp_path / "in"


def check_refusal(code: int, stderr: str, words: list[str], out: Path) -> None:
    """Check that a mistake is one sentence with these words, that it exits with 2, and leaves nothing."""
    assert code == 2, stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1, stderr
    assert all(word in stderr for word in words), stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("score", ["--model", "{bundle}", *CORPUS_AND_OUT, "--text-column", "n"], ["'n'", "int64"]),
        ("score", ["--model", "{bundle}", *CORPUS_AND_OUT, "--workers", "lots"], ["'lots'"]),
        ("train", ["--data", "{corpus}", "--model", "{bundle}", "--out", "{out}"], ["'label'", "--label-column"]),
        ("verify", CORPUS_AND_OUT, ["--out", "does not exist"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(corpus, tiny_bundle, tmp_path, command, name, arguments, words):
    paths = {"corpus": corpus, "bundle": tiny_bundle, "out": tmp_path / "out"}
    code, _, stderr = command(name, *(argument.format(**paths) for argument in arguments))
    check_refusal(code, stderr, words, tmp_path / "out")


def test_a_mistake_in_a_process_of_its_own_is_one_sentence_too(corpus, tmp_path):
    """Whatever its libraries would print when they are imported."""
    out = tmp_path / "out"
    done = run("score.py", "--model", corpus, "--input", corpus, "--out", out, cwd=tmp_path)
    check_refusal(done.returncode, done.stderr, ["--model", "is not a bundle"], out)


def listening_addresses(root: int) -> set[str]:
    """Return the addresses at which the processes below `root` listen."""
    processes = [psutil.Process(root)]
    with contextlib.suppress(psutil.Error):
        processes += processes[0].children(recursive=True)
    addresses = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            addresses |= {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    return addresses


def scheduling_policies(root: int) -> set[tuple[str, int]]:
    """Return how Linux schedules the main threads of Ray's processes below `root`: the model's, and others'."""
    policies = set()
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):  # it ended meanwhile
                name = " ".join(process.cmdline())
                if name.startswith("ray::"):
                    policies.add(("model" if "Classify" in name else "other", os.sched_getscheduler(process.pid)))
    return policies


@pytest.mark.journey
def test_score_and_verify_on_a_laptop(corpus, tiny_bundle, tmp_path):
    """No Ray is running: the job starts its own and ends it.

    Nobody reaches that Ray from elsewhere, and it does not interrupt the model. The exit code is 3, for a broken shard.
    """
    (corpus / "b.parquet").write_bytes(b"broken")
    command = [REPO / "jobs" / "score.py", "--model", tiny_bundle, "--input", corpus, "--out", tmp_path / "out"]
    addresses, policies = set(), set()
    with (tmp_path / "stdout").open("w+") as stdout_file, (tmp_path / "stderr").open("w+") as stderr_file:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=stdout_file, stderr=stderr_file)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            addresses |= listening_addresses(process.pid)
            policies |= scheduling_policies(process.pid)
            time.sleep(0.2)
    process.kill()
    stdout, stderr = (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()
    assert process.returncode == 3, stderr
    assert "1 rows in 1 files: ok 1" in stdout
    assert "failed: b.parquet: " in stdout
    assert "Traceback" not in stderr
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    # the model's too until it is loaded
    assert policies - {("model", os.SCHED_BATCH)} == {("model", os.SCHED_OTHER), ("other", os.SCHED_BATCH)}
    checked = run("verify.py", "--input", corpus, "--out", tmp_path / "out")
    assert checked.returncode == 3, checked.stderr
    assert "every row of the readable shards is scored exactly once" in checked.stdout
