"""The how-to page says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tutelage.config.schema import Config, SourceConfig
from tutelage.data.formats import detect_kind
from tutelage.data.ledger import Ledger
from tutelage.data.messages import ROLES
from tutelage.data.reasons import Reason
from tutelage.data.sources import SUFFIXES, read_source
from tutelage.errors import DataError

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "data.md").read_text(encoding="utf-8")


def test_every_configuration_on_the_page_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        Config.model_validate(yaml.safe_load(block))


def test_the_tables_list_every_reason_and_no_other() -> None:
    faults, rules = PAGE.split("These are rules that you asked for")
    listed = [
        re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE) for part in (faults.split("| reason | when |")[1], rules)
    ]
    assert {name for name in listed[0] if "-" not in name[:2]} == {r.value for r in Reason if r.is_fault}
    assert {name for name in listed[1] if name != "reason"} == {r.value for r in Reason if not r.is_fault}


def test_every_role_and_file_format_is_on_the_page() -> None:
    for name in (*ROLES, *SUFFIXES):
        assert name in PAGE


@pytest.mark.parametrize(
    ("kind", "field"), [("prompt_completion", "prompt"), ("prompt_completion", "completion"), ("alpaca", "output")]
)
def test_the_other_names_of_columns_are_understood(kind: str, field: str) -> None:
    (line,) = re.findall(rf"^\| `{kind}` \|.*$", PAGE, re.MULTILINE)
    (names,) = re.findall(rf"{field}: ((?:`\w+`(?:, )?)+)", line)
    row = {"prompt": "a", "completion": "b"} if kind == "prompt_completion" else {"instruction": "a", "output": "b"}
    for name in re.findall(r"`(\w+)`", names):
        renamed = {name if key == field else key: value for key, value in row.items()}
        assert detect_kind([renamed]) == kind


def test_the_error_on_the_page_is_the_one_that_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad = {"messages": [{"role": "narrator", "content": "a"}]}
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in [good] * 4 + [bad]))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_source(SourceConfig(path="chats.jsonl"), Ledger())
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    for line in shown.splitlines():
        assert line.removesuffix("...") in str(caught.value)
