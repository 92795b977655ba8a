"""What one rendering of a chat template may use, and what is left of it: a template is a program from the Hub."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from jinja2.exceptions import SecurityError


@dataclass(frozen=True)
class Limits:
    """What one rendering may use.

    `seconds` is processor time of the thread; characters are counted over every string that the template builds, an item of a
    list as `ITEM_CHARACTERS`.
    """

    seconds: float = 2.0
    operations: int = 5_000_000
    characters: int = 1 << 26
    string_characters: int = 1 << 22
    source_characters: int = 1 << 20


ITEM_CHARACTERS = 8  # what an item of a list takes beside its text: a reference, in memory
_LARGE = 4096  # characters in one operation after which the clock is looked at


class BudgetError(SecurityError):
    """A template that used more than its limits."""


class Budget:
    """What is left of the limits of one rendering. Long inputs earn a proportionally larger budget."""

    __slots__ = ("_characters", "_deadline", "_limits", "_operations", "_sizes", "_string", "operations")

    def __init__(self, limits: Limits, input_characters: int = 0) -> None:
        self._limits = limits
        self._deadline = time.thread_time() + limits.seconds
        self._operations = limits.operations
        self._characters = limits.characters + 64 * input_characters
        self._string = limits.string_characters + 8 * input_characters
        self._sizes: dict[int, tuple[Any, int]] = {}  # keeps what it measured, so that no id is given twice
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
        if self.operations & 63 == 0 or characters > _LARGE:
            self._look()
        self._characters -= characters
        if characters > self._string:
            raise BudgetError(f"the template builds a string of {characters:,} characters")
        if self._characters < 0:
            raise BudgetError("the template builds more text than its limit")

    def measure(self, value: Any) -> int:
        """Return how many characters `value` has when it is written out, each list in it as often as it stands there.

        Lists in lists can be small in memory and beyond all bounds once they are written, compared or hashed.

        Raises: BudgetError when it is longer than a string may be.
        """
        if isinstance(value, str):
            return str.__len__(value) + 1
        if not isinstance(value, list | tuple | dict):
            return 1
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        size = ITEM_CHARACTERS
        for item in _items(value):
            self.spend()
            size += self.measure(item)
            self.require_short(size)
        self._sizes[id(value)] = (value, size)
        return size

    def book(self, value: Any, size: int) -> Any:
        """Return `value`, whose measure is known to be `size`.

        Raises: BudgetError when it is longer than a string may be.
        """
        self.require_short(size)
        self._sizes[id(value)] = (value, size)
        return value

    def require_short(self, size: int) -> None:
        """Raise BudgetError when lists of this measure are longer than a string may be."""
        if size > self._string:
            raise BudgetError(f"the template builds lists of more than {self._string:,} characters")


def cost(value: Any) -> int:
    """Return what a string, list or mapping costs to make once more; 0 for anything else."""
    if isinstance(value, str):
        return str.__len__(value)
    # Past any `__len__` of its own, as in `_items`.
    if isinstance(value, list):
        return ITEM_CHARACTERS * list.__len__(value)
    if isinstance(value, tuple):
        return ITEM_CHARACTERS * tuple.__len__(value)
    if isinstance(value, dict):
        return ITEM_CHARACTERS * dict.__len__(value)
    if isinstance(value, range):
        return ITEM_CHARACTERS * len(value)
    return 0


def _items(value: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> Iterator[Any]:
    """Return what a container holds, past any `__iter__` of its own: nobody has looked at it by that."""
    if isinstance(value, dict):
        return chain(dict.keys(value), dict.values(value))
    return list.__iter__(value) if isinstance(value, list) else tuple.__iter__(value)
