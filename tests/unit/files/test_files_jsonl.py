"""JSON lines survive a crash in the middle of a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import RunDirError
from tutelage.files import jsonl


def test_records_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.jsonl"
    with jsonl.Appender(path) as metrics:
        for step in range(3):
            metrics.append({"step": step, "text": "a\nb\u2028c"})
    jsonl.append(path, {"step": 3})
    assert [record["step"] for record in jsonl.read(path)] == [0, 1, 2, 3]
    assert jsonl.read(path)[0]["text"] == "a\nb\u2028c"


def test_every_record_is_readable_before_the_file_is_closed(tmp_path: Path) -> None:
    with jsonl.Appender(tmp_path / "m.jsonl") as metrics:
        metrics.append({"step": 1})
        assert jsonl.read(tmp_path / "m.jsonl") == [{"step": 1}]


@given(cut=st.integers(min_value=0, max_value=60), big=st.booleans())
def test_a_file_cut_anywhere_loses_at_most_the_line_that_was_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: int, big: bool
) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.jsonl"
    records = [{"step": step, "text": "x" * (70_000 if big and step == 2 else 5)} for step in range(3)]
    jsonl.write(path, records)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    complete = path.read_bytes().count(b"\n")
    before = jsonl.read(path)
    assert before[:complete] == records[:complete]
    jsonl.append(path, {"step": 99})
    after = jsonl.read(path)
    assert after == [*before, {"step": 99}]
    assert path.read_bytes().endswith(b"\n")


def test_a_last_line_that_lacks_only_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}')
    jsonl.append(path, {"a": 3})
    assert [record["a"] for record in jsonl.read(path)] == [1, 2, 3]


def test_damage_in_the_middle_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(RunDirError, match=r"m\.jsonl:2 is not a JSON object"):
        jsonl.read(path)


def test_closing_twice_is_harmless_and_appending_afterwards_is_not(tmp_path: Path) -> None:
    appender = jsonl.Appender(tmp_path / "m.jsonl")
    appender.sync()
    appender.close()
    appender.close()
    with pytest.raises(OSError, match="descriptor"):
        appender.append({"a": 1})
