"""Reasons to stop: a signal from outside, time that is over, or a held-out loss that no longer improves."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # the command line asks for the signals before it loads anything that takes time
    from tutelage.config.schema import EarlyStopping

ONE_WISH_SECONDS = 1.0  # a scheduler signals torchrun and its processes, and torchrun its processes once more
RESUME_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last is what `sbatch --signal` is mostly asked for

Halt: TypeAlias = Callable[[], bool]
"""Says, between two passes, whether to leave off; the ranks of a model in parts, who all ask, get one answer."""


def never() -> bool:
    """Let everything come to its end."""
    return False


class StopNow(SystemExit):
    """Raised where a signal comes while there is nothing to save yet; `name` is the signal's."""

    def __init__(self, name: str) -> None:
        super().__init__(RESUME_EXIT_CODE)
        self.name = name


@dataclass
class StopFlag:
    """Set by a signal, `since` when, or by the clock at `deadline`, both on the monotonic clock; read between two passes.

    Until `is_worth_saving`, a signal leaves at once: nothing has been learned that a checkpoint could keep.
    """

    began: float = field(default_factory=time.monotonic)
    deadline: float = math.inf
    signal_name: str | None = None
    since: float = math.inf
    is_worth_saving: bool = False
    _longest_seconds: dict[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """What asks this process to stop; None while nothing does."""
        if self.signal_name is not None:
            return self.signal_name
        ahead = sum(self._longest_seconds.values())
        return "train.max_minutes" if time.monotonic() + ahead >= self.deadline else None

    def limit(self, minutes: float | None) -> None:
        """Set the deadline so many minutes after this flag was put up; None for no deadline."""
        self.deadline = math.inf if minutes is None else self.began + 60 * minutes

    def took(self, what: str, seconds: float) -> None:
        """Note how long a step or a save took: the deadline is kept for one more of each at its longest."""
        self._longest_seconds[what] = max(seconds, self._longest_seconds.get(what, 0.0))


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turn the first SIGINT, SIGTERM or SIGUSR1 into a flag; a later one leaves at once with exit code 75.

    Within a second it is the first one come by another way. While nothing is worth saving, the first one raises `StopNow`.
    Otherwise the handler does nothing but set the flag: saving happens at the edge of a step, where the state is whole.
    """
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - flag.since > ONE_WISH_SECONDS:
            os._exit(RESUME_EXIT_CODE)
        if flag.signal_name is None:
            flag.signal_name, flag.since = signal.Signals(number).name, now
            if not flag.is_worth_saving:
                raise StopNow(flag.signal_name)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Improvement:
    """What the held-out loss has done so far; the state of early stopping, and of which weights are the best."""

    best_loss: float = math.inf
    best_step: int = 0
    evaluations_since: int = 0

    def after(self, loss: float, step: int, rule: EarlyStopping | None = None) -> Improvement:
        """Return the state after an evaluation: a loss lower by more than the rule's `min_improvement` is a new best."""
        least = rule.min_improvement if rule is not None else 0.0
        if loss < self.best_loss - least:
            return Improvement(best_loss=loss, best_step=step)
        return Improvement(self.best_loss, self.best_step, self.evaluations_since + 1)

    def exhausted(self, rule: EarlyStopping | None) -> bool:
        """Return whether `rule` says that it is time to stop."""
        return rule is not None and self.evaluations_since >= rule.patience
