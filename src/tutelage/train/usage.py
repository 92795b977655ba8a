"""What memory the machine has left, and what this process really took at its peak."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from tutelage.files import proc

CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> float:
    """Return the bytes that this process can still take on `device`; on a CPU, its part of what its machine or cgroup has left.

    Infinite where the system does not say.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    known = [size for size in (_available_bytes(), _cgroup_bytes()) if size is not None]
    return min(known, default=math.inf) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _available_bytes() -> int | None:
    """Return what the kernel would give without swapping."""
    return proc.read_bytes(proc.MEMINFO, "MemAvailable")


def _cgroup_bytes() -> int | None:
    """Return what the limit of this container leaves (cgroup v2, then v1), None without a limit."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "total_inactive_file",
        ),
    )
    for limit, used, cached in names:
        try:
            statistics = dict(
                line.split() for line in (CGROUP / used).with_name("memory.stat").read_text().splitlines()
            )
            taken = int((CGROUP / used).read_text()) - int(
                statistics[cached]
            )  # the kernel drops cached files by itself
            return int((CGROUP / limit).read_text()) - taken
        except (OSError, ValueError, KeyError):  # no such file, or no limit: "max"
            continue
    return None


class PeakMeter:
    """Measures the most memory that this process held beyond what it had when the meter was made, before the model was.

    On a GPU that is what torch's allocator gave out; on a CPU the resident set, in which libraries and what the C library keeps for
    later count as well: some ten to a hundred MB, whatever the model.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = (
            torch.cuda.memory_allocated(device) if device.type == "cuda" else proc.read_bytes(proc.STATUS, "VmRSS")
        )

    def begin(self) -> None:
        """Look for the peak from now on, where the system can forget an earlier one."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            proc.forget_peak()

    def peak_bytes(self) -> int | None:
        """Return the peak so far, None where the system does not say."""
        on_gpu = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if on_gpu else proc.read_bytes(proc.STATUS, "VmHWM")
        return None if peak is None or self._before is None else peak - self._before
