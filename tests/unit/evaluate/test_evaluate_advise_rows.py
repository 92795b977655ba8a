"""Rows written again: labelled, without unknown facts, or with these declined; every row accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.config.load import load_config
from tutelage.config.schema import SourceConfig
from tutelage.errors import ConfigError, DataError
from tutelage.evaluate.advise_rows import Unknown, require_one_source, write_rows
from tutelage.evaluate.facts import Fact, Judged, Knowledge, Known
from tutelage.files import jsonl

LAYOUTS: dict[str, Any] = {
    "messages": lambda n: {
        "messages": [{"role": "user", "content": f"Who {n}?"}, {"role": "assistant", "content": f"Ada {n}."}]
    },
    "sharegpt": lambda n: {
        "conversations": [{"from": "human", "value": f"Who {n}?"}, {"from": "gpt", "value": f"Ada {n}."}]
    },
    "alpaca": lambda n: {"instruction": f"Who {n}?", "input": "", "output": f"Ada {n}."},
    "prompt_completion": lambda n: {"prompt": f"Who {n}?", "completion": f"Ada {n}."},
}


def known(file: Path, *kinds: Knowledge) -> Known:
    """Return what is known of the facts in the first lines of a file."""
    judged = [
        Judged(Fact("Who?", "Ada.", f"{file}:{line}", frozenset({"ada"}), ""), kind, "", 0.0)
        for line, kind in enumerate(kinds, start=1)
    ]
    return Known(tuple(judged), len(judged), len(judged))


def written(folder: Path, layout: str, unknown: Unknown, **words: str) -> tuple[str, list[dict[str, Any]]]:
    """Write six rows again, of which the first is known and the next two are not."""
    file, out = folder / "in.jsonl", folder / "out.jsonl"
    jsonl.write(file, [{**LAYOUTS[layout](number), "id": number} for number in range(6)])
    facts = known(file, Knowledge.HIGHLY, Knowledge.UNKNOWN, Knowledge.UNKNOWN)
    counts = write_rows(out, SourceConfig(path=str(file)), facts, unknown, **words)
    return str(counts), jsonl.read(out)


def test_labels_stand_beside_the_rows_that_were_asked_for(tmp_path: Path) -> None:
    counts, rows = written(tmp_path, "messages", Unknown.LABEL)
    assert counts == "6 rows read = 3 kept + 3 changed + 0 apart + 0 dropped"
    assert [row.pop("knowledge", None) for row in rows] == ["highly known", "unknown", "unknown", None, None, None]
    assert rows == jsonl.read(tmp_path / "in.jsonl")


def test_unknown_rows_are_dropped_and_the_others_stay_in_order(tmp_path: Path) -> None:
    counts, rows = written(tmp_path, "alpaca", Unknown.DROP)
    assert counts == "6 rows read = 4 kept + 0 changed + 0 apart + 2 dropped"
    assert [row["id"] for row in rows] == [0, 3, 4, 5]


def test_unknown_rows_set_apart_are_a_source_of_their_own(tmp_path: Path) -> None:
    counts, rows = written(tmp_path, "alpaca", Unknown.APART)
    assert counts == "6 rows read = 4 kept + 0 changed + 2 apart + 0 dropped"
    assert [row["id"] for row in rows] == [0, 3, 4, 5]
    assert [row["id"] for row in jsonl.read(tmp_path / "out-unknown.jsonl")] == [1, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_abstention_replaces_the_answer_in_the_layout_of_the_row(tmp_path: Path, layout: str) -> None:
    counts, rows = written(tmp_path, layout, Unknown.ABSTAIN, abstention="I cannot tell.")
    assert counts == "6 rows read = 4 kept + 2 changed + 0 apart + 0 dropped"
    before = (tmp_path / "in.jsonl").read_text().splitlines()
    expected = [line.replace(f"Ada {n}.", "I cannot tell.") if n in (1, 2) else line for n, line in enumerate(before)]
    assert rows == [json.loads(line) for line in expected]


def test_a_row_that_cannot_be_read_is_dropped_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(LAYOUTS["alpaca"](0)) + "\n{not json\n")
    counts = write_rows(tmp_path / "out.jsonl", SourceConfig(path=str(file)), known(file), Unknown.DROP)
    assert str(counts) == "2 rows read = 1 kept + 0 changed + 0 apart + 1 dropped, 1 of them faulty"


def test_an_answer_that_cannot_be_replaced_is_an_error_with_its_row(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    jsonl.write(file, [{"messages": json.dumps(LAYOUTS["messages"](0)["messages"])}])
    facts = known(file, Knowledge.UNKNOWN)
    with pytest.raises(DataError, match=r"in\.jsonl:1: its answer"):
        write_rows(tmp_path / "out.jsonl", SourceConfig(path=str(file)), facts, Unknown.ABSTAIN)
    assert not (tmp_path / "out.jsonl").exists()


def test_one_source_is_written_and_never_over_itself(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    jsonl.write(file, [LAYOUTS["alpaca"](0)])
    one = [f"data.train.0.path={file}"]
    assert require_one_source(load_config(None, one).config, tmp_path / "out.jsonl").path == str(file)
    with pytest.raises(ConfigError, match="written over"):
        require_one_source(load_config(None, one).config, file)
    with pytest.raises(ConfigError, match="2 sources"):
        require_one_source(load_config(None, [*one, f"data.train.1.path={file}"]).config, tmp_path / "out.jsonl")
