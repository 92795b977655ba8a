"""Every kind of bad input row: named, placed, and harmless to the rows around it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.config.schema import SourceConfig
from tutelage.data.conversation import Origin
from tutelage.data.ledger import Ledger
from tutelage.data.lines import MAX_LINE_BYTES
from tutelage.data.reasons import Reason
from tutelage.data.sources import read_source
from tutelage.errors import DataError

GOOD = [
    {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]} for i in range(4)
]
GOOD_LINES = [json.dumps(row).encode() for row in GOOD]


def chat(*messages: object, **columns: object) -> bytes:
    return json.dumps({"messages": messages, **columns}).encode()


USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "hi"}

BAD_LINES: dict[str, tuple[bytes, Reason]] = {
    "torn": (GOOD_LINES[0][:40], Reason.BAD_JSON),
    "not JSON": (b"hello world", Reason.BAD_JSON),
    "single quotes": (b"{'messages': []}", Reason.BAD_JSON),
    "trailing comma": (GOOD_LINES[0][:-1] + b",}", Reason.BAD_JSON),
    "comment": (b"// " + GOOD_LINES[0], Reason.BAD_JSON),
    "raw control character": (b'{"messages": "a\x01b"}', Reason.BAD_JSON),
    "raw tab in a string": (b'{"messages": "a\tb"}', Reason.BAD_JSON),
    "zero byte": (b"\x00" + GOOD_LINES[0], Reason.BAD_JSON),
    "byte order mark in the middle": (b"\xef\xbb\xbf\xef\xbb\xbf" + GOOD_LINES[0], Reason.BAD_JSON),
    "two objects": (GOOD_LINES[0] + GOOD_LINES[1], Reason.SEVERAL_VALUES),
    "carriage returns as line ends": (GOOD_LINES[0] + b"\r" + GOOD_LINES[1], Reason.SEVERAL_VALUES),
    "comma after the line": (GOOD_LINES[0] + b",", Reason.SEVERAL_VALUES),
    "array": (b"[1, 2]", Reason.NOT_AN_OBJECT),
    "string": (b'"hello"', Reason.NOT_AN_OBJECT),
    "number": (b"17", Reason.NOT_AN_OBJECT),
    "null": (b"null", Reason.NOT_AN_OBJECT),
    "NaN": (b'{"messages": NaN}', Reason.NON_FINITE_NUMBER),
    "Infinity": (GOOD_LINES[0][:-1] + b', "score": -Infinity}', Reason.NON_FINITE_NUMBER),
    "float overflow": (GOOD_LINES[0][:-1] + b', "score": 1e999}', Reason.NON_FINITE_NUMBER),
    "huge integer": (GOOD_LINES[0][:-1] + b', "id": ' + b"9" * 5000 + b"}", Reason.HUGE_NUMBER),
    "duplicate key": (GOOD_LINES[0][:-1] + b', "messages": []}', Reason.DUPLICATE_KEY),
    "duplicate key inside": (
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]}',
        Reason.DUPLICATE_KEY,
    ),
    "lone surrogate": (chat(USER, {"role": "assistant", "content": "\ud800"}), Reason.LONE_SURROGATE),
    "lone low surrogate": (chat({"role": "user", "content": "x\udc00y"}, ANSWER), Reason.LONE_SURROGATE),
    "surrogate in a key": (b'{"\\ud83d": 1, "messages": []}', Reason.LONE_SURROGATE),
    "deep nesting": (b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", Reason.TOO_DEEP),
    "nesting one too deep": (GOOD_LINES[0][:-1] + b', "x": ' + b"[" * 64 + b"]" * 64 + b"}", Reason.TOO_DEEP),
    "invalid UTF-8": (GOOD_LINES[0].replace(b"q0", b"q\xff"), Reason.INVALID_UTF8),
    "surrogate as UTF-8": (GOOD_LINES[0].replace(b"q0", b"\xed\xa0\x80"), Reason.INVALID_UTF8),
    "Latin-1": (GOOD_LINES[0].replace(b"q0", "café".encode("latin-1")), Reason.INVALID_UTF8),
    "overlong UTF-8": (GOOD_LINES[0].replace(b"q0", b"q\xc0\xaf"), Reason.INVALID_UTF8),
    "a character cut in half": (GOOD_LINES[0].replace(b"q0", b"q\xe2\x82"), Reason.INVALID_UTF8),
    "a character beyond Unicode": (GOOD_LINES[0].replace(b"q0", b"q\xf4\x90\x80\x80"), Reason.INVALID_UTF8),
    "Windows-1252 quotes": (GOOD_LINES[0].replace(b"q0", b"\x93q\x94"), Reason.INVALID_UTF8),
    "UTF-7": (b"+AHsAIg-messages+ACI-: []}", Reason.BAD_JSON),
    "NUL in a string": (GOOD_LINES[0].replace(b"q0", b"q\x00"), Reason.BAD_JSON),
    "NUL bytes at the end": (GOOD_LINES[0] + b"\x00" * 16, Reason.SEVERAL_VALUES),
    "escape character in a string": (GOOD_LINES[0].replace(b"q0", b"\x1b[2J"), Reason.BAD_JSON),
    "escape that does not exist": (GOOD_LINES[0].replace(b"q0", b"q\\x41"), Reason.BAD_JSON),
    "escape cut short": (GOOD_LINES[0].replace(b"q0", b"q\\u12"), Reason.BAD_JSON),
    "escape that ends the line": (b'{"messages": "\\', Reason.BAD_JSON),
    "string without an end": (b'{"messages": "hello}', Reason.BAD_JSON),
    "key without quotes": (b"{messages: []}", Reason.BAD_JSON),
    "curly quotes": ("{“messages”: []}".encode(), Reason.BAD_JSON),
    "bidirectional marks outside of a string": ("\u202e".encode() + GOOD_LINES[0], Reason.BAD_JSON),
    "zero-width space outside of a string": ("\u200b".encode() + GOOD_LINES[0], Reason.BAD_JSON),
    "no-break space outside of a string": ("\u00a0".encode() + GOOD_LINES[0], Reason.BAD_JSON),
    "line separator instead of a line feed": (GOOD_LINES[0] + "\u2028".encode() + GOOD_LINES[1], Reason.SEVERAL_VALUES),
    "Python's words": (b"{'messages': None, 'ok': True}", Reason.BAD_JSON),
    "True": (GOOD_LINES[0][:-1] + b', "ok": True}', Reason.BAD_JSON),
    "undefined": (GOOD_LINES[0][:-1] + b', "x": undefined}', Reason.BAD_JSON),
    "number with a plus": (GOOD_LINES[0][:-1] + b', "x": +1}', Reason.BAD_JSON),
    "number with a zero before": (GOOD_LINES[0][:-1] + b', "x": 017}', Reason.BAD_JSON),
    "number in hexadecimal": (GOOD_LINES[0][:-1] + b', "x": 0x10}', Reason.BAD_JSON),
    "number without a digit behind the point": (GOOD_LINES[0][:-1] + b', "x": 1.}', Reason.BAD_JSON),
    "true": (b"true", Reason.NOT_AN_OBJECT),
    "HTML": (b"<html><body>502 Bad Gateway</body></html>", Reason.BAD_JSON),
    "CSV": (b"prompt,completion", Reason.BAD_JSON),
    "merge conflict": (b"<<<<<<< HEAD", Reason.BAD_JSON),
    "base64": (b"eyJtZXNzYWdlcyI6IFtdfQ==", Reason.BAD_JSON),
    "compressed": (b"rows \x1f\x8b\x08\x00", Reason.INVALID_UTF8),
    "empty object": (b"{}", Reason.EMPTY_ROW),
    "nulls only": (b'{"messages": null}', Reason.EMPTY_ROW),
    "messages missing": (b'{"text": "hello"}', Reason.MISSING_COLUMN),
    "messages null": (b'{"messages": null, "id": 1}', Reason.WRONG_TYPE),
    "messages a string": (b'{"messages": "hello"}', Reason.WRONG_TYPE),
    "messages an object": (b'{"messages": {"role": "user"}}', Reason.WRONG_TYPE),
    "messages a number": (b'{"messages": 3}', Reason.WRONG_TYPE),
    "messages empty": (b'{"messages": []}', Reason.EMPTY_MESSAGES),
    "message null": (chat(None, ANSWER), Reason.WRONG_TYPE),
    "message a string": (chat("hello", ANSWER), Reason.WRONG_TYPE),
    "message a list": (chat([USER], ANSWER), Reason.WRONG_TYPE),
    "role missing": (chat({"content": "hello"}, ANSWER), Reason.MISSING_ROLE),
    "role null": (chat({"role": None, "content": "hello"}, ANSWER), Reason.MISSING_ROLE),
    "role a number": (chat({"role": 1, "content": "hello"}, ANSWER), Reason.WRONG_TYPE),
    "role unknown": (chat({"role": "narrator", "content": "hello"}, ANSWER), Reason.UNKNOWN_ROLE),
    "role in capitals": (chat({"role": "User", "content": "hello"}, ANSWER), Reason.UNKNOWN_ROLE),
    "content null": (chat({"role": "user", "content": None}, ANSWER), Reason.WRONG_TYPE),
    "content missing": (chat({"role": "user"}, ANSWER), Reason.WRONG_TYPE),
    "content a number": (chat({"role": "user", "content": 5}, ANSWER), Reason.WRONG_TYPE),
    "content true": (chat({"role": "user", "content": True}, ANSWER), Reason.WRONG_TYPE),
    "content an object": (chat({"role": "user", "content": {"a": 1}}, ANSWER), Reason.WRONG_TYPE),
    "image": (
        chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER),
        Reason.UNSUPPORTED_CONTENT,
    ),
    "part without type": (chat({"role": "user", "content": [{"text": "a"}]}, ANSWER), Reason.UNSUPPORTED_CONTENT),
    "text part without text": (chat({"role": "user", "content": [{"type": "text"}]}, ANSWER), Reason.WRONG_TYPE),
    "user empty": (chat({"role": "user", "content": " "}, ANSWER), Reason.EMPTY_CONTENT),
    "assistant empty": (chat(USER, {"role": "assistant", "content": ""}), Reason.EMPTY_ANSWER),
    "assistant blank": (chat(USER, {"role": "assistant", "content": " \n"}), Reason.EMPTY_ANSWER),
    "assistant null": (chat(USER, {"role": "assistant", "content": None}), Reason.EMPTY_ANSWER),
    "assistant null, no calls": (
        chat(USER, {"role": "assistant", "content": None, "tool_calls": []}),
        Reason.EMPTY_ANSWER,
    ),
    "assistant only thinks": (chat(USER, {"role": "assistant", "reasoning_content": "hm"}), Reason.EMPTY_ANSWER),
    "earlier assistant turn empty": (
        chat(USER, {"role": "assistant", "content": ""}, USER, ANSWER),
        Reason.EMPTY_ANSWER,
    ),
    "nobody answers": (chat(USER, USER), Reason.NO_ANSWER),
    "only a system message": (chat({"role": "system", "content": "be kind"}), Reason.NO_ANSWER),
    "tool first": (chat({"role": "tool", "content": "42"}, ANSWER), Reason.ROLE_ORDER),
    "tool after user": (chat(USER, {"role": "tool", "content": "42"}, ANSWER), Reason.ROLE_ORDER),
    "answer to no call": (
        chat(
            USER,
            {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}]},
            {"role": "tool", "tool_call_id": "b", "content": "42"},
            ANSWER,
        ),
        Reason.ROLE_ORDER,
    ),
    "call without a name": (chat(USER, {"role": "assistant", "tool_calls": [{"function": {}}]}), Reason.BAD_TOOL_CALL),
    "call arguments not JSON": (
        chat(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]}),
        Reason.BAD_TOOL_CALL,
    ),
    "call arguments a list": (
        chat(USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}),
        Reason.BAD_TOOL_CALL,
    ),
    "calls a number": (chat(USER, {"role": "assistant", "tool_calls": 3}), Reason.BAD_TOOL_CALL),
    "user with a call": (
        chat({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}, ANSWER),
        Reason.BAD_TOOL_CALL,
    ),
    "tools not JSON": (chat(USER, ANSWER, tools="[{"), Reason.BAD_TOOLS),
    "tools without names": (chat(USER, ANSWER, tools=[{"type": "function"}]), Reason.BAD_TOOLS),
    "tools a number": (chat(USER, ANSWER, tools=7), Reason.BAD_TOOLS),
    "weight negative": (chat(USER, {**ANSWER, "weight": -1}), Reason.WRONG_TYPE),
    "weight text": (chat(USER, {**ANSWER, "weight": "1"}), Reason.WRONG_TYPE),
    "train a number": (chat(USER, {**ANSWER, "train": 1}), Reason.WRONG_TYPE),
    "user asks to be trained": (chat({**USER, "train": True}, ANSWER), Reason.NOT_TRAINABLE),
    "name a number": (chat({**USER, "name": 3}, ANSWER), Reason.WRONG_TYPE),
    "two different thoughts": (
        chat(USER, {**ANSWER, "reasoning": "a", "reasoning_content": "b"}),
        Reason.WRONG_TYPE,
    ),
    "too long a line": (chat({"role": "user", "content": "x" * MAX_LINE_BYTES}, ANSWER), Reason.LINE_TOO_LONG),
}
POSITIONS = {"first": 0, "middle": 2, "last": 4}


def read(path: Path, max_bad_fraction: float = 1.0) -> tuple[list[str], Ledger]:
    """Return the first user turns of the rows that were kept, and the ledger."""
    ledger = Ledger()
    records = read_source(SourceConfig(path=str(path)), ledger, max_bad_fraction=max_bad_fraction)
    ledger.check_balanced()
    return [record.messages[0].content for record in records], ledger  # type: ignore[union-attr]


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", BAD_LINES)
def test_a_bad_line_is_named_and_the_others_are_kept(tmp_path: Path, fault: str, position: str) -> None:
    bad, reason = BAD_LINES[fault]
    index = POSITIONS[position]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([*GOOD_LINES[:index], bad, *GOOD_LINES[index:]]) + b"\n")

    kept, ledger = read(file)

    assert kept == ["q0", "q1", "q2", "q3"]
    (entry,) = ledger.quarantine
    assert entry.reason == reason
    assert (entry.file, entry.row, entry.line) == (str(file), index, index + 1)
    assert entry.cause
    assert len(entry.excerpt) <= 160
    assert ledger.totals.rows == 5
    assert ledger.totals.dropped == {reason: 1}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("fault", [name for name in BAD_LINES if name not in ("comma after the line", "CSV")])
def test_a_bad_element_of_an_array_leaves_the_others(tmp_path: Path, fault: str, position: str) -> None:
    bad, reason = BAD_LINES[fault]
    index = POSITIONS[position]
    file = tmp_path / "rows.json"
    file.write_bytes(b"[\n  " + b",\n  ".join([*GOOD_LINES[:index], bad, *GOOD_LINES[index:]]) + b"\n]\n")

    kept, ledger = read(file)

    assert kept == ["q0", "q1", "q2", "q3"]
    (entry,) = ledger.quarantine
    assert (entry.row, entry.line) == (index, None)
    # Where brackets do not match, an array can only be told to be bad, not why.
    open_ended = (
        "torn",
        "two objects",
        "carriage returns as line ends",
        "escape that ends the line",
        "string without an end",
    )
    assert entry.reason == reason or fault in open_ended


def mixed(tmp_path: Path) -> tuple[Path, int]:
    """Write a file with every kind of bad line at its beginning, in its middle and at its end; return it and its good rows."""
    good = [json.dumps({**GOOD[0], "number": number}).encode() for number in range(200)]
    bad = [line for line, _ in BAD_LINES.values()]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([*bad, *good[:100], *bad, *good[100:], *bad]))
    return file, len(good)


def test_every_kind_at_every_place_of_one_file_is_accounted_for(
    tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    file, num_good = mixed(tmp_path)
    kept, ledger = read(file)
    assert len(kept) == num_good
    assert len(ledger.quarantine) == 3 * len(BAD_LINES)
    assert ledger.totals.rows == num_good + 3 * len(BAD_LINES)
    assert ledger.totals.dropped == Counter(reason for _, reason in BAD_LINES.values() for _ in range(3))
    assert len(BAD_LINES) >= 60
    figure(
        "kinds of bad lines, at first, middle and last place: accounted for",
        f"{len(BAD_LINES)} of {len(BAD_LINES)}; {num_good} good + {len(ledger.quarantine)} quarantined = {ledger.totals.rows:,} rows",
    )


def test_a_reader_that_drops_a_line_without_a_word_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: a row that is rejected and not booked leaves books that do not balance."""
    file, _ = mixed(tmp_path)
    reject = Ledger.reject

    def forgetful(self: Ledger, source: str, origin: Origin, reason: str, cause: str, *, excerpt: str = "") -> None:
        if reason != Reason.HUGE_NUMBER:
            reject(self, source, origin, reason, cause, excerpt=excerpt)

    monkeypatch.setattr(Ledger, "reject", forgetful)
    with pytest.raises(DataError, match="rows"):
        read(file)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("position", ["middle", "last"])
def test_a_line_in_a_wide_encoding_is_one_bad_line(tmp_path: Path, encoding: str, position: str) -> None:
    """At the first place it is taken for the encoding of the file, which is refused as a whole: see test_data_bad_files.py."""
    index = POSITIONS[position]
    wide = GOOD_LINES[0].decode().encode(encoding)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([*GOOD_LINES[:index], wide, *GOOD_LINES[index:]]))
    kept, ledger = read(file)
    assert kept == ["q0", "q1", "q2", "q3"]
    assert ledger.totals.dropped == {Reason.BAD_JSON: 1}


@pytest.mark.parametrize("position", POSITIONS)
def test_a_line_of_100_mb_at_any_place_is_one_bad_line(tmp_path: Path, position: str) -> None:
    index = POSITIONS[position]
    file = tmp_path / "rows.jsonl"
    with file.open("wb") as out:
        for number, line in enumerate([*GOOD_LINES[:index], b"", *GOOD_LINES[index:]]):
            out.write(line or b'{"messages": "')
            for _ in range(0 if line else 100):
                out.write(b"x" * 2**20)
            out.write(b"\n" if number < 4 else b"")
    kept, ledger = read(file)
    assert kept == ["q0", "q1", "q2", "q3"]
    assert ledger.totals.dropped == {Reason.LINE_TOO_LONG: 1}
    assert ledger.totals.rows == 5


@pytest.mark.parametrize("fault", ["torn", "messages empty", "role unknown"])
def test_one_bad_row_stops_the_reading_by_default_and_the_error_says_where(tmp_path: Path, fault: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([*GOOD_LINES, BAD_LINES[fault][0]]))

    with pytest.raises(DataError) as caught:
        read(file, max_bad_fraction=0.0)

    assert f"1 of 5 rows of {file}" in str(caught.value)
    assert f"{file}:5: {BAD_LINES[fault][1]}" in str(caught.value)
    assert "data.max_bad_fraction=0.21" in caught.value.mend


def test_the_fraction_that_the_error_names_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(GOOD_LINES * 33 + [b"{"]))
    with pytest.raises(DataError) as caught:
        read(file, max_bad_fraction=0.0)
    fraction = float(caught.value.mend.rsplit("=", 1)[1])
    assert 1 / 133 <= fraction < 0.01
    kept, _ = read(file, max_bad_fraction=fraction)
    assert len(kept) == 132
    with pytest.raises(DataError):
        read(file, max_bad_fraction=1 / 134)


def test_counts_are_complete_when_reading_stops(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([b"{", *GOOD_LINES, b"{", b"null"]))
    ledger = Ledger()
    with pytest.raises(DataError, match="3 of 7 rows"):
        read_source(SourceConfig(path=str(file)), ledger)
    ledger.check_balanced()
    assert ledger.totals.dropped == {Reason.BAD_JSON: 2, Reason.NOT_AN_OBJECT: 1}


def test_many_bad_rows_are_listed_in_part(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([*GOOD_LINES, *[b"{"] * 50]))
    with pytest.raises(DataError, match="50 of 54 rows") as caught:
        read(file, max_bad_fraction=0.0)
    assert str(caught.value).count(f"{file}:") == 5
    assert "and 45 more" in str(caught.value)


def test_good_rows_with_unusual_characters_are_kept_as_they_are(tmp_path: Path) -> None:
    texts = [
        "right \u202e to \u2066left\u2069",
        "line\u2028separator\u2029\x85",
        "\\u0000 escaped \u0007",
        "😀",
        "a\r\nb",
        "﻿bom inside",
    ]
    rows = [json.dumps({"prompt": text, "completion": "ok"}, ensure_ascii=False) for text in texts[:1] + texts[2:]]
    rows.insert(1, json.dumps({"prompt": texts[1], "completion": "ok"}))
    rows.append('{"prompt": "\\ud83d\\ude00", "completion": "ok"}')  # a pair of surrogates is a character
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join(rows).encode())
    kept, _ = read(file, max_bad_fraction=0.0)
    assert kept == [*texts, "😀"]


def test_what_is_just_within_the_limits_is_kept(tmp_path: Path) -> None:
    deep = GOOD_LINES[0][:-1] + b', "x": ' + b"[" * 63 + b"]" * 63 + b"}"
    number = GOOD_LINES[1][:-1] + b', "x": ' + b"9" * 400 + b"}"
    long = GOOD_LINES[2] + b" " * (MAX_LINE_BYTES - len(GOOD_LINES[2]))
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([deep, number, long]))
    assert read(file, max_bad_fraction=0.0)[0] == ["q0", "q1", "q2"]


def test_blank_lines_and_both_line_ends_are_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n" + GOOD_LINES[0] + b"\r\n\r\n  \n" + GOOD_LINES[1] + b"\n\n" + GOOD_LINES[2])
    kept, ledger = read(file, max_bad_fraction=0.0)
    assert kept == ["q0", "q1", "q2"]
    assert ledger.totals.rows == 3
    assert ledger.totals.blank_lines == 4
