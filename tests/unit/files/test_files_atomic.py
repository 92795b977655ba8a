"""Files and folders appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import pytest

from tutelage.errors import RunDirError
from tutelage.files import atomic
from tutelage.files.atomic import (
    Digest,
    new_folder,
    remove_folder,
    remove_staging,
    set_aside,
    write_bytes,
    write_json,
    write_stream,
    write_text,
)


def test_a_write_replaces_the_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "old")
    write_text(tmp_path / "deep" / "a.txt", "neu ü")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "neu ü".encode()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "a.txt", "old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        events.append(f"fsync {kind}")
        fsync(descriptor)

    def noting_replace(self: Path, target: Path) -> Path:
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(atomic.os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    write_bytes(tmp_path / "a", b"x")
    assert events == ["fsync file", "rename", "fsync folder"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        write_text(tmp_path / "file", "x")
        with new_folder(tmp_path / "folder") as staging:
            inside = staging / "inside"
            inside.write_text("x")
            inside.chmod(0o600)  # as safetensors leaves its files
    finally:
        os.umask(old)
    for path in (tmp_path / "file", tmp_path / "folder" / "inside"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as staging:
        (staging / "sub").mkdir()
        (staging / "sub" / "a").write_text("x")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "sub" / "a").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_folder_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(KeyError), new_folder(tmp_path / "out") as staging:
        (staging / "a").write_text("x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_never_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(RunDirError, match="exists already"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="exists already"), new_folder(tmp_path / "out") as staging:
        (staging / "a").write_text("late")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_text("first")
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as staging:
        (staging / "a").write_text("x")
    assert (tmp_path / "out" / "a").exists()


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".new-step-000001-77-abcd").mkdir()
    (tmp_path / ".new-step-000001-77-abcd" / "half").write_text("x")
    (tmp_path / ".new-file-77-abcd").write_text("x")
    (tmp_path / "step-000001").mkdir()
    assert len(remove_staging(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_removing_a_folder_frees_its_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").write_text("x")

    def killed(_: Path) -> None:
        raise InterruptedError

    monkeypatch.setattr(atomic.shutil, "rmtree", killed)
    with pytest.raises(InterruptedError):
        remove_folder(tmp_path / "old")
    monkeypatch.undo()
    assert not (tmp_path / "old").exists()
    assert remove_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_json_ends_with_a_newline_and_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"loss": float("inf")})
    assert (tmp_path / "a.json").read_text() == '{\n  "loss": null\n}\n'


def test_what_is_set_aside_says_so_and_takes_no_name_of_another(tmp_path: Path) -> None:
    for expected in ("bad-step", "bad-step-2", "bad-step-3"):
        (tmp_path / "step").mkdir()
        assert set_aside(tmp_path / "step").name == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad-step", "bad-step-2", "bad-step-3"]


def test_a_stream_is_hashed_as_it_is_written(tmp_path: Path) -> None:
    parts = [b"", b"abc" * 7, bytes(atomic.STREAM_BYTES + 1)]
    digest = write_stream(tmp_path / "file", map(memoryview, parts))
    assert (tmp_path / "file").read_bytes() == b"".join(parts)
    assert digest == Digest(sum(map(len, parts)), hashlib.sha256(b"".join(parts)).hexdigest())
    with pytest.raises(FileExistsError):
        write_stream(tmp_path / "file", [])
