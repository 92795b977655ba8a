"""Conservation: whatever bytes a file holds, every row of it is kept or dropped for one reason, and no row changes."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tutelage.config.schema import SourceConfig
from tutelage.data import lines as lines_module
from tutelage.data.arrays import iter_array
from tutelage.data.formats import parse_row
from tutelage.data.ledger import Ledger
from tutelage.data.lines import iter_lines
from tutelage.data.reasons import Reason, RowError
from tutelage.data.sources import read_source
from tutelage.data.strict_json import MAX_DEPTH, parse_json
from tutelage.errors import DataError

QUICK = settings(max_examples=60)
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.text(st.sampled_from('"\\[]{},:a\n\r'), min_size=1, max_size=12),  # what could be taken for structure
).filter(str.strip)
ROW = st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT})
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
BAD_LINE = st.one_of(
    st.binary(max_size=30),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [b"{}", b"null", b"[]", b'{"prompt": NaN}', b'{"a": 1, "a": 2}', b"\xff", b"{" * 100, b'{"prompt": "x"}']
    ),
)
ENSURE_ASCII = st.booleans()


@st.composite
def mutated_lines(draw: st.DrawFn) -> tuple[list[bytes], list[str]]:
    """Return lines, some of them bad, and the prompts of those that are good for certain."""
    first = draw(ROW)  # one good row, so that the kind can be told
    data, prompts = [json.dumps(first).encode()], [first["prompt"]]
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.booleans()):
            row = draw(ROW)
            data.append(json.dumps(row, ensure_ascii=draw(ENSURE_ASCII)).encode())
            prompts.append(row["prompt"])
        else:
            bad = draw(BAD_LINE).replace(b"\n", b" ")
            data.append(b"!" + bad if _is_row(bad) else bad)
    return data, prompts


def _is_row(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and "completion" in value


def read(file: Path) -> tuple[list[str], Ledger]:
    ledger = Ledger()
    config = SourceConfig(path=str(file), kind="prompt_completion")
    records = read_source(config, ledger, max_bad_fraction=1.0)
    ledger.check_balanced()
    return [record.messages[0].content for record in records], ledger  # type: ignore[union-attr]


@QUICK
@given(mutated_lines(), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_every_line_is_kept_or_dropped_once(
    drawn: tuple[list[bytes], list[str]], newline: bytes, compress: bool
) -> None:
    data, prompts = drawn
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        content = newline.join(data)
        file.write_bytes(gzip.compress(content) if compress else content)
        try:
            kept, ledger = read(file)
        except DataError as error:  # bytes that look like another encoding are refused as a whole
            assert "UTF-16" in str(error)
            return
    not_blank = [line for line in content.split(b"\n") if line.strip()]
    assert ledger.totals.rows == len(not_blank)
    assert ledger.totals.blank_lines == content.count(b"\n") + 1 - len(not_blank) - content.endswith(b"\n")
    assert kept == prompts
    assert sum(ledger.totals.dropped.values()) == len(not_blank) - len(prompts)
    assert set(ledger.totals.dropped) <= {reason.value for reason in Reason}


@QUICK
@given(st.lists(ROW, min_size=1, max_size=6), st.sampled_from([None, 0, 1, 2, "\t"]), ENSURE_ASCII, st.integers(1, 9))
def test_arrays_give_their_elements_whatever_their_layout_and_the_size_of_reads(
    rows: list[dict[str, str]], indent: Any, ascii_only: bool, chunk_bytes: int
) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "CHUNK_BYTES", chunk_bytes)
        file = Path(folder) / "rows.json"
        file.write_text(text, encoding="utf-8")
        elements = list(iter_array(file))
    assert [element.value for element in elements] == rows


@QUICK
@given(st.lists(ROW, min_size=2, max_size=6), st.data())
def test_a_torn_array_keeps_what_was_whole(rows: list[dict[str, str]], data: st.DataObject) -> None:
    text = json.dumps(rows, indent=1).encode()
    cut = data.draw(st.integers(text.index(b"}") + 2, len(text) - 1))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        file.write_bytes(text[:cut])
        kept, ledger = read(file)
    assert kept == [row["prompt"] for row in rows[: len(kept)]]
    assert ledger.totals.dropped == {Reason.TRUNCATED_FILE: 1}


@QUICK
@given(st.binary(max_size=200), st.integers(1, 9), st.integers(1, 40))
def test_lines_are_those_between_line_feeds_whatever_the_size_of_reads(
    data: bytes, chunk_bytes: int, limit: int
) -> None:
    assume(data[:2] != b"\x1f\x8b")
    data = b"# " + data  # no byte order mark, and not like UTF-16
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines_module, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(lines_module, "_refuse_wide_encodings", lambda path, head: None)
        file = Path(folder) / "lines"
        file.write_bytes(data)
        found = list(iter_lines(file, max_line_bytes=limit))
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    assert [line.number for line in found] == list(range(1, len(expected) + 1))
    for line, raw in zip(found, expected, strict=True):
        if len(raw) <= limit:
            assert (line.data, line.problem) == (raw.removesuffix(b"\r"), None)
        else:
            assert line.problem is not None
            assert line.problem.reason is Reason.LINE_TOO_LONG
            assert f"{len(raw):,} bytes" in line.problem.cause


@QUICK
@given(st.integers(3, 40), st.data())
def test_a_gzip_torn_anywhere_keeps_a_beginning_and_reports_the_tear(count: int, data: st.DataObject) -> None:
    prompts = [f"question {i * 7919 % 1000} {i}" for i in range(count)]
    content = "".join(json.dumps({"prompt": prompt, "completion": "ok"}) + "\n" for prompt in prompts)
    packed = gzip.compress(content.encode(), mtime=0)
    cut = data.draw(st.integers(20, len(packed) - 1))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl.gz"
        file.write_bytes(packed[:cut])
        kept, ledger = read(file)
    assert kept == prompts[: len(kept)]
    assert ledger.totals.dropped == {Reason.TRUNCATED_FILE: 1}


@QUICK
@given(JSON)
def test_strict_json_reads_what_json_writes(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False, indent=2)) == value


@QUICK
@given(JSON, st.text(st.sampled_from('\\"[]{}:,ntu0d8-1 \n'), max_size=12), st.data())
def test_strict_json_accepts_nothing_that_json_refuses(value: Any, noise: str, data: st.DataObject) -> None:
    text = json.dumps(value)
    place = data.draw(st.integers(0, len(text)))
    text = text[:place] + noise + text[place:]
    try:
        parsed = parse_json(text)
    except RowError:
        return
    assert json.dumps(parsed) == json.dumps(json.loads(text))


@QUICK
@given(st.integers(1, 200), st.sampled_from(["[", '{"a":']), st.text(st.sampled_from('[]{}"\\'), max_size=10))
def test_depth_is_counted_in_brackets_outside_of_strings(depth: int, opener: str, inside: str) -> None:
    closer = "]" if opener == "[" else "}"
    text = opener * depth + json.dumps(inside * 30) + closer * depth
    if depth <= MAX_DEPTH:
        assert parse_json(text) == json.loads(text)
    else:
        with pytest.raises(RowError) as caught:
            parse_json(text)
        assert caught.value.reason is Reason.TOO_DEEP


@QUICK
@given(ROW, TEXT, JSON)
def test_the_id_of_a_record_does_not_depend_on_keys_order_or_metadata(
    row: dict[str, str], key: str, value: Any
) -> None:
    assume(key not in row and key not in ("system", "system_prompt", "tools", "functions", "label", "kto_tag"))
    plain = parse_row(row, "prompt_completion")
    other = parse_row({key: value, **dict(reversed(row.items()))}, "prompt_completion", source="x")
    assert plain.id == other.id
    assert plain.id != parse_row({**row, "completion": row["completion"] + "."}, "prompt_completion").id
