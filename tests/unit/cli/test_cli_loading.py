from __future__ import annotations

import gc

import pytest

from tutelage.cli.loading import loading


def test_imports_are_not_interrupted_and_what_they_leave_is_not_looked_through_again() -> None:
    before = gc.get_freeze_count()
    try:
        with loading():
            assert not gc.isenabled()
            made = [[number] for number in range(100)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(made)
    finally:
        gc.unfreeze()


def test_the_collector_comes_back_when_an_import_fails() -> None:
    try:
        with pytest.raises(ImportError), loading():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
