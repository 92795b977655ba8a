"""The folder of one run: what is in it, who may write to it, and how it stands."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tutelage.errors import RunDirError
from tutelage.files.atomic import remove_staging, write_json

_LOCK_NAME = "run.lock"
_STATUS_NAME = "run.json"
_CHECKPOINT = re.compile(r"step-(\d+)")
_held_locks: set[int] = set()


def _drop_locks_in_child() -> None:
    """Close inherited locks: a worker that outlives a killed run must not keep its folder locked."""
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


os.register_at_fork(after_in_child=_drop_locks_in_child)


class RunDir:
    """A run's folder. `create` and `open(..., lock=True)` hold its lock until `close`; plain `open` only reads."""

    def __init__(self, path: str | Path, *, lock: int | None = None) -> None:
        self.path = Path(path)
        self._lock = lock

    @classmethod
    def create(cls, path: str | Path) -> RunDir:
        """Make a new run folder and lock it; an existing empty folder is taken as it is.

        Raises: RunDirError when the folder holds anything already or another process is creating it.
        """
        path = Path(path)
        _make_folder(path)
        if not (path / _LOCK_NAME).exists():  # somebody's own folder: leave no lock file in it
            _refuse_occupied(path)
        run = cls(path, lock=_take_lock(path))
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

        Raises: RunDirError when there is no run in `path`, or `lock` is asked for and another process holds it.
        """
        path = Path(path)
        if not (path / _STATUS_NAME).is_file():
            raise RunDirError(
                f"{path} is not a run directory (it has no {_STATUS_NAME})", mend="give the folder that `run.dir` named"
            )
        if not lock:
            return cls(path)
        run = cls(path, lock=_take_lock(path))
        for folder in (run.path, run.checkpoints):
            remove_staging(folder)
        return run

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            _held_locks.discard(self._lock)
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
        """One line per step that was left out: why, its rows, and the command that looks at them again."""
        return self.path / "incidents.jsonl"

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


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(f"{path} cannot be made: {error.strerror}", mend="choose another run.dir") from error


def _take_lock(path: Path) -> int:
    descriptor = os.open(path / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise RunDirError(
            f"{path} is in use by {owner}", mend="wait until that run has ended, or choose another run.dir"
        ) from None
    _held_locks.add(descriptor)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {_now()}\n".encode(), 0)
    return descriptor


def _refuse_occupied(path: Path) -> None:
    names = sorted(entry.name for entry in path.iterdir() if entry.name != _LOCK_NAME)
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise RunDirError(
            f"{path} is not empty: it holds {', '.join(names[:5])}{more}",
            mend="choose another run.dir, or move the old run away; nothing is ever overwritten",
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
