"""cluster.yaml, and the jobs as a user submits them: to a cluster of two real Ray nodes on this machine."""

import copy
import json
import subprocess
from pathlib import Path

import jsonschema
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

import sentiment_core.cluster
from sentiment_core.errors import BadRequest
from sentiment_core.verify import VerifySettings, verify
from tests.conftest import sentences
from tests.nodes import submit, two_nodes

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


# Two nodes on this machine


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as found:
        yield found


def test_train_and_score_submitted_to_two_nodes(cluster, tiny_encoder, tmp_path):
    """The same commands as on a laptop. Both nodes take part: each has one CPU, and two workers want one each."""
    pq.write_table(sentences(400, seed=0), tmp_path / "train.parquet")
    code, output = submit(
        cluster, "python", "jobs/train.py", "--data", tmp_path / "train.parquet", "--model", tiny_encoder,
        "--out", tmp_path / "bundle", "--epochs", "1", "--workers", "2", "--batch-size", "30",
    )  # fmt: skip
    assert code == 0, output
    assert json.loads((tmp_path / "bundle" / "sentiment.json").read_text())["labels"] == ["negative", "positive"]

    (tmp_path / "in").mkdir()
    for shard in range(6):
        pq.write_table(sentences(100, seed=shard), tmp_path / "in" / f"{shard}.parquet")
    rows = ["--input", tmp_path / "in", "--out", tmp_path / "out"]
    code, output = submit(
        cluster, "python", "jobs/score.py", "--model", tmp_path / "bundle", *rows, "--keep", "", "--workers", "2"
    )
    assert code == 0, output
    assert "600 rows in 6 files: ok 600" in output
    found = verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out")))
    assert (found.exit_code, found.rows_out) == (0, 600)


def test_what_the_cluster_has_not_is_refused_at_once(cluster, tiny_bundle, tmp_path):
    pq.write_table(sentences(10, seed=0), tmp_path / "a.parquet")
    code, output = submit(
        cluster, "python", "jobs/score.py", "--model", tiny_bundle, "--input", tmp_path / "a.parquet",
        "--out", tmp_path / "out", "--keep", "", "--workers", "9", timeout=60,
    )  # fmt: skip
    assert code == 2, output
    assert "9 workers are asked for and the cluster has at most 2 CPUs" in output
    assert not (tmp_path / "out").exists()
