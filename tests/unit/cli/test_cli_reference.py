"""The reference pages say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tutelage.cli.reference import cli_page, config_page, main
from tutelage.config.load import known_keys

DOCS = Path(__file__).parents[3] / "docs" / "reference"
MEND = "run: python -m tutelage.cli.reference docs/reference"


@pytest.mark.parametrize(("name", "make"), [("config.md", config_page), ("cli.md", cli_page)])
def test_the_pages_are_current(name: str, make: object) -> None:
    assert (DOCS / name).read_text() == make(), MEND  # type: ignore[operator]


def test_every_key_is_on_the_page() -> None:
    page = config_page()
    assert [key for key in known_keys() if f"| `{key}` |" not in page] == []


def test_examples_stand_in_blocks_that_are_closed() -> None:
    page = cli_page()
    assert page.count("```") % 2 == 0
    assert "```console\n$ tutelage show" in page


def test_the_pages_are_written(tmp_path: Path) -> None:
    main(str(tmp_path))
    assert (tmp_path / "config.md").read_text() == config_page()
    assert (tmp_path / "cli.md").read_text() == cli_page()
