"""What the Linux kernel says about this machine and this process in /proc, and the one thing that it can be told there."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # man 5 proc: the peak of the resident set becomes its present size


def read_bytes(path: Path, name: str) -> int | None:
    """Return the value of a line such as `MemAvailable:  1234 kB` in bytes, None where there is no such file or line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def forget_peak() -> bool:
    """Let VmHWM, the peak of this process's resident set, begin anew; return whether the kernel did so."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:  # not Linux, or not allowed
        return False
    return True
