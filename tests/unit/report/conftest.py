"""A synthetic run for the tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from run_folder import make_run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run with every file."""
    return make_run(tmp_path / "mine", num_steps=40)
