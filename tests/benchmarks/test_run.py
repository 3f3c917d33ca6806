"""The scoring benchmark runs and reports what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import sentences

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"


@pytest.mark.journey
@pytest.mark.slow
def test_the_benchmark_compares_on_the_same_texts(tiny_bundle, tmp_path):
    pq.write_table(sentences(60, seed=0), tmp_path / "a.parquet")
    command = [sys.executable, str(BENCHMARK), "--model", tiny_bundle, "--text", str(tmp_path / "a.parquet")]
    command += ["--rows", "20", "--rounds", "1", "--job-rows", "0", "--results", str(tmp_path)]
    command += ["--only", "pipeline batch 8,engine openvino float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "demo.json").read_text())
    assert set(report["contenders"]) == {"pipeline batch 8", "engine openvino float32"}
    assert report["contenders"]["pipeline batch 8"]["times_pipeline"] == 1
    for record in report["contenders"].values():
        assert record["rows_per_second"] > 0
        assert record["same_labels"] > 0.9
        assert 0 < record["of_ceiling"] < 1
    padding = {name: record["padding_share"] for name, record in report["contenders"].items()}
    assert 0 <= padding["engine openvino float32"] < padding["pipeline batch 8"] < 1
    assert "padding" in done.stdout
