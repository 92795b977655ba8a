"""Reasons to stop: a signal from outside, time that is over, or a held-out loss that no longer improves."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from tutelage.config.schema import EarlyStopping

ONE_WISH_SECONDS = 1.0  # a scheduler signals torchrun and its processes, and torchrun its processes once more
RESUME_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again with --resume


@dataclass
class StopFlag:
    """Set by a signal, `since` when, or by the clock at `deadline`, both on the monotonic clock; read at step edges."""

    deadline: float = math.inf
    signal_name: str | None = None
    since: float = math.inf

    def __bool__(self) -> bool:
        return self.reason is not None

    @property
    def reason(self) -> str | None:
        """What asks this process to stop; None while nothing does."""
        if self.signal_name is not None:
            return self.signal_name
        return "train.max_minutes" if time.monotonic() >= self.deadline else None


@contextmanager
def stop_on_signals(deadline: float = math.inf) -> Iterator[StopFlag]:
    """Turn the first SIGINT or SIGTERM into a flag, which the clock sets at `deadline`; a later one leaves at once with exit code 75.

    Within a second it is the first one come by another way. The handler does nothing but set the flag: saving happens at the edge of a
    step, where the state is whole.
    """
    flag = StopFlag(deadline)

    def handle(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - flag.since > ONE_WISH_SECONDS:
            os._exit(RESUME_EXIT_CODE)
        if flag.signal_name is None:
            flag.signal_name, flag.since = signal.Signals(number).name, now

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handle) for number in numbers}
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
