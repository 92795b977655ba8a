"""How sure a share is."""

from __future__ import annotations

import math

Z = 1.959964
"""Half of a 95 % interval of the normal distribution, in standard deviations."""


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share of independent trials.

    Raises: ValueError without a trial.
    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> [round(edge, 3) for edge in wilson_interval(9, 10)]
        [0.596, 0.982]
    """
    if total <= 0:
        raise ValueError(f"an interval needs at least one trial, not {total}")
    share, spread = correct / total, Z * Z / total
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / total / 4)
    return max(0.0, centre - half), min(1.0, centre + half)
