"""The jobs as commands: exit codes, and one clear sentence on stderr for a user's mistake."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

REPO = Path(__file__).resolve().parents[1]


def run(job: str, *arguments: object, cwd: Path = REPO) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / "jobs" / job), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


def test_help_describes_every_flag():
    done = run("score.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "python jobs/" in done.stdout
    assert "--config FILE.yaml" in done.stdout


@pytest.fixture
def corpus(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["good"], "n": [1]}), tmp_path / "in" / "a.parquet")
    return tmp_path / "in"


@pytest.mark.parametrize(
    ("job", "arguments", "words"),
    [
        ("score.py", ["--model", "{corpus}", "--input", "{corpus}", "--out", "{out}"], ["--model", "is no bundle"]),
        (
            "score.py",
            ["--model", "{bundle}", "--input", "{corpus}", "--out", "{out}", "--text-column", "n"],
            ["'n'", "int64"],
        ),
        ("score.py", ["--model", "{bundle}", "--input", "{corpus}", "--out", "{out}", "--workers", "lots"], ["'lots'"]),
        ("train.py", ["--data", "{corpus}", "--model", "{bundle}", "--out", "{out}"], ["'label'", "--label-column"]),
        ("verify.py", ["--input", "{corpus}", "--out", "{out}"], ["--out", "does not exist"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(corpus, tiny_bundle, tmp_path, job, arguments, words):
    places = {"corpus": corpus, "bundle": tiny_bundle, "out": tmp_path / "out"}
    done = run(job, *(argument.format(**places) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "out").exists()


def test_score_and_verify_on_a_laptop(corpus, tiny_bundle, tmp_path):
    """No Ray is running: the job starts its own and ends it. Exit code 3 with a broken shard, and then 3 again."""
    (corpus / "b.parquet").write_bytes(b"broken")
    done = run("score.py", "--model", tiny_bundle, "--input", corpus, "--out", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    assert "1 rows in 1 files: ok 1" in done.stdout
    assert "failed: b.parquet: " in done.stdout
    assert "Traceback" not in done.stderr
    checked = run("verify.py", "--input", corpus, "--out", tmp_path / "out")
    assert checked.returncode == 3, checked.stderr
    assert "every row of the readable shards is scored exactly once" in checked.stdout
