"""cluster.yaml; `chaos/test_two_nodes.py` submits jobs to a cluster of two nodes."""

import copy
import json
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import sentiment_core.cluster
from sentiment_core.errors import BadRequest

REPO = Path(__file__).resolve().parents[1]


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


def test_what_the_launcher_may_start_counts(config, ray_here, tmp_path, monkeypatch):
    """The head of cluster.yaml has no CPUs, and no worker runs before a job asks for one."""
    assert sentiment_core.cluster.device_kind() == "CPU", "this test is for machines without a GPU"
    launched = tmp_path / "ray_bootstrap_config.yaml"
    launched.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(sentiment_core.cluster, "LAUNCHER_CONFIG", launched)
    assert sentiment_core.cluster.device_kind() == "GPU"
    assert sentiment_core.cluster.largest("GPU") == 4
    assert sentiment_core.cluster.largest("CPU") == 4 * 8 + 4 * 4
    sentiment_core.cluster.require(4)
    with pytest.raises(BadRequest, match="5 workers are asked for and the cluster has at most 4 GPUs"):
        sentiment_core.cluster.require(5)
