"""Order and chance as pure functions of numbers: no generator, no state, nothing to save or restore.

Everything is made of one 64-bit mixing function. The same arguments give the same bits on any machine, in any
process, in any call order, which is what lets a run that was killed go on as if it had not been.

Source: the finaliser is that of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB
_MASK = 2**64 - 1


def hash64(*numbers: int) -> int:
    """Return 64 well mixed bits of a sequence of integers; order and count of the numbers matter.

    Example:
        >>> hash64(1, 2) == hash64(1, 2), hash64(1, 2) == hash64(2, 1)
        (True, False)
    """
    state = len(numbers)
    for number in numbers:
        state = _mix(state ^ (number & _MASK))
    return state


def hash64_array(*numbers: int, counters: UInt64s) -> UInt64s:
    """Return `hash64(*numbers, c)` of each counter c, element by element.

    Shapes: counters and result are of the same shape.
    """
    state = len(numbers) + 1
    for number in numbers:
        state = _mix(state ^ (number & _MASK))
    return _mix_array(counters ^ np.uint64(state))


def permutation(count: int, *numbers: int) -> npt.NDArray[np.int64]:
    """Return a permutation of 0..count-1 that depends on `count`-free keys only: sort positions by their hash.

    Shapes: [count].
    """
    keys = hash64_array(*numbers, counters=np.arange(count, dtype=np.uint64))
    return np.argsort(keys, kind="stable").astype(np.int64)


def _mix(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _FIRST_FACTOR) & _MASK
    value = ((value ^ (value >> 27)) * _SECOND_FACTOR) & _MASK
    return value ^ (value >> 31)


def _mix_array(values: UInt64s) -> UInt64s:
    values = values + np.uint64(_GOLDEN)  # array arithmetic wraps modulo 2**64 without a warning
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST_FACTOR)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND_FACTOR)
    return values ^ (values >> np.uint64(31))
