"""What the machine at hand can do: device, number type, memory."""

import numpy as np
import torch


def device() -> torch.device:
    """The GPU that Ray gave this process, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(on: torch.device) -> torch.dtype:
    """bfloat16 where the chip multiplies it natively (4 to 5 times the fp32 rate on a Zen 5 core), else float32.

    Emulated bf16 is slower than fp32, and so is fp16 on any CPU.
    """
    if on.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        chip = torch.cpu.get_capabilities()
        native = any(chip.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def device_name(on: torch.device) -> str:
    if on.type == "cuda":
        return torch.cuda.get_device_name(on)
    return str(torch.cpu.get_capabilities().get("cpu_name", "CPU"))


def autocast(on: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Multiplies in `dtype` what is safe to; float32 switches it off, within another one too."""
    return torch.autocast(on.type, torch.bfloat16, enabled=dtype != torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def to_device(on: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """The arrays on the device; to a GPU from pinned memory, so that the copy does not wait for what computes there."""
    tensors = [torch.from_numpy(array) for array in arrays]
    return [t.pin_memory().to(on, non_blocking=True) for t in tensors] if on.type == "cuda" else tensors
