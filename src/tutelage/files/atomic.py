"""Files and folders that appear whole or not at all. The one place where the package opens a file for writing.

A write goes to a new name beside the target, is flushed to the disk, and is then renamed over the target, which the
file system does in one step. Whoever looks sees the old content or the new, after a power cut too.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from tutelage.errors import RunDirError
from tutelage.files.encode import encode_json

STAGING_PREFIX = ".new-"
STREAM_BYTES = (
    2**23
)  # large enough for the disk, small enough that a block is still in the processor's cache when it is hashed
BAD_PREFIX = "bad-"


@dataclass(frozen=True)
class Digest:
    """Size in bytes and SHA-256 in hex of a file's content."""

    size: int
    sha256: str


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the content of `path` by `data` in one step; missing parent folders are made.

    Raises: OSError when the disk is full or the place cannot be written; the old content is then untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _staging_name(path)
    try:
        # Mode 0o666 lets the umask decide, as for any file a person makes; tempfile would leave 0600.
        descriptor = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            write_all(descriptor, memoryview(data))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        staging.replace(path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_stream(path: str | Path, parts: Iterable[memoryview]) -> Digest:
    """Write a new file in a staging folder from its parts, one after another, and return what it must read as from now on.

    The digest is of the bytes in memory, so a manifest made of it notices whatever the way to the disk and back does to them. The file
    is flushed with the folder (see `new_folder`).

    Raises: OSError when the disk is full or the place cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            flat = part.cast("B")
            for start in range(0, len(flat), STREAM_BYTES):
                block = flat[start : start + STREAM_BYTES]
                digest.update(block)
                write_all(descriptor, block)
                size += len(block)
    finally:
        os.close(descriptor)
    return Digest(size, digest.hexdigest())


def write_text(path: str | Path, text: str) -> None:
    """Replace the content of `path` by `text` as UTF-8, in one step."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Replace the content of `path` by `value` as indented JSON, in one step (see `encode_json`)."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the text that `write_json` writes."""
    return encode_json(value, indent=2) + "\n"


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty staging folder that becomes `path` when the block ends well, and is removed when it does not.

    The staging folder is a sibling of `path`, so other programs (`save_pretrained`, say) may write into it as they
    like: their files get the umask's permissions and are flushed to the disk before the folder gets its name.

    Raises: RunDirError when `path` exists already and is not an empty folder.
    """
    path = Path(path)
    _refuse_occupied(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _staging_name(path)
    staging.mkdir()
    try:
        yield staging
        _settle(staging)
        _refuse_occupied(path)
        staging.rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_folder(path.parent)


def remove_staging(folder: str | Path, *, older_than_seconds: float = 0.0) -> list[str]:
    """Remove what killed writers left in `folder`, and return the names.

    Whoever holds the folder's lock may remove all; others only what is older than any write lasts.
    """
    newest = time.time() - older_than_seconds
    found = sorted(Path(folder).glob(f"{STAGING_PREFIX}*"))
    leftovers = [path for path in found if not older_than_seconds or path.lstat().st_mtime < newest]
    for leftover in leftovers:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    return [leftover.name for leftover in leftovers]


def remove_folder(path: str | Path) -> None:
    """Remove a folder so that a kill half-way leaves a stale staging folder, never a half folder of that name."""
    path = Path(path)
    doomed = _staging_name(path)
    path.rename(doomed)
    sync_folder(path.parent)
    shutil.rmtree(doomed)


def set_aside(path: str | Path) -> Path:
    """Give a damaged folder another name beside its own, `bad-` before it, for a person to look at, and return it."""
    path = Path(path)
    names = chain([f"{BAD_PREFIX}{path.name}"], (f"{BAD_PREFIX}{path.name}-{number}" for number in count(2)))
    place = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(place)
    sync_folder(path.parent)
    return place


def sync_folder(folder: str | Path) -> None:
    """Flush a folder's list of names to the disk: a rename is only durable once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot flush a folder; the rename itself still holds
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: memoryview) -> None:
    """Write all of `data` to an open file."""
    while data:  # a write may stop short on a nearly full disk or at a signal
        data = data[os.write(descriptor, data) :]


def _staging_name(path: Path) -> Path:
    # Process ids repeat (in containers they are nearly always the same), hence the random part.
    return path.with_name(f"{STAGING_PREFIX}{path.name}-{os.getpid()}-{secrets.token_hex(4)}")


def _refuse_occupied(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise RunDirError(f"{path} exists already", mend="give another folder, or move this one away")


def _settle(staging: Path) -> None:
    """Give every file below `staging` the umask's permissions and flush files and folders to the disk."""
    file_mode = staging.stat().st_mode & 0o666  # mkdir asked for 0o777, so this is 0o666 less the umask
    for folder, _, names in os.walk(staging, topdown=False):
        for name in names:
            file = Path(folder) / name
            if not file.is_symlink():
                file.chmod(file_mode)
                _sync_file(file)
        sync_folder(folder)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
