"""cluster.yaml works with Ray, and work is sized by what a cluster has.

`chaos/test_two_nodes.py` submits jobs to a cluster of two nodes.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from sentiment_core.errors import UserError
from sentiment_core.runtime import cluster, preflight
from sentiment_core.scoring.stream import Stream
from tests import s3
from tests.conftest import free_ports

REPO = Path(__file__).resolve().parents[2]


# cluster.yaml


@pytest.fixture(scope="module")
def config():
    return yaml.safe_load((REPO / "cluster.yaml").read_text())


def test_cluster_yaml_fits_the_schema_that_ray_ships(config):
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)


def test_ray_up_accepts_cluster_yaml(config):
    # What `ray up` does before it first talks to AWS: it needs neither boto3 nor credentials.
    validate_config(prepare_config(copy.deepcopy(config)))


def test_cluster_yaml_mounts_files_that_exist(config):
    # `ray up` takes them from the folder it is run in. The token (~) is the user's own.
    for local in config["file_mounts"].values():
        assert local.startswith("~") or (REPO / local).exists(), local


def test_cluster_yaml_commands_are_valid_shell(config):
    commands = [command for key, value in config.items() if key.endswith("_commands") for command in value]
    assert commands
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


# In place of ssh and rsync: there is no node, so the commands for it are written down.
NODE = """#!/bin/sh
printf '%s\\n' "$*" >> {log}
"""


@pytest.mark.ray
@pytest.mark.journey
def test_ray_up_and_down_on_aws(config, tmp_path):
    """Run the launcher's commands on moto's AWS, with nodes that only record them."""
    home, tools, log = tmp_path / "home", tmp_path / "bin", tmp_path / "commands"
    (home / ".ssh").mkdir(parents=True)
    tools.mkdir()
    for name in ("ssh", "rsync"):
        (tools / name).write_text(NODE.format(log=log))
        (tools / name).chmod(0o755)
    with s3.moto_server() as port:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        environment |= s3.environment(port) | {
            "HOME": str(home),
            "TMPDIR": str(tmp_path),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        environment["PATH"] = f"{tools}:{Path(sys.executable).parent}:{environment['PATH']}"
        ec2, iam = (s3.client(port, service, config["provider"]["region"]) for service in ("ec2", "iam"))

        def run(*command: str) -> None:
            options = {"cwd": REPO, "env": environment, "timeout": 120, "capture_output": True, "text": True}
            done = subprocess.run(["ray", *command], **options)
            assert done.returncode == 0, done.stdout + done.stderr

        def instances() -> list[dict]:
            return [node for group in ec2.describe_instances()["Reservations"] for node in group["Instances"]]

        nodes = {name: kind["node_config"] for name, kind in config["available_node_types"].items()}
        for arn in {node["IamInstanceProfile"]["Arn"] for node in nodes.values()}:
            iam.create_instance_profile(InstanceProfileName=arn.rpartition("/")[2])
        run("get-auth-token", "--generate")
        run("up", "--yes", "--no-config-cache", "cluster.yaml")

        (head,) = instances()  # no worker before a job asks for one
        assert head["State"]["Name"] == "running"
        assert head["InstanceType"] == nodes["head"]["InstanceType"]
        assert head["ImageId"] == nodes["head"]["ImageId"]
        assert head["IamInstanceProfile"]["Arn"] == nodes["head"]["IamInstanceProfile"]["Arn"]
        groups = ec2.describe_security_groups(GroupIds=[group["GroupId"] for group in head["SecurityGroups"]])
        rules = [rule for group in groups["SecurityGroups"] for rule in group["IpPermissions"]]
        from_outside = [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
        assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]

        commands = log.read_text()
        for there, here in config["file_mounts"].items():
            assert here.replace("~", str(home)) in commands, here
            assert f"ubuntu@{head['PublicIpAddress']}:{there}" in commands, there
        positions = [
            commands.index(step) for step in ("sudo apt-get", "constraints.txt '", "boto3", "ray start --head")
        ]
        assert positions == sorted(positions)

        run("dashboard", "cluster.yaml")
        assert "-L 8265:localhost:8265" in log.read_text()
        run("down", "--yes", "cluster.yaml")
        assert [node["State"]["Name"] for node in instances()] == ["terminated"]


def test_nodes_that_the_launcher_may_start_count(config, ray_here, tmp_path, monkeypatch):
    """The head of cluster.yaml has no CPUs; worker nodes start on demand."""
    assert cluster.device_kind() == "CPU", "this test is for machines without a GPU"
    launched = tmp_path / "ray_bootstrap_config.yaml"
    launched.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(cluster, "LAUNCHER_CONFIG", launched)
    assert cluster.device_kind() == "GPU"
    assert cluster.max_devices("GPU") == 4
    assert cluster.max_devices("CPU") == 4 * 8 + 4 * 4
    preflight.check_workers(4, "GPU")
    with pytest.raises(UserError, match="--workers 5 needs 5 GPUs; the cluster has at most 4"):
        preflight.check_workers(5, "GPU")


def test_workers_and_threads_share_the_cpus(ray_here):
    cpus = cluster.max_devices("CPU")
    assert cluster.number_of_workers(None, units=1_000, kind="CPU") == max(1, cpus // 2)
    assert cluster.number_of_workers(None, units=1, kind="CPU") == 1
    assert cluster.number_of_workers(7, units=1, kind="CPU") == 7
    assert cluster.threads_per_worker(1) == cpus
    assert cluster.threads_per_worker(10 * cpus) == 1


def test_a_worker_computes_with_no_more_threads_than_a_node_has_cpus(config, tmp_path, monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": cpus}} for cpus in (4.0, 6.0, 4.0)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 14.0})
    assert [cluster.threads_per_worker(workers) for workers in (1, 2, 4)] == [6, 6, 3]
    monkeypatch.setattr(cluster, "LAUNCHER_CONFIG", tmp_path / "ray_bootstrap_config.yaml")
    cluster.LAUNCHER_CONFIG.write_text(yaml.safe_dump(config))  # nodes of 8 CPUs may still start
    assert cluster.threads_per_worker(1) == 8


def test_actors_leave_room_for_the_tasks_and_never_reserve_the_same(ray_here):
    cpus = cluster.max_devices("CPU")
    room = 0.5 + 0.25
    for workers in (1, 2, 3, 4):
        reserved = cluster.actor_resources(workers, (0.5, 0.25), "CPU")["num_cpus"]
        assert reserved * workers <= cpus - room
        assert reserved not in (0.5, 0.25)
    workers = 2
    share = int(100 * (cpus - room) / workers) / 100
    if share <= 1:
        assert cluster.actor_resources(workers, (0.5, 0.25), "CPU")["num_cpus"] == share
        assert cluster.actor_resources(workers, (share, room - share), "CPU")["num_cpus"] == share - 0.01


@pytest.mark.parametrize(
    ("cpus", "gpus", "read_cpus", "actor_cpus"),
    [(1, 1, 0.5, 0.25), (2, 1, 0.5, 1.0), (3, 2, 1.0, 0.87), (4, 4, 1.0, 0.68), (16, 1, 1.0, 1.0)],
)
def test_beside_a_gpu_the_thread_that_launches_has_a_cpu(ray_here, monkeypatch, cpus, gpus, read_cpus, actor_cpus):
    resources = {"CPU": cpus, "GPU": gpus}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": resources}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    assert Stream(*[None] * 4, workers=gpus, kind="GPU", task_minutes=1).read_cpus() == read_cpus
    assert Stream(*[None] * 4, workers=gpus, kind="CPU", task_minutes=1).read_cpus() == 0.5
    reserved = cluster.actor_resources(gpus, (read_cpus, 0.25), "GPU")
    assert reserved == {"num_gpus": 1, "num_cpus": actor_cpus}
    assert gpus * actor_cpus + read_cpus + 0.25 <= cpus  # every stage has room on the node


@pytest.mark.parametrize(
    ("gpu_node", "actor_cpus"), [({"CPU": 2, "GPU": 4}, 0.18), ({"CPU": 0, "GPU": 4}, 0)], ids=["few CPUs", "no CPUs"]
)
def test_an_actor_fits_on_the_node_of_its_gpu(monkeypatch, gpu_node, actor_cpus):
    """However many CPUs other nodes have."""
    nodes = [{"CPU": 64}, gpu_node]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    reserved = cluster.actor_resources(4, (1.0, 0.25), "GPU")
    assert reserved == {"num_gpus": 1, "num_cpus": actor_cpus}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("noted", "origin"), [(False, "RAY_ADDRESS"), (True, "noted here by `ray start`")], ids=["asked for", "noted"]
)
def test_a_cluster_that_is_gone_is_refused(tmp_path, tiny_bundle, noted, origin):
    """Run in a process of its own: this one may be connected already."""
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    paths = ["--input", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "out")]
    address = f"127.0.0.1:{free_ports(1)[0]}"
    env = os.environ | {"RAY_TMPDIR": str(tmp_path)}
    if noted:  # by a `ray start` whose processes were killed
        env.pop("RAY_ADDRESS", None)
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
    else:
        env["RAY_ADDRESS"] = address
    done = subprocess.run(
        [sys.executable, REPO / "jobs" / "score.py", "--model", tiny_bundle, *paths],
        env=env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"error: the cluster {address} ({origin}) cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_user_chooses_the_device_and_a_cluster_without_nodes_asks(ray_here, monkeypatch):
    assert (cluster.device_kind("cpu"), cluster.device_kind("gpu")) == ("CPU", "GPU")
    monkeypatch.setattr(ray, "cluster_resources", dict)  # as Ray describes a head without CPUs
    with pytest.raises(UserError, match="has no CPUs and no GPUs yet; say what its nodes will have: --device gpu"):
        cluster.device_kind()
    assert cluster.device_kind("gpu") == "GPU"
    assert cluster.number_of_workers(4, units=9, kind="GPU") == 4
