"""A disk that fills up: the run goes on without the checkpoint, or stops with exit code 74; what was saved before stays as it is."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_folder
from tiny_runs import Teller, go, outcome, write_texts
from tutelage.cli.edge import guard
from tutelage.errors import DiskFullError
from tutelage.files import jsonl, room
from tutelage.files.atomic import STAGING_PREFIX
from tutelage.files.manifest import verify_manifest
from tutelage.files.rundir import RunDir
from tutelage.train.checkpoint import read_state

NUM_STEPS = 8
SETTINGS = (
    f"train.max_steps={NUM_STEPS}",
    "train.checkpoint_every_steps=2",
    "train.evaluate_every_steps=4",
    "data.cache=off",
)
FULL = (errno.ENOSPC, errno.EDQUOT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    tiny_folder(folder / "model", "llama_tied")
    write_texts(folder)
    return folder


@pytest.fixture(scope="module")
def straight(place: Path) -> Any:
    assert go(place, "straight", *SETTINGS) == "finished"
    return outcome(place / "straight")


class Disk:
    """A disk with room for `left` bytes more, once writes go to a file whose path holds `where`; then `number` is raised."""

    def __init__(self, patch: pytest.MonkeyPatch, where: str, left: int, number: int = errno.ENOSPC) -> None:
        self.where, self.left, self.number = where, left, number
        self.refused = 0
        self._really = os.write
        patch.setattr(os, "write", self._write)

    def _write(self, descriptor: int, data: bytes | memoryview) -> int:
        if self.where in os.readlink(f"/proc/self/fd/{descriptor}"):
            if self.left <= 0:
                self.refused += 1
                raise OSError(self.number, os.strerror(self.number))
            data = memoryview(data)[: self.left]  # a disk takes what it can
            self.left -= len(data)
        return self._really(descriptor, data)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def staged(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{STAGING_PREFIX}*"))


@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_a_save_that_the_disk_refuses_costs_that_checkpoint_and_nothing_else(
    place: Path, straight: Any, monkeypatch: pytest.MonkeyPatch, percent: int
) -> None:
    folder = place / f"percent-{percent}"
    size = size_of(RunDir(place / "straight").checkpoint(NUM_STEPS))
    told = Teller()
    with monkeypatch.context() as patch:
        disk = Disk(patch, "-step-000004-", size * percent // 100, FULL[percent % 2])
        assert go(place, folder.name, *SETTINGS, narrator=told) == "finished"
    assert disk.refused
    assert outcome(folder) == straight
    assert any("could not be saved" in line and "step 2 is untouched" in line for line in told.lines)
    assert [line["not_saved"] for line in jsonl.read(RunDir(folder).incidents)] == [4]
    assert RunDir(folder).checkpoint_steps() == [6, 8]
    assert all(verify_manifest(RunDir(folder).checkpoint(step)) == [] for step in (6, 8))
    assert staged(folder) == []
    shutil.rmtree(folder)
