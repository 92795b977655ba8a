"""What one rendering of a chat template may use, and what is left of it: a template is a program from the Hub."""

from __future__ import annotations

import time
from dataclasses import dataclass

from jinja2.exceptions import SecurityError


@dataclass(frozen=True)
class Limits:
    """What one rendering may use.

    `seconds` is processor time of the thread; characters are counted over every string that the template builds.
    """

    seconds: float = 2.0
    operations: int = 5_000_000
    characters: int = 1 << 26
    string_characters: int = 1 << 22
    source_characters: int = 1 << 20


class BudgetError(SecurityError):
    """A template that used more than its limits."""


class Budget:
    """What is left of the limits of one rendering. Long inputs earn a proportionally larger budget."""

    __slots__ = ("_characters", "_deadline", "_limits", "_operations", "_string", "operations")

    def __init__(self, limits: Limits, input_characters: int = 0) -> None:
        self._limits = limits
        self._deadline = time.thread_time() + limits.seconds
        self._operations = limits.operations
        self._characters = limits.characters + 64 * input_characters
        self._string = limits.string_characters + 8 * input_characters
        self.operations = 0

    def spend(self) -> None:
        """Book one operation."""
        self.operations += 1
        if self.operations & 63 == 0:
            self._look()

    def _look(self) -> None:
        """Look at the clock and the count, every now and then."""
        if self.operations > self._operations:
            raise BudgetError(f"the template ran more than {self._operations:,} operations")
        if time.thread_time() > self._deadline:
            raise BudgetError(f"the template ran longer than {self._limits.seconds:g} s")

    def charge(self, characters: int) -> None:
        """Book a string (or list) of this length before it is built."""
        self.operations += 1
        if self.operations & 63 == 0:
            self._look()
        self._characters -= characters
        if characters > self._string:
            raise BudgetError(f"the template builds a string of {characters:,} characters")
        if self._characters < 0:
            raise BudgetError("the template builds more text than its limit")
