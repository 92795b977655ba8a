from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tutelage.errors import RunDirError
from tutelage.files.room import MARGIN_BYTES, is_full, require_room


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_a_quota_and_a_limit_are_known(number: int) -> None:
    assert is_full(OSError(number, "no room"))


def test_other_errors_are_not_a_full_disk() -> None:
    assert not any(map(is_full, (None, OSError(errno.EACCES, "no"), RunDirError("taken"), ValueError("28"))))


def test_room_is_asked_of_the_disk_that_the_folder_will_be_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=MARGIN_BYTES + 100)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    require_room(tmp_path / "not" / "there", 100)
    assert asked == [tmp_path]
    with pytest.raises(OSError, match=r"0\.0 MB are to be written and 1\.0 MB are free") as refused:
        require_room(tmp_path, 101)
    assert is_full(refused.value)
