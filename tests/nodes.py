"""A cluster of two real Ray nodes on this machine."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import free_ports

REPO = Path(__file__).resolve().parents[1]
START_TIMEOUT_S = 90
STOP_TIMEOUT_S = 30


@dataclass(frozen=True)
class Cluster:
    address: str  # of the job server
    nodes: list[subprocess.Popen]  # the head first
    env: dict[str, str]  # what each `ray` command needs in order to talk to this cluster

    def request(self, path, method="GET"):
        headers = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.address + path, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)


def ray_command(*args):
    # Not just "ray", which may be another one than this interpreter's.
    return [sys.executable, "-m", "ray.scripts.scripts", *map(str, args)]


def start_node(folder, env, *args):
    # A temp dir for each node: in a shared one, the second node removes the working directory of a job that
    # already runs in it, and unpacks it anew.
    folder.mkdir()
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(
            ray_command(
                "start",
                "--block",
                "--num-cpus=1",
                "--object-store-memory=200000000",  # if /dev/shm is smaller, Ray takes the temp dir instead
                "--dashboard-agent-listen-port=0",  # the default is 52365 on each node
                "--min-worker-port=0",  # any; the default is a range, and the same on each node
                "--max-worker-port=0",
                f"--temp-dir={folder}",
                *args,
            ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # a session of its own tells the node's processes from all others
        )


def wait_for_nodes(cluster, count, process, folder):
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        # Whatever fails here is the server not being there yet, or not all of it.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            cluster.request("/api/jobs/")
            nodes = cluster.request("/api/v0/nodes")["data"]["result"]["result"]
            if sum(node["state"] == "ALIVE" for node in nodes) == count:
                return
        time.sleep(0.5)
    pytest.fail(f"node {count} did not start:\n{(folder / 'output.txt').read_text()}")


def processes(sessions, token):
    """The cluster's living processes: those in its nodes' sessions or with its token in their environment.

    It takes both: a job gets a session of its own, and Ray's processes write titles over their environment.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            mine = int(session) in sessions or token.encode() in (folder / "environ").read_bytes()
            if mine and state != "Z":  # who adopted an orphan may be slow to reap it, or never do
                found.append(int(folder.name))
    return found


def stop(nodes, token):
    for node in reversed(nodes):  # the head last, to which the others report
        node.terminate()  # `ray start --block` then stops what it has started
        with contextlib.suppress(subprocess.TimeoutExpired):
            node.wait(STOP_TIMEOUT_S)
    sessions = {node.pid for node in nodes}
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while processes(sessions, token) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = processes(sessions, token)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for node in nodes:
        node.wait(STOP_TIMEOUT_S)
    assert not left, f"these outlived the cluster and were killed: {left}"


@contextlib.contextmanager
def two_nodes() -> Iterator[Cluster]:
    """Two real Ray nodes on loopback, with a CPU each, and a job server."""
    if sys.platform != "linux":
        pytest.skip("Ray has clusters of several nodes on Linux only")
    port, dashboard, client = free_ports(3)
    address = f"http://127.0.0.1:{dashboard}"
    token = secrets.token_hex(32)
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        # `ray job submit` takes this before its --address, and some actors of Ray Train look for it: without
        # it they search the machine for clusters, and fail if there is another one.
        "RAY_API_SERVER_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,  # goes before ~/.ray/auth_token, which is then neither read nor written
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else a stopped node awaits its tasks for up to 30 s
        "GLOO_SOCKET_IFNAME": "lo",  # how the workers of a training on CPUs reach each other
        # Jobs run `python`, and inherit the path with which their node was started.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    nodes: list[subprocess.Popen] = []
    cluster = Cluster(address, nodes, env)
    # Not pytest's tmp_path: Ray puts sockets below it, whose paths must have fewer than 108 characters.
    base = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    try:
        # On Linux, Ray takes 127.0.0.1 for the address by which others reach this machine, and listens on all
        # interfaces. This setting, which the jobs inherit, stops that.
        head_env = env | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        head = ["--head", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--port={port}"]
        head += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
        nodes.append(start_node(base / "0", head_env, *head))
        wait_for_nodes(cluster, 1, nodes[0], base / "0")
        # With it, no second node can join. That one gets 0.0.0.0, which Ray leaves alone and Linux connects
        # to loopback: so 127.0.0.1 is the address from which it reaches the head, and becomes its own.
        nodes.append(start_node(base / "1", env, f"--address=0.0.0.0:{port}"))
        wait_for_nodes(cluster, 2, nodes[1], base / "1")
        yield cluster
    finally:
        stop(nodes, token)
        shutil.rmtree(base, ignore_errors=True)


def submit(cluster, *entrypoint, timeout=300):
    """Submit a job as the README says. Returns the exit code of the job's own process, and all output.

    `ray job submit` exits with 1 whatever the job's exit code was, so that one is asked of the job server.
    It is None if the job's process was never started.
    """
    job = f"test-{uuid.uuid4().hex}"
    command = ray_command("job", "submit", "--address", cluster.address, "--submission-id", job)
    command += ["--working-dir", str(REPO), "--", *map(str, entrypoint)]
    try:
        done = subprocess.run(
            command,
            env=cluster.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as expired:
        with contextlib.suppress(OSError):
            cluster.request(f"/api/jobs/{job}/stop", "POST")  # else it goes on, and takes the next job's CPUs
        pytest.fail(f"{entrypoint} took more than {timeout} s:\n{(expired.output or b'').decode()}")
    try:
        code = cluster.request(f"/api/jobs/{job}")["driver_exit_code"]
    except OSError as error:
        pytest.fail(f"{entrypoint} was not submitted ({error}):\n{done.stdout}")
    assert done.returncode == (0 if code == 0 else 1), done.stdout
    return code, done.stdout
