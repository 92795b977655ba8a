"""What the machine has left, read as the kernel writes it, and what this process took."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tutelage.files import proc
from tutelage.train import usage
from tutelage.train.usage import free_bytes

CPU = torch.device("cpu")
MEMINFO = "MemTotal:       1000 kB\nMemAvailable:    500 kB\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for /proc/meminfo and /sys/fs/cgroup."""
    monkeypatch.setattr(proc, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(usage, "CGROUP", tmp_path / "cgroup")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "cgroup" / "memory").mkdir(parents=True)
    return tmp_path


def test_without_a_limit_all_that_is_available_is_free(machine: Path) -> None:
    assert free_bytes(CPU) == 500 * 1024


def test_ranks_of_one_machine_share_what_is_free(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(CPU) == 125 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "cached"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_has_what_its_limit_leaves_cached_files_not_counted(
    machine: Path, limit: str, used: str, cached: str
) -> None:
    cgroup = machine / "cgroup"
    (cgroup / used).write_text("9000\n")
    (cgroup / used).with_name("memory.stat").write_text(f"anon 1\n{cached} 4000\n")
    (cgroup / limit).write_text("20000\n")
    assert free_bytes(CPU) == 20000 - 5000
    (cgroup / limit).write_text("max\n")
    assert free_bytes(CPU) == 500 * 1024


def test_a_system_that_says_nothing_has_no_limit(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert free_bytes(CPU) == math.inf


TAKE = """
import numpy as np, torch
from tutelage.train.usage import PeakMeter

meter = PeakMeter(torch.device("cpu"))
meter.begin()
taken = np.ones(400 * 2**20, dtype=np.uint8)
del taken
print(meter.peak_bytes())
"""


@pytest.mark.skipif(not proc.STATUS.exists(), reason="needs /proc")
def test_the_meter_sees_memory_that_was_taken_and_given_back() -> None:
    # In a process of its own: one that ran other tests may hold freed blocks, and take what it is asked for from those.
    ended = subprocess.run([sys.executable, "-c", TAKE], capture_output=True, text=True, check=True, timeout=120)
    assert int(ended.stdout) == pytest.approx(400 * 2**20, rel=0.15)
