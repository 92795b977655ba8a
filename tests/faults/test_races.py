"""Many processes that want one run directory: one has it, the others are told which; and lines that were being written when one died."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.errors import RunDirError
from tutelage.files import jsonl
from tutelage.files.rundir import RunDir

PROCESSES = 8


class Racer:
    """A forked process that takes the run directory when the race starts, and keeps it until it is released."""

    def __init__(self, start: int, take: Callable[[], RunDir]) -> None:
        (self._told, tell), (released, self._release) = os.pipe(), os.pipe()
        self.process = os.fork()
        if self.process == 0:
            try:
                os.close(self._release)
                os.read(start, 1)
                os.write(tell, _take(take).encode())
                os.close(tell)
                os.read(released, 1)
            finally:
                os._exit(0)
        os.close(tell)
        os.close(released)

    def said(self) -> str:
        """Return what came of it: "owner", or what it was told."""
        with os.fdopen(self._told) as told:
            return told.read()

    def end(self) -> None:
        os.write(self._release, b"x")  # to close it would not do: the racers forked later hold it too
        os.close(self._release)
        os.waitpid(self.process, 0)


def _take(take: Callable[[], RunDir]) -> str:
    try:
        take()
    except RunDirError as error:
        return error.problem
    return "owner"


def race(take: Callable[[], RunDir]) -> tuple[list[int], list[str]]:
    """Let processes race, and return the owners and what the others were told."""
    start, go = os.pipe()
    racers = [Racer(start, take) for _ in range(PROCESSES)]
    os.write(go, b"x" * PROCESSES)
    said = {racer.process: racer.said() for racer in racers}
    for racer in racers:
        racer.end()
    for descriptor in (start, go):
        os.close(descriptor)
    owners = [process for process, words in said.items() if words == "owner"]
    return owners, [words for words in said.values() if words != "owner"]


def require_one_owner(path: Path, take: Callable[[], RunDir]) -> None:
    owners, told = race(take)
    assert len(owners) == 1
    assert len(told) == PROCESSES - 1
    for words in told:
        assert f"in use by process {owners[0]} on" in words, words
    assert not list(path.glob(".new-*"))


@pytest.mark.parametrize("races", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_new_directory_has_one_owner_and_the_others_are_told_who(
    tmp_path: Path, figure: Callable[[str, str], None], races: int
) -> None:
    for number in range(races):
        path = tmp_path / str(number) / "run"
        require_one_owner(path, lambda path=path: RunDir.create(path))
    figure("races of eight processes for a new run directory, one owner", f"{races} of {races}")


@pytest.mark.parametrize("races", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_directory_whose_owner_was_killed_has_one_owner_again(
    tmp_path: Path, figure: Callable[[str, str], None], races: int
) -> None:
    for number in range(races):
        path = tmp_path / str(number)
        killed = os.fork()
        if killed == 0:
            RunDir.create(path)
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(killed, 0)
        assert f"process {killed} on" in (path / "run.lock").read_text()
        require_one_owner(path, lambda path=path: RunDir.open(path, lock=True))
    figure("races of eight processes for the directory of a killed run, one owner", f"{races} of {races}")


def test_a_build_without_the_lock_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunDir.create(tmp_path / "run").close()
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    with pytest.raises(AssertionError):
        require_one_owner(tmp_path / "run", lambda: RunDir.open(tmp_path / "run", lock=True))


def test_where_the_file_system_has_no_locks_one_process_creates_a_run_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with RunDir.create(tmp_path / "local") as run:
        assert run.is_locked
    monkeypatch.setattr(fcntl, "flock", refuse)
    owners, told = race(lambda: RunDir.create(tmp_path / "remote"))
    assert len(owners) == 1 and len(told) == PROCESSES - 1
    with RunDir.open(tmp_path / "remote", lock=True) as run:
        assert not run.is_locked


def test_a_lock_that_cannot_be_asked_for_is_not_taken_for_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        RunDir.create(tmp_path / "run")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_process_that_is_killed_while_it_appends_loses_at_most_that_line(tmp_path: Path, part: float) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "text": "x" * 5000} for step in range(3)]
    jsonl.write(path, lines[:2])
    really, child = os.write, os.fork()
    if child == 0:

        def torn(descriptor: int, data: bytes) -> int:
            really(descriptor, data[: int(part * len(data))])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        os.write = torn  # type: ignore[assignment]
        jsonl.append(path, lines[2])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if 0 < part < 1:
        with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
            [json.loads(line) for line in path.read_text().splitlines()]
    whole = lines if part == 1 else lines[:2]
    assert jsonl.read(path) == whole
    jsonl.append(path, {"step": 3})
    assert jsonl.read(path) == [*whole, {"step": 3}]
