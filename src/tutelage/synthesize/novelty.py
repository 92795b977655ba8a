"""How alike two texts are by their longest common subsequence of words, and whether a text is new beside many.

The decisions are exactly those of ROUGE-L without stemming, and equal texts are always alike; the two filters in front of it only skip texts that cannot be alike enough.

Source: Lin 2004, "ROUGE: a package for automatic evaluation of summaries", section 3; the bit-parallel length of a common subsequence
is that of Hyyrö 2004, "Bit-parallel LCS-length computation revisited".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_NOT_WORDS = re.compile(r"[^a-z0-9]+")


def rouge_words(text: str) -> list[str]:
    """Return the words that ROUGE compares: runs of Latin letters and digits, in lower case.

    Example:
        >>> rouge_words("It's 3 o'clock!")
        ['it', 's', '3', 'o', 'clock']
    """
    return _NOT_WORDS.sub(" ", text.lower()).split()


def common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    Example:
        >>> common_length("a b c d".split(), "b x d".split())
        2
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(one)) - 1
    row = every
    for word in other:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & every
    return len(one) - row.bit_count()


def rouge_l(one: str, other: str) -> float:
    """Return the F-measure of the common subsequence of two texts; 0 where one has no words."""
    words, others = rouge_words(one), rouge_words(other)
    return _f_measure(common_length(words, others), len(words) + len(others))


def _f_measure(common: int, total: int) -> float:
    return 2 * common / total if total else 0.0


class Pool:
    """Texts, and which of them a new text is too like."""

    def __init__(self, limit: float) -> None:
        """Begin an empty pool; texts whose ROUGE-L is above `limit` are too alike."""
        self._limit = limit
        self._known: set[str] = set()
        self._texts: list[tuple[str, list[str], Counter[str]]] = []

    def add(self, text: str) -> None:
        """Take a text in."""
        words = rouge_words(text)
        self._known.add(text)
        self._texts.append((text, words, Counter(words)))

    def too_like(self, text: str) -> tuple[float, str] | None:
        """Return how alike the most alike text is, and that text, where that is above the limit; None for a text that is new."""
        if text in self._known:  # also a text without any word that ROUGE knows
            return 1.0, text
        words = rouge_words(text)
        counts = Counter(words)
        best: tuple[float, str] | None = None
        for known, others, other_counts in self._texts:
            total = len(words) + len(others)
            least = best[0] if best is not None else self._limit
            # A common subsequence is no longer than the shorter text, nor than the words that both have.
            if _f_measure(min(len(words), len(others)), total) <= least:
                continue
            if _f_measure((counts & other_counts).total(), total) <= least:
                continue
            alike = _f_measure(common_length(words, others), total)
            if alike > least:
                best = (alike, known)
        return best
