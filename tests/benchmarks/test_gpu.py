"""The GPU benchmark runs whole on a CPU, in small, without Ray, and reports failures beside figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sentiment_core.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu import GpuBenchmarkSettings

pytestmark = pytest.mark.slow
REPO = Path(__file__).resolve().parents[2]


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Run the benchmark where Ray cannot be imported and no network is allowed to hubs."""
    ray = folder / "ray.py"
    ray.write_text("raise ImportError('a bare GPU machine has no Ray')\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(REPO)]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(REPO / "benchmarks" / "gpu.py"), "--small", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.journey
def test_it_checks_and_times_the_engine_beside_padded_transformers(tmp_path):
    out = tmp_path / "results" / "gpu.json"
    names = ["engine packed", "padded half sorted", "training"]
    done = run(
        tmp_path, "--shapes", "minilm-l6", "--only", ",".join(names), "--rounds", "1", "--minutes", "2", "--out", out
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["failures"] == []
    assert {"date", "device", "driver", "libraries", "torch_architectures"} <= set(report)
    record = report["shapes"]["minilm-l6"]
    for name in names[:2]:
        facts = record["correctness"][name]
        assert facts["right"]
        assert facts["mean_difference"] < record["lost_isolation_difference"] / 4
    for length, mean in (("sentences", 25), ("reviews", 275)):
        contenders = record["lengths"][length]["contenders"]
        assert set(contenders) == set(names[:2])
        for facts in contenders.values():
            assert 0.5 * mean < facts["tokens_per_second"] / facts["rows_per_second"] < 1.5 * mean
            assert 0 <= facts["padding_share"] < 1
            assert facts["of_ceiling"] > 0
            assert facts["request_ms"]["1"] > 0
        assert contenders["padded half sorted"]["times_best_padded"] == 1
        assert record["training"][length]["contenders"]["training"]["rows_per_second"] > 0
    assert "engine packed" in done.stdout


def test_a_wrong_name_is_refused():
    with pytest.raises(UserError, match="--only is 'engine of the future'; expected some of engine compiled, engine"):
        GpuBenchmarkSettings(only=("engine of the future",))
