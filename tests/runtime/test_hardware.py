"""GPUs that Ray counts and torch cannot use."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from sentiment_core.errors import UserError
from sentiment_core.runtime import cluster, hardware
from tests.conftest import sentences

REPO = Path(__file__).resolve().parents[2]
without_cuda = pytest.mark.skipif(torch.version.cuda is not None, reason="needs torch without CUDA")


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that makes torch describe a GPU."""

    def describe(capability: tuple[int, int], built_for: list[str]) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built_for)

    return describe


def test_a_worker_without_a_gpu_may_compute_on_its_cpu(monkeypatch):
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    cluster.check_assigned_gpu()


@without_cuda
def test_a_gpu_is_refused_where_torch_is_built_without_cuda(monkeypatch):
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    with pytest.raises(UserError, match="is built without CUDA and cannot use the GPU of this worker"):
        cluster.check_assigned_gpu()


@pytest.mark.parametrize(
    ("module", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n", "570.86.15"),
        ("", "unknown"),
    ],
)
def test_a_gpu_whose_driver_is_too_old_is_refused(monkeypatch, tmp_path, module, version):
    (tmp_path / "version").write_text(module)
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"CUDA 13.0 .* its driver is {version}, expected 580 or newer"):
        hardware.check_gpu()


@pytest.mark.parametrize(
    ("capability", "built_for"),
    [((7, 0), ["sm_75", "sm_80", "sm_90"]), ((8, 0), ["sm_86"]), ((8, 9), ["sm_90", "compute_90"])],
)
def test_a_gpu_that_torch_has_no_kernels_for_is_refused(gpu, capability, built_for):
    gpu(capability, built_for)
    name = f"Tesla V100 .sm_{capability[0]}{capability[1]}."
    with pytest.raises(UserError, match=f"has no kernels for {name}; expected one of {', '.join(built_for)}. Install"):
        hardware.device()


@pytest.mark.parametrize(
    ("capability", "built_for"),
    [((8, 9), ["sm_75", "sm_86"]), ((9, 0), ["sm_90a"]), ((12, 1), ["sm_90", "compute_90"]), ((7, 0), [])],
)
def test_a_gpu_that_torch_has_kernels_for_is_used(gpu, capability, built_for):
    gpu(capability, built_for)
    assert hardware.device() == torch.device("cuda")


def test_a_device_that_refuses_everything_is_noticed(monkeypatch):
    def refuse(error: Exception) -> None:
        def ones(*_, **__):
            raise error

        monkeypatch.setattr(torch, "ones", ones)

    assert hardware.still_computes(torch.device("cpu"))
    refuse(RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"))
    assert not hardware.still_computes(torch.device("cuda"))
    refuse(torch.OutOfMemoryError("CUDA out of memory"))
    assert hardware.still_computes(torch.device("cuda"))


# Ray counts a GPU here, and the process that asks for it computes or trains.
RAY_WITH_A_GPU = """
import sys, ray
from sentiment_core import UserError, score, train
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, address="local")
bundle, encoder, labelled, corpus, folder = sys.argv[1:]
print(score(model=bundle, input=corpus, out=folder + "/out").report())
try:
    train(model=encoder, data=labelled, out=folder + "/bundle", epochs=1)
except UserError as error:
    print("refused:", error)
"""


@without_cuda
@pytest.mark.journey
@pytest.mark.ray
def test_scoring_and_training_refuse_a_gpu_that_torch_cannot_use(tiny_bundle, tiny_encoder, labelled, tmp_path):
    pq.write_table(pa.table({"text": sentences(20, seed=0)["text"]}), tmp_path / "a.parquet")
    arguments = [tiny_bundle, tiny_encoder, labelled, str(tmp_path / "a.parquet"), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", RAY_WITH_A_GPU, *arguments],
        env=environment | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reason = f"torch {torch.__version__} is built without CUDA and cannot use the GPU of this worker. Install torch"
    assert f"stopped: no worker could load the model: {reason}" in done.stdout
    assert f"refused: {reason}" in done.stdout
    assert "was lost" not in done.stderr
