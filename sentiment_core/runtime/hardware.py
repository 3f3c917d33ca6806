"""Choose device and number type of the machine at hand."""

import hashlib
import platform
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


def device() -> torch.device:
    """Return the GPU that Ray gave this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
