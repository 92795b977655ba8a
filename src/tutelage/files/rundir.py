"""The folder of one run: what is in it, who may write to it, and how it stands."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tutelage.errors import RunDirError, UnsafeError
from tutelage.files.atomic import remove_staging, write_json

_LOCK_NAME = "run.lock"
_STATUS_NAME = "run.json"
_CHECKPOINT = re.compile(r"step-(\d+)")
_OWNER = re.compile(r"process (\d+) on (\S+) since")
_OWNER_WAIT_SECONDS = 2.0  # for an owner that has the lock and is about to write its name
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_held_locks: set[int] = set()


def _drop_locks_in_child() -> None:
    """Close inherited locks: a worker that outlives a killed run must not keep its folder locked."""
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


os.register_at_fork(after_in_child=_drop_locks_in_child)


class RunDir:
    """A run's folder. `create` and `open(..., lock=True)` hold its lock until `close`; plain `open` only reads.

    `is_locked` is False where the file system has no locks (some network ones): then only one process can create a run, but nothing
    keeps a second from going on with it.
    """

    def __init__(self, path: str | Path, *, lock: int | None = None, is_locked: bool = True) -> None:
        self.path = Path(path)
        self._lock = lock
        self.is_locked = is_locked

    @classmethod
    def create(cls, path: str | Path) -> RunDir:
        """Make a new run folder and lock it; an existing empty folder is taken as it is.

        Raises: RunDirError when the folder holds anything already or another process is creating it.
        """
        path = Path(path)
        _make_folder(path)
        _refuse_links(path)
        _refuse_occupied(path, unless_locked=True)  # somebody's own folder: leave no lock file in it
        descriptor, is_locked = _take_lock(path, exclusively=True)
        run = cls(path, lock=descriptor, is_locked=is_locked)
        try:
            _refuse_occupied(path)
        except RunDirError:
            run.close()
            raise
        write_json(run.status_file, {"status": "running", "started": _now(), "ended": None, "result": None})
        return run

    @classmethod
    def open(cls, path: str | Path, *, lock: bool = False) -> RunDir:
        """Open the folder of an earlier run, to read it or, with `lock`, to go on with it.

        Whoever goes on first removes what a killed process had begun to write.

        Raises: RunDirError when there is no run in `path`, or `lock` is asked for and another process holds it; UnsafeError when
        a link in it leads out of it.
        """
        path = Path(path)
        if not (path / _STATUS_NAME).is_file():
            raise RunDirError(
                f"{path} is not a run directory (it has no {_STATUS_NAME})", mend="give the folder that `run.dir` named"
            )
        _refuse_links(path)
        if not lock:
            return cls(path)
        descriptor, is_locked = _take_lock(path)
        run = cls(path, lock=descriptor, is_locked=is_locked)
        for folder in (run.path, run.checkpoints):
            remove_staging(folder)
        return run

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            _held_locks.discard(self._lock)
            os.ftruncate(self._lock, 0)  # nobody is to read the name of an owner that is gone
            if self.is_locked:
                fcntl.flock(self._lock, fcntl.LOCK_UN)  # at once, even if a worker was forked a moment ago
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def mark(self, status: str, *, result: Any = None) -> None:
        """Record how the run stands: `running`, `finished`, `stopped` or `failed`, and what came of it."""
        ended = None if status == "running" else _now()
        write_json(self.status_file, {**self.status, "status": status, "ended": ended, "result": result})

    @property
    def status(self) -> dict[str, Any]:
        """Content of run.json: `status`, `started`, `ended`, `result`."""
        content: dict[str, Any] = json.loads(self.status_file.read_bytes())
        return content

    @property
    def status_file(self) -> Path:
        """How the run stands."""
        return self.path / _STATUS_NAME

    @property
    def config(self) -> Path:
        """The resolved configuration; training it again repeats the run."""
        return self.path / "config.yaml"

    @property
    def origins(self) -> Path:
        """Where each configuration value came from."""
        return self.path / "origins.json"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def ledger(self) -> Path:
        """What became of every input row."""
        return self.path / "ledger.json"

    @property
    def quarantine(self) -> Path:
        """Rows that were dropped, each with file, line, reason and an excerpt."""
        return self.path / "quarantine.jsonl"

    @property
    def metrics(self) -> Path:
        """One line per training step."""
        return self.path / "metrics.jsonl"

    @property
    def incidents(self) -> Path:
        """What should not have happened, a line each: steps left out, with their rows and how to look at them again, and the like."""
        return self.path / "incidents.jsonl"

    @property
    def out_of_memory(self) -> Path:
        """How large passes were when memory last ran out; only where it did."""
        return self.path / "out_of_memory.json"

    @property
    def evals(self) -> Path:
        """One line per evaluation."""
        return self.path / "evals.jsonl"

    @property
    def samples(self) -> Path:
        """Answers given before, during and after training."""
        return self.path / "samples.jsonl"

    @property
    def plan(self) -> Path:
        """What the run set out to do: documents, tokens, packs, steps, memory."""
        return self.path / "plan.json"

    @property
    def receipt(self) -> Path:
        """The checks of the laws, with their figures."""
        return self.path / "receipt.json"

    @property
    def evaluation(self) -> Path:
        """What fine-tuning did to the model, against its base; written by `tutelage eval`."""
        return self.path / "evaluation.json"

    @property
    def masks(self) -> Path:
        """A few documents with the weight and origin of every token."""
        return self.path / "masks.json"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def final(self) -> Path:
        """The result: a Hugging Face model folder, or a peft adapter folder."""
        return self.path / "final"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint written after `step` optimiser steps."""
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """Return the steps that have a checkpoint, ascending."""
        if not self.checkpoints.is_dir():
            return []
        matches = (_CHECKPOINT.fullmatch(entry.name) for entry in self.checkpoints.iterdir())
        return sorted(int(match[1]) for match in matches if match)


def _refuse_links(path: Path) -> None:
    """Refuse a run folder, which may be somebody else's, with links through which files outside of it would be read or written."""
    inside = path.resolve()
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            entry = Path(folder) / name
            if entry.is_symlink() and not entry.resolve().is_relative_to(inside):
                raise UnsafeError(
                    f"{entry} is a link that leads out of the run, to {entry.readlink()}",
                    mend="put the file or folder itself in its place; run.dir as a whole may be a link",
                )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(f"{path} cannot be made: {error.strerror}", mend="choose another run.dir") from error


def _take_lock(path: Path, *, exclusively: bool = False) -> tuple[int, bool]:
    """Return the open lock file, and whether it is locked: where the file system has no locks, it is not.

    There, a lock that is to be taken `exclusively` must be a new file: to make one is a single step on every file system.
    """
    descriptor, is_new = _open_lock(path / _LOCK_NAME)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_locked = True
    except BlockingIOError:
        raise _in_use(path, descriptor) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise
        is_locked = False
    if exclusively and not (is_locked or is_new):
        raise _in_use(path, descriptor)
    _held_locks.add(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n".encode(), 0)
    return descriptor, is_locked


def _open_lock(file: Path) -> tuple[int, bool]:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    except FileExistsError:
        return os.open(file, os.O_RDWR), False


def _in_use(path: Path, descriptor: int) -> RunDirError:
    owner = _owner(descriptor)
    os.close(descriptor)
    return RunDirError(f"{path} is in use by {owner}", mend="wait until that run has ended, or choose another run.dir")


def _owner(descriptor: int) -> str:
    """Return who wrote its name into the lock; one that is gone is the owner before, whose name is about to be replaced."""
    give_up = time.monotonic() + _OWNER_WAIT_SECONDS
    while True:
        text = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        if (text and not _is_gone(text)) or time.monotonic() > give_up:
            return text or "another process"
        time.sleep(0.02)


def _is_gone(owner: str) -> bool:
    found = _OWNER.match(owner)
    return found is not None and found[2] == socket.gethostname() and not _is_alive(int(found[1]))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _refuse_occupied(path: Path, *, unless_locked: bool = False) -> None:
    names = sorted(entry.name for entry in path.iterdir() if entry.name != _LOCK_NAME)
    if names and not (unless_locked and (path / _LOCK_NAME).exists()):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise RunDirError(
            f"{path} is not empty: it holds {', '.join(names[:5])}{more}",
            mend="choose another run.dir, or move the old run away; nothing is ever overwritten",
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
