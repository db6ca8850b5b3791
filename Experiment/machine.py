"""What this machine computes with: its processor, and the GPUs that NVIDIA's driver knows. No framework is asked."""

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path

import psutil

CPUINFO, DRIVER = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")
LIBRARIES = {"win32": "nvcuda.dll"}  # elsewhere libcuda.so.1
# Numbers of cuda.h.
NO_DEVICE, MAJOR, MINOR = 100, 75, 76


def cpu_info():
    """What Linux says of the processor, text; elsewhere empty."""
    return CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""


def computes_bfloat16():
    """Whether the processor has instructions for products of bfloat16 matrices: AVX512-BF16 or AMX."""
    return any(flag in cpu_info() for flag in ("avx512_bf16", "amx_bf16"))


@cache
def processor():
    """{"name", "cores", "memory_gb"} of the processor."""
    names = [line.partition(":")[2].strip() for line in cpu_info().splitlines() if line.startswith("model name")]
    name = next(filter(None, names), "") or platform.processor() or platform.machine()
    return {"name": name, "cores": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 2**30)}


@cache
def driver_gpus():
    """The GPUs that NVIDIA's driver answers for and that the user has not hidden, and why there is no answer.

    Returns:
        [{"name", "compute_capability": "9.0", "memory_gb"}], and a reason, empty where there is an answer or no GPU.
    """
    try:
        cuda = ctypes.CDLL(LIBRARIES.get(sys.platform, "libcuda.so.1"))
    except OSError as error:
        there = DRIVER.is_dir() and any(DRIVER.iterdir())
        return [], f"the driver's library cannot be loaded: {error}" if there else ""
    if code := cuda.cuInit(0):
        return [], "" if code == NO_DEVICE else f"the driver answers with error {code}"
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return [gpu_facts(cuda, number) for number in range(count.value)], ""


def gpu_facts(cuda, number):
    """What the driver says of a GPU."""
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    version = [ctypes.c_int(), ctypes.c_int()]
    for value, attribute in zip(version, (MAJOR, MINOR)):
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return {
        "name": name.value.decode(errors="replace"),
        "compute_capability": ".".join(str(value.value) for value in version),
        "memory_gb": round(size.value / 2**30),
    }


def used_gpus():
    """The GPUs that TensorFlow uses in this process, as `driver_gpus` has them; none before it is imported."""
    tensorflow = sys.modules.get("tensorflow")
    config = getattr(tensorflow, "config", None)  # None while it is being imported
    count = len(config.list_physical_devices("GPU")) if config else 0
    unknown = {"name": "GPU", "compute_capability": "", "memory_gb": None}
    return [*driver_gpus()[0], *[unknown] * count][:count]


def describe_machine():
    """The machine as a record has it."""
    return {"system": platform.platform(), "cores": os.cpu_count(), "processor": processor(), "gpus": used_gpus()}


def device_name():
    """What the networks run on, for a banner: name and memory of the GPUs, or of the processor."""
    gpus = used_gpus()
    if not gpus:
        cpu = processor()
        return f"{cpu['name']}, {cpu['cores']} cores, {cpu['memory_gb']} GB"
    first = gpus[0]
    facts = [
        f"{len(gpus)} x {first['name']}" if len(gpus) > 1 else first["name"],
        f"compute capability {first['compute_capability']}" if first["compute_capability"] else "",
        f"{first['memory_gb']} GB" if first["memory_gb"] else "",
    ]
    return ", ".join(filter(None, facts))
