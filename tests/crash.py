"""Processes that die on purpose: forked from this one, so that nothing has to be loaded again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

OPERATIONS = ("mkdir", "open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "ftruncate")


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked process and return its exit code: 0, 1 after an error, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:  # noqa: BLE001 - whatever it was, the child must not go on as a second pytest
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(number: int) -> None:
    """Let this process kill itself before file operation `number` from here on."""
    left = iter(range(number, -1, -1))

    def deadly(really: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object, **kwargs: object) -> object:
            if next(left, None) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return really(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        setattr(os, name, deadly(getattr(os, name)))
