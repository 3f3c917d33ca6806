"""Choose device and number type of the machine at hand."""

import hashlib
import platform
import re
from pathlib import Path

import numpy as np
import torch

from sentiment_core.errors import UserError
from sentiment_core.runtime.precision import Precision

# What tells one model of CPU from another. Clouds hide the name: two generations are both "AMD EPYC".
CPU_FIELDS = (
    "vendor_id",
    "cpu family",
    "model",
    "stepping",
    "model name",
    "cache size",
    "CPU part",
    "flags",
    "Features",
)

DRIVER = Path("/proc/driver/nvidia/version")  # NVIDIA's, on Linux
# First driver by CUDA's major version (CUDA Toolkit release notes, table "CUDA Toolkit and Minimum Required NVIDIA
# Driver Version")
FIRST_DRIVER = {"11": "450", "12": "525", "13": "580"}
WITHOUT_GPU = "pass --device cpu (to a command without that flag, CUDA_VISIBLE_DEVICES=-1)"
OLD_CUDA = "https://download.pytorch.org/whl/cu126"  # builds for older drivers and for GPUs from 2014 on


def device() -> torch.device:
    """Return the GPU that Ray gave this process, else the CPU.

    Raises `UserError` for a GPU that torch has no kernels for.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    check_gpu()
    return torch.device("cuda")


def check_gpu() -> None:
    """Raise `UserError` where torch cannot use the GPU of this process."""
    torch_name = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        capability, built_for = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
        if torch.version.cuda and built_for and not any(_runs_on(capability, arch) for arch in built_for):
            raise UserError(
                f"{torch_name} has no kernels for {torch.cuda.get_device_name()} (sm_{capability[0]}{capability[1]}); "
                f"expected one of {', '.join(built_for)}. Install a build from {OLD_CUDA} or {WITHOUT_GPU}."
            )
    elif not torch.version.cuda:
        raise UserError(
            f"{torch_name} is built without CUDA and cannot use the GPU of this worker. "
            f"Install torch with CUDA or {WITHOUT_GPU}."
        )
    else:
        first_driver = FIRST_DRIVER.get(torch.version.cuda.partition(".")[0], "a newer one")
        raise UserError(
            f"{torch_name} for CUDA {torch.version.cuda} cannot use the GPU of this worker: its driver is "
            f"{_driver_version()}, expected {first_driver} or newer. "
            f"Update the driver, install a build from {OLD_CUDA}, or {WITHOUT_GPU}."
        )


def _runs_on(capability: tuple[int, int], arch: str) -> bool:
    """Return whether code for `arch`, such as `sm_80` or `compute_90`, runs on a GPU of this capability."""
    kind, _, number = arch.partition("_")
    version = int(re.sub(r"\D", "", number) or 0)
    built_for = divmod(version, 10)
    if kind == "compute":  # the driver compiles it for any later GPU
        return capability >= built_for
    return capability[0] == built_for[0] and capability[1] >= built_for[1]


def _driver_version() -> str:
    """Return the version of NVIDIA's driver, `unknown` where it does not say."""
    text = DRIVER.read_text() if DRIVER.exists() else ""
    match = re.search(r"\d+\.\d+(?:\.\d+)?", text)
    return match[0] if match else "unknown"


def number_types(device: torch.device) -> list[torch.dtype]:
    """List the number types that the chip computes natively, the most exact first.

    Emulated bf16 is slower than fp32, and so is fp16 on any CPU. That a chip lists a type does not say that it is fast:
    a Xeon with `avx512_bf16` and without AMX computes bf16 slower than fp32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return [torch.float32, torch.bfloat16 if native else torch.float16]
    chip = torch.cpu.get_capabilities()
    native = any(chip.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return [torch.float32, torch.bfloat16] if native else [torch.float32]


def allowed_number_types(device: torch.device, precision: Precision) -> list[torch.dtype]:
    """List the number types that `--precision` allows, the most exact first. Raises `UserError` if there is none.

    Without the flag (`auto`) a GPU computes in its fast type, which has four and more times the rate of float32.
    """
    native = number_types(device)
    if precision == "auto":
        return native[-1:] if device.type == "cuda" else native
    allowed = [dtype for dtype in native if dtype_name(dtype) == precision]
    if not allowed:
        names = " and ".join(map(dtype_name, native))
        raise UserError(
            f"--precision {precision}: {device_name(device)} computes {names} only. Leave out --precision, or choose "
            "one of these."
        )
    return allowed


def device_name(device: torch.device) -> str:
    """Return the model of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name", "CPU"))


def chip_id(device: torch.device) -> str:
    """Return the model of the GPU or CPU with a hash of what else tells chips apart, for records of measurements."""
    details = device_name(device)
    if device.type == "cpu" and Path("/proc/cpuinfo").exists():
        first_core = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        lines = [line for line in first_core.splitlines() if line.partition("\t")[0].rstrip(": ") in CPU_FIELDS]
        details = "\n".join(lines)
    digest = hashlib.sha256(f"{platform.machine()} {details}".encode()).hexdigest()
    return f"{device_name(device)} {digest[:8]}"


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Multiply in this number type where that is safe.

    float32 switches autocast off, inside another one too.
    """
    low_precision = dtype != torch.float32
    return torch.autocast(device.type, dtype if low_precision else torch.bfloat16, enabled=low_precision)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out.

    cuBLAS and CUDA's driver raise errors of their own for that, not torch's, and so does torch on a CPU.
    """
    words = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in words)


def still_computes(device: torch.device) -> bool:
    """Return whether this process can use the device; after some errors a GPU refuses it everything.

    The text of an error does not tell: Triton, cuDNN and CUDA word theirs differently, and many leave the GPU usable.
    """
    if device.type != "cuda":
        return True
    try:
        torch.ones(1, device=device).sum().item()  # waits for all that was launched
    except Exception as error:
        return is_out_of_memory(error)
    return True


def dtype_name(dtype: torch.dtype) -> str:
    """Return a number type's name without `torch.`."""
    return str(dtype).removeprefix("torch.")


def to_device(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """Copy arrays to the device.

    A GPU gets them from pinned memory, so that the copy does not wait for what computes there.
    """
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type != "cuda":
        return tensors
    return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
