"""A manifest notices every change of a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tutelage.files.manifest import MANIFEST_NAME, read_manifest, sha256_file, verify_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.bin").write_bytes(b"hello")
    (tmp_path / "sub" / "b.bin").write_bytes(b"world")
    write_manifest(tmp_path, about={"step": 3})
    return tmp_path


def test_an_unchanged_folder_has_no_problems(folder: Path) -> None:
    assert verify_manifest(folder) == []
    manifest = read_manifest(folder)
    assert manifest["about"] == {"step": 3}
    assert manifest["files"]["sub/b.bin"] == {"size": 5, "sha256": hashlib.sha256(b"world").hexdigest()}
    assert sha256_file(folder / "a.bin") == hashlib.sha256(b"hello").hexdigest()


def test_one_flipped_bit_is_noticed(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"hellp")
    assert verify_manifest(folder) == ["a.bin has other content (SHA-256 differs)"]


def test_missing_shortened_and_added_files_are_noticed(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"hell")
    (folder / "sub" / "b.bin").unlink()
    (folder / "c.bin").write_bytes(b"")
    assert verify_manifest(folder) == [
        "c.bin is not in the manifest",
        "a.bin has 4 bytes instead of 5",
        "sub/b.bin is missing",
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', "{"])
def test_a_damaged_manifest_is_a_problem_and_not_a_crash(folder: Path, content: str) -> None:
    (folder / MANIFEST_NAME).write_text(content)
    assert "cannot be read" in verify_manifest(folder)[0]


def test_a_missing_manifest_is_a_problem(tmp_path: Path) -> None:
    assert verify_manifest(tmp_path) == [f"{MANIFEST_NAME} is missing"]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname"])
def test_a_manifest_cannot_point_outside_its_folder(folder: Path, name: str) -> None:
    manifest = read_manifest(folder)
    manifest["files"][name] = {"size": 1, "sha256": ""}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert f"{name} is not an entry that a manifest may have" in verify_manifest(folder)


def test_every_bit_of_a_manifest_is_held_by_its_seal(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    content = path.read_bytes()
    assert verify_manifest(folder) == []
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert verify_manifest(folder) != [], f"a flipped bit in byte {place}"
    path.write_bytes(content[:-1])
    assert verify_manifest(folder) != []
