"""The examples in docstrings of the data room give what they show."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["conversation", "order", "sources", "tables"])
def test_examples_in_docstrings_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"tutelage.data.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
