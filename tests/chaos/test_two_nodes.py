"""Submit the jobs to a cluster of two real Ray nodes on this machine. Takes minutes."""

import json

import pyarrow.parquet as pq
import pytest

from sentiment_core.scoring.verify import VerifySettings, verify
from tests.conftest import sentences
from tests.nodes import submit, two_nodes


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as nodes:
        yield nodes


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
    findings = verify(VerifySettings(input=str(tmp_path / "in"), out=str(tmp_path / "out")))
    assert (findings.exit_code, findings.rows_out) == (0, 600)


def test_more_workers_than_the_cluster_has_cpus_are_refused_at_once(cluster, tiny_bundle, tmp_path):
    pq.write_table(sentences(10, seed=0), tmp_path / "a.parquet")
    code, output = submit(
        cluster, "python", "jobs/score.py", "--model", tiny_bundle, "--input", tmp_path / "a.parquet",
        "--out", tmp_path / "out", "--keep", "", "--workers", "9", timeout=60,
    )  # fmt: skip
    assert code == 2, output
    assert "--workers 9 needs 9 CPUs; the cluster has at most 2." in output
    assert not (tmp_path / "out").exists()
