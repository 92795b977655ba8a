"""What the machine has left, read as the kernel writes it, and what this process took."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage.files import proc
from tutelage.train import usage
from tutelage.train.usage import PeakMeter, free_bytes

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


@pytest.mark.skipif(not proc.STATUS.exists(), reason="needs /proc")
def test_the_meter_sees_memory_that_was_taken_and_given_back() -> None:
    meter = PeakMeter(CPU)
    meter.begin()
    size = 400 * 2**20
    taken = np.ones(size, dtype=np.uint8)
    del taken
    peak = meter.peak_bytes()
    assert peak is not None
    assert peak == pytest.approx(size, rel=0.15)
