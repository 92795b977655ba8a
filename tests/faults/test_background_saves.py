"""Checkpoints that are written while training goes on hold the moment of their step, and their failure stops the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_folder
from tiny_runs import go, outcome, write_texts
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir
from tutelage.train import saver
from tutelage.train.checkpoint import Snapshot

NUM_STEPS = 6
SETTINGS = (
    f"train.max_steps={NUM_STEPS}",
    "train.checkpoint_every_steps=2",
    "train.keep_checkpoints=9",
    "train.evaluate_every_steps=6",
)
IN_BACKGROUND = (*SETTINGS, "train.save_in_background=true")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("background")
    tiny_folder(folder / "model", "llama_tied")
    write_texts(folder)
    return folder


def saved(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all checkpoints of a run, but for the fingerprint of where it lies."""
    files = sorted(RunDir(folder).checkpoints.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def in_foreground(place: Path) -> tuple[Any, dict[str, bytes]]:
    assert go(place, "foreground", *SETTINGS) == "finished"
    return outcome(place / "foreground"), saved(place / "foreground")


@pytest.fixture
def slow_writer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let each write begin when the next step has long been taken; return the threads that wrote."""
    writers: list[str] = []
    write = saver.write_snapshot

    def slowly(folder: Path, taken: Snapshot) -> None:
        writers.append(folder.name)
        time.sleep(0.4)
        write(folder, taken)

    monkeypatch.setattr(saver, "write_snapshot", slowly)
    return writers


def test_what_is_saved_is_of_its_step_whatever_is_learned_meanwhile(
    place: Path, in_foreground: tuple[Any, dict[str, bytes]], slow_writer: list[str]
) -> None:
    assert go(place, "slow", *IN_BACKGROUND) == "finished"
    assert slow_writer == [f"step-{step:06d}" for step in range(0, NUM_STEPS + 1, 2)]
    assert (outcome(place / "slow"), saved(place / "slow")) == in_foreground


def test_a_save_that_copies_nothing_is_found_out(
    place: Path, in_foreground: tuple[Any, dict[str, bytes]], slow_writer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = saver.snapshot
    monkeypatch.setattr(saver, "snapshot", lambda *what, copied: take(*what, copied=False))
    go(place, "uncopied", *IN_BACKGROUND)
    assert slow_writer and saved(place / "uncopied") != in_foreground[1]


def failing(at: str) -> Callable[[Path, Snapshot], None]:
    write = saver.write_snapshot

    def fail(folder: Path, taken: Snapshot) -> None:
        if folder.name == at:
            raise PermissionError(f"{folder} must not be written")
        write(folder, taken)

    return fail


def test_a_failure_in_the_background_stops_the_run_at_the_next_step_and_it_can_be_gone_on_with(
    place: Path, in_foreground: tuple[Any, dict[str, bytes]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver, "write_snapshot", failing("step-000002"))
        with pytest.raises(PermissionError, match="must not be written"):
            go(place, "fails", *IN_BACKGROUND)
    assert len(jsonl.read(RunDir(place / "fails").metrics)) in (2, 3)
    assert go(place, "fails", *IN_BACKGROUND, resume=True) == "finished"
    assert outcome(place / "fails") == in_foreground[0]


def test_the_result_is_written_only_when_the_last_checkpoint_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "write_snapshot", failing(f"step-{NUM_STEPS:06d}"))
    with pytest.raises(PermissionError):
        go(place, "last", *IN_BACKGROUND)
    assert not RunDir(place / "last").final.exists()
