"""What the run ran on: versions, machine, device, threads; and the allocator setting that CPU training wants."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from importlib import metadata

import torch

from tutelage.config.schema import TrainConfig
from tutelage.errors import ConfigError
from tutelage.parallel import agree

PACKAGES = ("tutelage", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # malloc.h of glibc


def choose_device(config: TrainConfig) -> torch.device:
    """Return the device of this process: `auto` takes the GPU of this rank where there is one.

    Raises:
        ConfigError: a CUDA device is asked for and torch sees none.
    """
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(f"train.device is {config.device!r} but torch sees no CUDA device", mend="train.device=cpu")
    if ":" in config.device:
        return torch.device(config.device)
    return torch.device("cuda", agree.local_rank())


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks instead of returning them to the kernel; return whether it could be told.

    Each training step allocates and frees the same large activations. By default glibc maps and unmaps every one of them, and the
    kernel zeroes the pages anew: some 10^5 page faults a step, up to a third of the time of a small model.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    largest = 2**31 - 1
    return bool(mallopt(M_MMAP_THRESHOLD, largest)) and bool(mallopt(M_TRIM_THRESHOLD, largest))


def describe_environment(device: torch.device) -> dict[str, object]:
    """Return versions, platform, device and threads for `environment.json`."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "world_size": agree.world_size(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123 - a kernel file, read only
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        return platform.processor()
