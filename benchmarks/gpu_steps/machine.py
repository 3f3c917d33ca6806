"""Describe the machine, and measure what the chip can do at most."""

import ctypes
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import torch
from timing import matrix_ceiling

from gpu_steps.bench import Bench
from sentiment_core.model import bundle
from sentiment_core.runtime import hardware

NAME_BYTES = 96  # of NVML's texts


def describe_machine(bench: Bench) -> None:
    """Record driver, GPU, libraries, and what compiling and Ray would need."""
    bench.measure("libraries", bundle.library_versions)
    bench.measure("host", describe_host)
    bench.measure("gpu", describe_gpu, bench)
    bench.measure("driver", ask_nvidia_smi, bench)
    bench.measure("nvml", ask_nvml, bench)


def describe_host() -> dict[str, Any]:
    """Describe CPUs, memory and compiler."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    shared = Path("/dev/shm")
    return {
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch_threads": torch.get_num_threads(),
        "memory_gb": pages * page_bytes / 2**30,
        "shared_memory_gb": shutil.disk_usage(shared).total / 2**30 if shared.exists() else None,
        "c_compiler": shutil.which("gcc") or shutil.which("cc"),
        "has_python_headers": Path(sysconfig.get_path("include"), "Python.h").exists(),
    }


def describe_gpu(bench: Bench) -> dict[str, Any]:
    """Describe the GPU and torch's build for it."""
    bench.require_gpu()
    properties = torch.cuda.get_device_properties(bench.device)
    free, total = torch.cuda.mem_get_info(bench.device)
    return {
        "name": hardware.device_name(bench.device),
        "gpus": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": total / 2**30,
        "free_memory_gb": free / 2**30,
        "cuda": torch.version.cuda,
        "architectures": torch.cuda.get_arch_list(),
        "number_types": [hardware.dtype_name(dtype) for dtype in hardware.number_types(bench.device)],
        "attention": {
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        },
    }


def ask_nvidia_smi(bench: Bench) -> dict[str, str]:
    """Ask for driver, power limit and clock."""
    bench.require_gpu()
    names = ("driver_version", "power.limit", "clocks.max.sm")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=8, check=True)
    return dict(zip(names, (part.strip() for part in done.stdout.splitlines()[0].split(",")), strict=True))


def ask_nvml(bench: Bench) -> dict[str, Any]:
    """Count GPUs as Ray does, by NVIDIA's management library."""
    bench.require_gpu()
    library = ctypes.CDLL("libnvidia-ml.so.1")
    if error := library.nvmlInit_v2():
        raise RuntimeError(f"nvmlInit_v2 gives error {error}")
    try:
        count, driver = ctypes.c_uint(), ctypes.create_string_buffer(NAME_BYTES)
        errors = [
            library.nvmlDeviceGetCount_v2(ctypes.byref(count)),
            library.nvmlSystemGetDriverVersion(driver, NAME_BYTES),
        ]
    finally:
        library.nvmlShutdown()
    return {"gpus": count.value, "driver": driver.value.decode(), "errors": errors}


def measure_ceilings(bench: Bench) -> None:
    """Record bare matrix products at the encoders' shapes, and copies."""
    sizes = {(shape.hidden, shape.inner) for shape in bench.scale.shapes.values()}
    types = dict.fromkeys((torch.bfloat16, torch.float16, torch.float32) if bench.is_cuda else (bench.half,))
    for hidden, inner in sorted(sizes):
        for dtype in types:
            name = f"products of {hidden} and {inner} in {hardware.dtype_name(dtype)}"
            bench.measure(name, _measure_products, bench, hidden, inner, dtype)
    bench.measure("copy on the device", measure_copy, bench)
    bench.measure("copy from pinned memory", measure_upload, bench)


def _measure_products(bench: Bench, hidden: int, inner: int, dtype: torch.dtype) -> dict[str, float]:
    return {"flops": matrix_ceiling(hidden, inner, dtype, bench.device, bench.scale.ceiling_tokens)}


def measure_copy(bench: Bench) -> dict[str, float]:
    """Measure memory bandwidth: bytes read and written by a copy."""
    source = torch.ones(bench.scale.copy_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.device_seconds(lambda: target.copy_(source))
    return {"bytes_per_second": 2 * source.numel() / seconds}


def measure_upload(bench: Bench) -> dict[str, float]:
    """Measure copies from the host's pinned memory."""
    bench.require_gpu()
    source = torch.ones(bench.scale.copy_bytes // 16, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=bench.device)
    seconds = bench.device_seconds(lambda: target.copy_(source, non_blocking=True))
    return {"bytes_per_second": source.numel() / seconds}
