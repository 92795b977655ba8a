"""What a disk holds after a power cut, modelled: names and bytes that were never flushed may be lost.

`Disk` watches a folder while something is saved in it. After every flush, rename and removal it keeps what had been flushed until
then, and what stood there at that moment, flushed or not. `after_cut` writes what could be left of that into another folder.

The model: the bytes of a file are safe once the file was flushed after its last write, the names of a folder once the folder was.
What was not flushed may or may not be there; the two extremes are tried: none of it, and all names with no bytes behind them, which
is what a file system does that writes names before bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Names = dict[int, dict[str, tuple[int, bool]]]
"""Of each folder, by inode: the inode of each name, and whether it is a folder."""


@dataclass(frozen=True)
class Moment:
    """What was safe, and what was visible, right after an operation."""

    operation: str
    safe_bytes: dict[int, bytes]
    safe_names: Names
    visible_names: Names


@dataclass
class Disk:
    """The folder that is watched, and its moments."""

    root: Path
    moments: list[Moment] = field(default_factory=list)
    _bytes: dict[int, bytes] = field(default_factory=dict)
    _names: Names = field(default_factory=dict)

    def watch(self, patch: pytest.MonkeyPatch, *, flushes: bool = True) -> None:
        """Watch from here on; without `flushes` they are left out, as by a program that forgets them."""
        for path in (self.root, *self.root.rglob("*")):
            self._flushed(path)
        really = os.fsync

        def fsync(descriptor: int) -> None:
            really(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if flushes and path.is_relative_to(self.root):
                self._flushed(path)
                self._note(f"flush of {path.name}")

        patch.setattr(os, "fsync", fsync)
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, self._noting(name, getattr(os, name)))

    def after_cut(self, moment: Moment, folder: Path, *, names_without_bytes: bool) -> None:
        """Write into `folder` what a cut at that moment may leave."""
        names = moment.visible_names if names_without_bytes else moment.safe_names
        _write(self.root.stat().st_ino, folder, names, moment.safe_bytes)

    def _noting(self, name: str, really: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            result = really(*args, **kwargs)
            self._note(f"{name} {' '.join(map(str, args))}")
            return result

        return operation

    def _flushed(self, path: Path) -> None:
        facts = path.stat()
        if stat.S_ISDIR(facts.st_mode):
            self._names[facts.st_ino] = _names_in(path)
        else:
            self._bytes[facts.st_ino] = path.read_bytes()

    def _note(self, operation: str) -> None:
        folders = [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]
        visible = {folder.stat().st_ino: _names_in(folder) for folder in folders}
        self.moments.append(Moment(operation, dict(self._bytes), dict(self._names), visible))


def _names_in(folder: Path) -> dict[str, tuple[int, bool]]:
    return {path.name: (path.stat().st_ino, path.is_dir()) for path in folder.iterdir()}


def _write(inode: int, folder: Path, names: Names, content: dict[int, bytes]) -> None:
    folder.mkdir()
    for name, (inner, is_folder) in names.get(inode, {}).items():
        if is_folder:
            _write(inner, folder / name, names, content)
        else:
            (folder / name).write_bytes(content.get(inner, b""))
