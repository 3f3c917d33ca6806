"""Kill processes of a scoring run at random moments, rerun the command, and compare with an undisturbed run.

Also kill a node of two, and let all tasks hang.

    make chaos MINUTES=10

Takes minutes, so that `make test` leaves it out.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from sentiment_core.scoring.verify import VerifySettings, verify
from tests import s3
from tests.cascades import make_models
from tests.conftest import sentences
from tests.nodes import ray_command, two_nodes

REPO = Path(__file__).resolve().parents[2]
SHARDS, ROWS = 40, 5_000
RUN_TIMEOUT_S = 300
# processes that are killed, by a part of their command line, and how often each is chosen
VICTIMS = {
    "driver": 2,
    "raylet/raylet": 1,
    "ray::MapWorker(MapBatches(ClassifyStage)": 3,
    "ray::MapBatches(read": 3,
    "ray::MapBatches(write": 3,
    "ray::AttemptCounter": 1,
}
PATIENCE_S = 3  # to find one: some live for a moment only
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in Linux's /proc")


def job(name: str, *flags: object) -> list[str]:
    return [sys.executable, str(REPO / "jobs" / name), *map(str, flags)]


def descendants(root: int) -> list[int]:
    """Return the living processes below `root`, by /proc."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    pids = [root]
    for pid in pids:
        pids += [child for child, parent in parents.items() if parent == pid]
    return pids[1:]


def find_victim(rng: random.Random, driver: int) -> tuple[int, int, str]:
    """Return a process (0: there was none), the signal for it, and its kind."""
    kind = rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
    if kind == "driver":
        return driver, rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]), kind
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        candidates = []
        for pid in descendants(driver):
            with contextlib.suppress(OSError):
                if kind in Path(f"/proc/{pid}/cmdline").read_text():
                    candidates.append(pid)
        if candidates:
            return rng.choice(candidates), signal.SIGKILL, kind
        time.sleep(0.02)
    return 0, signal.SIGKILL, kind


def run_disturbed(
    rng: random.Random, command: list[str], env: dict[str, str], wait_s: tuple[float, float] = (5, 25)
) -> tuple[list[str], int, str]:
    """Run the command, wait, and kill workers until the driver is killed, or ends.

    `wait_s`: at least and at most, before the first one is killed; from Ray's start to the end of the work.
    Returns the kills, the exit code and the output.
    """
    kills = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    started = time.monotonic()
    time.sleep(rng.uniform(*wait_s))
    while process.poll() is None:
        victim, number, kind = find_victim(rng, process.pid)
        if victim:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, number)
                kills.append(f"{time.monotonic() - started:.1f} s {signal.Signals(number).name} {kind}")
            if kind == "driver":
                break
        time.sleep(rng.uniform(0.2, 4))
    output = process.communicate(timeout=RUN_TIMEOUT_S)[0]
    return kills, process.returncode, output


@pytest.fixture
def destination(request, tmp_path) -> Iterator[tuple[str, pyarrow.fs.FileSystem, str, dict[str, str]]]:
    """An empty folder for output: its path or URI, filesystem, path there, and the environment to reach it."""
    if request.param == "disk":
        (tmp_path / "out").mkdir()
        yield str(tmp_path / "out"), pyarrow.fs.LocalFileSystem(), str(tmp_path / "out"), {}
        return
    with s3.moto_server() as port:
        path = f"{s3.BUCKET}/out"
        yield f"s3://{path}", s3.filesystem(port), path, s3.environment(port)


@needs_linux
@pytest.mark.parametrize(
    ("destination", "models"),
    [
        ("disk", "one model"),
        ("store", "two models"),
        ("disk", "two models"),
        ("store", "one model"),
        ("disk", "a cascade"),
    ],
    indirect=["destination"],
)
def test_nothing_is_lost_or_doubled_whatever_is_killed(
    destination, models, tiny_bundle, multi_label_bundle, packaged_encoder, tmp_path, chaos_minutes
):
    is_first = ("://" in destination[0]) == (models == "two models")
    if chaos_minutes < 1 and (models == "a cascade" or not is_first):
        pytest.skip("needs --chaos-minutes of 1 or more; each way to write and each number of models is tried before")
    out, filesystem, path, env = destination
    seed = int(os.environ.get("CHAOS_SEED", time.time_ns() % 1_000_000))
    print(f"CHAOS_SEED={seed}, into {out}")
    rng = random.Random(seed)
    (tmp_path / "in").mkdir()
    for shard in range(SHARDS):
        pq.write_table(sentences(ROWS, seed=shard), tmp_path / "in" / f"{shard}.parquet")

    model = tiny_bundle
    if models == "two models":
        model = f"sentiment={tiny_bundle},emotion={multi_label_bundle}"
    elif models == "a cascade":
        model = make_models(packaged_encoder, tmp_path).cascade

    def score(out: str) -> list[str]:
        return job("score.py", "--model", model, "--input", tmp_path / "in", "--out", out, "--keep", "")

    def check(command: list[str]) -> None:
        done = subprocess.run(
            command, env=os.environ | env, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def files() -> list[str]:
        infos = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True, allow_not_found=True))
        return sorted(info.path for info in infos if info.path.endswith(".parquet") and "/_" not in info.path)

    started = time.monotonic()
    check(score(str(tmp_path / "calm")))
    wait_s = (5, max(25, 0.8 * (time.monotonic() - started)))  # slow chips write their first file late
    runs, kills = 0, Counter()
    until = time.monotonic() + 60 * chaos_minutes
    while time.monotonic() < until or not kills:
        run_kills, code, output = run_disturbed(rng, score(out), os.environ | env, wait_s)
        runs, written = runs + 1, files()
        kills.update(kill.rpartition(" ")[2] for kill in run_kills)
        print(f"exit code {code}, {len(written)} of {SHARDS} files; killed: {'; '.join(run_kills) or 'nothing'}")
        for name in written:
            assert pq.read_table(name, filesystem=filesystem).num_rows == ROWS  # a file that exists is complete
        stopped = any("driver" in kill or "raylet" in kill for kill in run_kills)
        assert code in (0, 3) or stopped, output
        if code in (130, 143):
            assert "rerun the same command to resume" in output
            assert "Traceback" not in output
        if len(written) == SHARDS:
            for name in rng.sample(written, SHARDS - 2):
                filesystem.delete_file(name)
    print(f"{kills.total()} kills in {runs} runs: {dict(kills)}")
    check(score(out))
    check(job("verify.py", "--input", tmp_path / "in", "--out", out, "--full"))
    (tmp_path / "copy").mkdir()
    for name in files():
        pyarrow.fs.copy_files(name, str(tmp_path / "copy" / Path(name).name), filesystem, chunk_size=1 << 20)
    calm, disturbed = (f"select * from read_parquet('{tmp_path}/{name}/**/*.parquet')" for name in ("calm", "copy"))
    assert duckdb.sql(f"select count(*) from ({disturbed})").fetchall() == [(SHARDS * ROWS,)]
    assert duckdb.sql(f"({calm} except all {disturbed}) union all ({disturbed} except all {calm})").fetchall() == []


@needs_linux
def test_a_node_that_dies_takes_nothing_along(tiny_bundle, tmp_path):
    (tmp_path / "in").mkdir()
    for shard in range(SHARDS):
        pq.write_table(sentences(ROWS, seed=shard), tmp_path / "in" / f"{shard}.parquet")
    paths = ["--input", tmp_path / "in", "--out", tmp_path / "out"]
    with two_nodes() as cluster:
        command = ray_command("job", "submit", "--address", cluster.address, "--working-dir", REPO, "--")
        command += ["python", "jobs/score.py", "--model", tiny_bundle, *paths, "--keep", "", "--workers", "2"]
        process = subprocess.Popen(
            list(map(str, command)), env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        until = time.monotonic() + RUN_TIMEOUT_S
        while len(list((tmp_path / "out").glob("*.parquet"))) < 5 and time.monotonic() < until:
            time.sleep(0.1)
        assert process.poll() is None
        os.killpg(cluster.nodes[1].pid, signal.SIGKILL)
        output = process.communicate(timeout=RUN_TIMEOUT_S)[0]
    assert f"{SHARDS * ROWS:,} rows in {SHARDS} files: ok {SHARDS * ROWS:,}" in output
    findings = verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out")))
    assert (findings.exit_code, findings.rows_out) == (0, SHARDS * ROWS)


def test_a_run_of_which_all_tasks_hang_stops(tiny_bundle, tmp_path):
    (tmp_path / "in").mkdir()
    for shard in range(12):
        pq.write_table(sentences(4_000, seed=shard), tmp_path / "in" / f"{shard}.parquet")
    paths = "--input", tmp_path / "in", "--out", tmp_path / "out"
    done = subprocess.run(
        job("score.py", "--model", tiny_bundle, *paths, "--keep", "", "--task-minutes", 1e-5),
        capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stopped: the last 5 tasks all failed; the latest error: its process died or hung 4 times" in done.stdout


def test_a_model_that_no_worker_can_load_stops_the_run(tiny_bundle, tmp_path):
    model = Path(shutil.copytree(tiny_bundle, tmp_path / "model"))
    (model / "model.safetensors").write_bytes(b"broken")
    pq.write_table(sentences(20, seed=0), tmp_path / "a.parquet")
    paths = "--input", tmp_path / "a.parquet", "--out", tmp_path / "out"
    done = subprocess.run(
        job("score.py", "--model", model, *paths, "--keep", ""),
        capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stopped: no worker could load the model: " in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
