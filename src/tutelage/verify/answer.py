"""Final answers: the number at the end of a solution, or a text that must be given."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from tutelage.data.conversation import normalised_words

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?|[-+]?\.\d+")
_MARKED = re.compile(r"####\s*(.+)|\\boxed\{([^{}]*)\}|(?:final )?answer(?: is|:)\s*(.+)", re.IGNORECASE)


def final_number(text: str) -> Decimal | None:
    """Return the number that a solution ends with: behind the last mark of an answer, else the last of all; None without one.

    Marks are `####` (as in GSM8K), a box, and "the answer is".

    Example:
        >>> final_number("3 x 4 = 12. So she pays $1,212.50."), final_number("No idea.")
        (Decimal('1212.50'), None)
    """
    marked = [next(group for group in found.groups() if group is not None) for found in _MARKED.finditer(text)]
    for where, take in ((marked[-1:], 0), ([text], -1)):
        numbers = [number for piece in where for number in _NUMBER.findall(piece)]
        if numbers:
            try:
                return Decimal(numbers[take].replace(",", ""))
            except InvalidOperation:
                return None
    return None


def same_number(answer: str, expected: str) -> bool:
    """Return whether both end with the same number."""
    said = final_number(answer)
    return said is not None and said == final_number(expected)


def same_text(answer: str, expected: str) -> bool:
    """Return whether both have the same words, whatever their case and the punctuation at their edges."""
    return normalised_words(answer) == normalised_words(expected)


def contains(answer: str, expected: str) -> bool:
    """Return whether the words of `expected` stand in a row in `answer`."""
    return f" {normalised_words(expected)} " in f" {normalised_words(answer)} "
