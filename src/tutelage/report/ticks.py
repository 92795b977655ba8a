"""Where an axis puts its ticks, and what they say."""

from __future__ import annotations

import math


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round values (1, 2 or 5 times a power of ten apart) inside [low, high].

    Example:
        >>> nice_ticks(0, 9.3)
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    if not low < high:
        return [low]
    step = nice_step((high - low) / max(count, 1))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    decimals = max(0, -math.floor(math.log10(step)))
    return [round(i * step, decimals) for i in range(first, last + 1)]


def nice_step(rough: float) -> float:
    """Return the round step nearest above or at `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1, 2, 5, 10):
        if rough <= factor * power * (1 + 1e-9):
            return factor * power
    raise AssertionError("a mantissa lies between 1 and 10")


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten inside [low, high], or the powers alone when there would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [f * 10.0**p for p in powers for f in factors if low * (1 - 1e-9) <= f * 10.0**p <= high * (1 + 1e-9)]


def tick_label(value: float) -> str:
    """Return a short label.

    Example:
        >>> [tick_label(v) for v in (0, 0.25, 2.5, 1500, 20000, 3e6, 2e-5)]
        ['0', '0.25', '2.5', '1,500', '20k', '3M', '2e-5']
    """
    if value == 0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (size > 1e3 and abs(value) >= size):
            return f"{value / size:g}{letter}"
    if abs(value) < 1e-2:
        digits, _, power = f"{value:e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:,.6g}"
