"""The benchmark of ModernBERT's shape runs, compares each backend with transformers and reports what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "modern_bert.py"


@pytest.mark.journey
@pytest.mark.slow
def test_each_backend_is_timed_beside_transformers_on_the_same_rows(tmp_path):
    command = [sys.executable, str(BENCHMARK), "--layers", "4", "--hidden", "64", "--sentences", "24", "--reviews", "6"]
    command += ["--rounds", "1", "--threads", "2", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stderr
    report = json.loads((tmp_path / "modern_bert.json").read_text())
    assert set(report["work"]) == {"sentences", "reviews"}
    assert report["mean_tokens"]["sentences"] < 60 < 200 < report["mean_tokens"]["reviews"]
    for records in report["work"].values():
        assert {"transformers float32", "torch float32", "openvino float32"} <= set(records)
        assert records["transformers float32"]["times_peer"] == 1
        for name, record in records.items():
            assert record["rows_per_second"] > 0
            assert record["of_ceiling"] > 0
            assert record["largest_difference"] <= (1e-4 if name.endswith("float32") else 0.1), name
    sentences = report["work"]["sentences"]
    assert 0 <= sentences["torch float32"]["padding_share"] < sentences["transformers float32"]["padding_share"] < 1
    assert "difference" in done.stdout
