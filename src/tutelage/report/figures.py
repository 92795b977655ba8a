"""Figures as a person reads them. What was not measured says so: it is never printed as zero."""

from __future__ import annotations

import math

MISSING = "not measured"
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def count(value: float | None) -> str:
    """Return a whole number with thousands separators."""
    return MISSING if value is None else f"{value:,.0f}" if math.isfinite(value) else str(value)


def number(value: float | None, digits: int = 4) -> str:
    """Return `digits` significant digits; very small and very large values in scientific notation.

    Example:
        >>> number(0.00002), number(2.30258), number(1234.5), number(None)
        ('2e-05', '2.303', '1,234', 'not measured')
    """
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -3 or magnitude >= 7:
        return f"{value:.{max(digits - 1, 1)}g}"
    return f"{value:,.{max(digits - 1 - magnitude, 0)}f}"


def compact(value: float | None) -> str:
    """Return about three digits and a letter.

    Example:
        >>> compact(950), compact(15_200_000), compact(260_032)
        ('950', '15.2 M', '260 k')
    """
    if value is None:
        return MISSING
    for size, letter in _STEPS:
        if abs(value) >= 0.9995 * size:
            return f"{number(value / size, 3)} {letter}"
    return number(value, 3) if value % 1 else count(value)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def size(num_bytes: float | None) -> str:
    """Return a number of bytes in binary units."""
    if num_bytes is None:
        return MISSING
    for unit, letters in _BYTES:
        if num_bytes >= unit:
            return f"{number(num_bytes / unit, 3)} {letters}"
    return f"{num_bytes:.0f} bytes"


def duration(seconds: float | None) -> str:
    """Return a time span in the two units that matter.

    Example:
        >>> duration(7.25), duration(151), duration(7260)
        ('7.2 s', '2 min 31 s', '2 h 1 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
