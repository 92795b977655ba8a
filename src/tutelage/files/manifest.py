"""Checksums of a folder's files, so that a damaged or half-copied model or checkpoint is noticed before it is used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from tutelage.files.atomic import Digest, json_text, write_text

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 2
_UNSEALED = "0" * 64


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(
    folder: str | Path, *, about: Mapping[str, Any] | None = None, written: Mapping[str, Digest] | None = None
) -> None:
    """Write `manifest.json`: size and SHA-256 of every file below `folder`, and what the caller adds in `about`.

    Files that `written` names have the digests of what was written to them, and are not read again. Its own `seal` is the SHA-256 of its bytes with zeros in place of the seal.
    """
    folder = Path(folder)
    known = written or {}
    files = {name: asdict(known.get(name) or _digest(path)) for name, path in _files_below(folder).items()}
    content = {"format": FORMAT_VERSION, "about": dict(about or {}), "files": files, "seal": _UNSEALED}
    unsealed = json_text(content)
    write_text(folder / MANIFEST_NAME, json_text({**content, "seal": _sha256(unsealed.encode())}))


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of `folder`.

    Raises: FileNotFoundError when there is none; ValueError when it is not a manifest.
    """
    path = Path(folder) / MANIFEST_NAME
    manifest = json.loads(path.read_bytes())
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{path} is not a manifest")
    return manifest


def verify_manifest(folder: str | Path) -> list[str]:
    """Return what differs between `folder` and its manifest, in words; an empty list means all is as it was written."""
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return [f"{MANIFEST_NAME} is missing"]
    except ValueError as error:
        return [f"{MANIFEST_NAME} cannot be read: {error}"]
    expected, present = manifest["files"], _files_below(folder)
    sealed = _is_sealed(folder / MANIFEST_NAME, manifest.get("seal"))
    problems = [] if sealed else [f"{MANIFEST_NAME} has other content (its seal does not fit)"]
    problems += [f"{name} is not in the manifest" for name in sorted(present.keys() - expected.keys())]
    for name, facts in sorted(expected.items()):
        problem = _difference(folder, name, facts)
        if problem:
            problems.append(problem)
    return problems


class Verifier:
    """Tells whole folders from damaged ones, and reads none twice that has not changed since it was found whole, or written here."""

    def __init__(self) -> None:
        self._whole: dict[Path, tuple[tuple[str, int, int, int], ...]] = {}

    def wrote(self, folder: Path) -> None:
        """Take a folder as whole: this process has just written it, with its manifest."""
        self._whole[folder] = _facts(folder)

    def is_whole(self, folder: Path) -> bool:
        """Whether `folder` is as its manifest says."""
        facts = _facts(folder)
        if self._whole.get(folder) != facts:
            if verify_manifest(folder):
                return False
            self._whole[folder] = facts
        return True


def _facts(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Return what changes when a file is written to or exchanged: name, size, time of change, number."""
    found = sorted((path.name, path.stat()) for path in folder.rglob("*") if path.is_file())
    return tuple((name, stat.st_size, stat.st_ctime_ns, stat.st_ino) for name, stat in found)


def _is_sealed(path: Path, seal: Any) -> bool:
    content = path.read_bytes()
    return isinstance(seal, str) and _sha256(content.replace(seal.encode(), _UNSEALED.encode())) == seal


def _digest(path: Path) -> Digest:
    return Digest(path.stat().st_size, sha256_file(path))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _difference(folder: Path, name: str, facts: Any) -> str | None:
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or not isinstance(facts, dict):
        return f"{name} is not an entry that a manifest may have"
    path = folder / relative
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != facts.get("size"):
        return f"{name} has {size} bytes instead of {facts.get('size')}"
    try:
        found = sha256_file(path)
    except OSError as error:  # a sector that the disk has given up
        return f"{name} cannot be read: {error.strerror}"
    return f"{name} has other content (SHA-256 differs)" if found != facts.get("sha256") else None


def _files_below(folder: Path) -> dict[str, Path]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(MANIFEST_NAME, None)
    return files
