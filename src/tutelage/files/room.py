"""Room on the disk: how much there is, and whether an error says that there is none left."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

MARGIN_BYTES = 2**20  # for manifests, states and lines, which are written beside what is counted
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: BaseException | None) -> bool:
    """Whether `error` says that a disk, a quota or a limit on the size of files leaves no room."""
    return isinstance(error, OSError) and error.errno in _FULL


def require_room(folder: Path, size: int) -> None:
    """Make sure that `size` bytes and a margin fit on the disk of `folder`, before any of them is written.

    Raises: OSError (ENOSPC) when they do not. A quota shows only when something is written.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < size + MARGIN_BYTES:
        needed, left = (f"{amount / 1e6:,.1f} MB" for amount in (size, free))
        raise OSError(errno.ENOSPC, f"{needed} are to be written and {left} are free", str(folder))
