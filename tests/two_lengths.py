"""Property tests in two lengths: a short one that runs always, and one of thousands of examples among the slow tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LONG = 2000
_UNHURRIED = (HealthCheck.too_slow, HealthCheck.data_too_large)


def in_two_lengths(
    check: Callable[..., None], short: int, **strategies: st.SearchStrategy[Any]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return two tests of a property: of `short` examples, and of `LONG`, which `pytest -m slow` runs.

    `test_it, test_it_at_length = in_two_lengths(check_it, 80, text=st.text())`
    """
    few = settings(max_examples=short)(given(**strategies)(check))
    many = settings(max_examples=LONG, suppress_health_check=_UNHURRIED)(given(**strategies)(check))
    return few, pytest.mark.slow(many)
