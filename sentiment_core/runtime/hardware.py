"""Choose device and number type of the machine at hand."""

import numpy as np
import torch


def device() -> torch.device:
    """Return the GPU that Ray gave this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the chip multiplies it natively, else float32.

    Native bf16 has 4 to 5 times the fp32 rate on a Zen 5 core. Emulated it is slower than fp32, and so is fp16 on any
    CPU.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        chip = torch.cpu.get_capabilities()
        native = any(chip.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def device_name(device: torch.device) -> str:
    """Return the model of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name", "CPU"))


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Multiply in bfloat16 where that is safe.

    float32 switches autocast off, inside another one too.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32)


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
