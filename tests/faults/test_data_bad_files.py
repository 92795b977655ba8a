"""Files that are damaged as a whole: what can be read is kept, and what is missing is said."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from tutelage.config.schema import SourceConfig
from tutelage.data.conversation import Document
from tutelage.data.ledger import Ledger
from tutelage.data.reasons import Reason
from tutelage.data.sources import iter_source, read_source
from tutelage.errors import DataError

ROWS = [json.dumps({"prompt": f"question {i}", "completion": f"answer {i}"}) for i in range(2000)]


def read(path: Path, max_bad_fraction: float = 1.0) -> tuple[list[str], Ledger]:
    ledger = Ledger()
    records = read_source(SourceConfig(path=str(path)), ledger, max_bad_fraction=max_bad_fraction)
    ledger.check_balanced()
    return [r.text if isinstance(r, Document) else r.messages[0].content for r in records], ledger  # type: ignore[union-attr]


def questions(count: int) -> list[str]:
    return [f"question {i}" for i in range(count)]


def compressed(tmp_path: Path, name: str, text: str) -> tuple[Path, bytes]:
    file = tmp_path / name
    return file, gzip.compress(text.encode(), mtime=0)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_truncated_gzip_keeps_the_rows_before_the_tear(tmp_path: Path, part: float) -> None:
    file, data = compressed(tmp_path, "rows.jsonl.gz", "\n".join(ROWS))
    file.write_bytes(data[: int(len(data) * part)])

    kept, ledger = read(file)

    assert len(kept) > 100 * part
    assert kept == questions(len(kept))
    assert ledger.totals.dropped == {Reason.TRUNCATED_FILE: 1}
    assert ledger.quarantine[0].line == len(kept) + 1
    with pytest.raises(DataError, match="file ends too early"):
        read(file, max_bad_fraction=0.0)


def test_a_gzip_without_its_end_mark_is_truncated_although_all_rows_are_there(tmp_path: Path) -> None:
    file, data = compressed(tmp_path, "rows.jsonl.gz", "\n".join(ROWS) + "\n")
    file.write_bytes(data[:-3])
    kept, ledger = read(file)
    assert kept == questions(2000)
    assert ledger.totals.dropped == {Reason.TRUNCATED_FILE: 1}


@pytest.mark.parametrize("damaged_at", [0.5, 1.0])
def test_a_damaged_gzip_is_named(tmp_path: Path, damaged_at: float) -> None:
    file, data = compressed(tmp_path, "rows.jsonl.gz", "\n".join(ROWS))
    place = min(int(len(data) * damaged_at), len(data) - 6)  # inside the stream, or in its checksum
    file.write_bytes(data[:place] + bytes([data[place] ^ 0xFF, data[place + 1] ^ 0xFF]) + data[place + 2 :])
    ledger = Ledger()
    with pytest.raises(DataError):
        read_source(SourceConfig(path=str(file)), ledger)
    assert Reason.DAMAGED_FILE in ledger.totals.dropped


def test_a_truncated_gzip_of_an_array_keeps_the_elements_before_the_tear(tmp_path: Path) -> None:
    file, data = compressed(tmp_path, "rows.json.gz", f"[{', '.join(ROWS)}]")
    file.write_bytes(data[: len(data) // 2])
    kept, ledger = read(file)
    assert len(kept) > 100
    assert kept == questions(len(kept))
    assert ledger.totals.dropped == {Reason.TRUNCATED_FILE: 1}


def test_gzip_is_told_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    file, data = compressed(tmp_path, "rows.jsonl", "\n".join(ROWS))
    file.write_bytes(data)
    assert read(file, 0.0)[0] == questions(2000)
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("\n".join(ROWS))
    assert read(plain, 0.0)[0] == questions(2000)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt", "rows.csv"])
def test_wide_encodings_are_refused_with_the_way_to_convert_them(tmp_path: Path, encoding: str, name: str) -> None:
    file = tmp_path / name
    file.write_bytes("\n".join(ROWS[:5]).encode(encoding))
    with pytest.raises(DataError, match="UTF-16 or UTF-32") as caught:
        read(file)
    assert "iconv" in caught.value.mend


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt", "rows.csv", "rows.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b" \n"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path / name)


def test_an_empty_array_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(b" [ ]\n")
    with pytest.raises(DataError, match="has no rows"):
        read(tmp_path / "rows.json")


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train_rows.jsonl").write_text(ROWS[0])
    (tmp_path / "other.md").write_text("")
    with pytest.raises(DataError, match=r"train_row\.jsonl does not exist") as caught:
        read(tmp_path / "train_row.jsonl")
    assert "train_rows.jsonl" in caught.value.mend
    assert "other.md" not in caught.value.mend
    with pytest.raises(DataError) as caught:
        read(tmp_path / "nowhere" / "rows.jsonl")
    assert "nowhere" in caught.value.mend


def test_a_folder_without_data_and_a_file_of_unknown_kind_are_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(DataError, match="folder without any data file"):
        read(tmp_path)
    with pytest.raises(DataError, match="no known format"):
        read(tmp_path / "notes.md")


def test_a_file_whose_first_rows_are_all_bad_is_an_error_even_when_every_row_may_be_bad(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("oops\n" * 1100 + ROWS[0])
    with pytest.raises(DataError, match="none of the first 1,000 rows"):
        read(file)


def test_reading_stops_early_only_when_no_bad_row_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(ROWS[0] + "\n" + "oops\n" * 1200)
    with pytest.raises(DataError, match="1,000 of the first 1,001 rows"):
        read(file, max_bad_fraction=0.0)
    with pytest.raises(DataError, match="1,200 of 1,201 rows"):
        read(file, max_bad_fraction=0.5)


def test_the_fraction_is_compared_without_rounding(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*ROWS[:71], *["oops"] * 29]))  # 0.29 * 100 is a little less than 29 in binary
    assert len(read(file, max_bad_fraction=0.29)[0]) == 71
    with pytest.raises(DataError):
        read(file, max_bad_fraction=0.28)


@pytest.mark.parametrize("layout", ["lines", "array", "compact array", "text"])
def test_a_line_of_100_mb_neither_fills_the_memory_nor_loses_its_neighbours(tmp_path: Path, layout: str) -> None:
    start, between, end, name = {
        "lines": ("", "\n", "\n", "rows.jsonl"),
        "array": ("[\n", ",\n", "\n]", "rows.json"),
        "compact array": ("[", ", ", "]", "compact.json"),
        "text": ("", "\n\n", "", "rows.txt"),
    }[layout]
    file = tmp_path / name
    with file.open("w") as out:
        out.write(start + ROWS[0] + between + '{"prompt": "')
        for _ in range(100):
            out.write("x" * 2**20)
        out.write('", "completion": "y"}' + between + ROWS[1] + between + ROWS[2] + end)

    tracemalloc.start()
    kept, ledger = read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert kept == (ROWS[:3] if layout == "text" else questions(3))
    (entry,) = ledger.quarantine
    assert entry.reason == Reason.LINE_TOO_LONG
    assert entry.row == 1
    assert peak < 40 * 2**20


def test_a_block_of_text_over_the_limit_is_one_row_and_is_not_collected(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("before\n\n" + ("x" * 999_999 + "\n") * 60 + "\nafter\n")
    tracemalloc.start()
    kept, ledger = read(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert kept == ["before", "after"]
    assert [(entry.reason, entry.line) for entry in ledger.quarantine] == [(Reason.LINE_TOO_LONG, 3)]
    assert "59,999,999 bytes" in ledger.quarantine[0].cause
    assert peak < 40 * 2**20


def test_rows_are_not_collected_before_they_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(ROWS))
    ledger = Ledger()
    records = iter_source(SourceConfig(path=str(file)), ledger)
    next(records)
    assert ledger.totals.rows == 1


@pytest.mark.parametrize(
    ("text", "kept", "reasons"),
    [
        ("[{a}, {b}", 2, {Reason.TRUNCATED_FILE: 1}),
        ("[{a}, {b},", 2, {Reason.TRUNCATED_FILE: 1}),
        ('[{a}, {"prompt": "x', 1, {Reason.TRUNCATED_FILE: 1}),
        ("[{a}, {b},]", 2, {Reason.BAD_JSON: 1}),
        ("[{a},, {b}]", 2, {Reason.BAD_JSON: 1}),
        ("[, {a}]", 1, {Reason.BAD_JSON: 1}),
        ("[{a} {b}]", 0, {Reason.SEVERAL_VALUES: 1}),
        ("[{a}] {b}", 1, {Reason.SEVERAL_VALUES: 1}),
        ("[{a}]\n[{b}]", 1, {Reason.SEVERAL_VALUES: 1}),
        ("[[{a}], {b}]", 1, {Reason.NOT_AN_OBJECT: 1}),
        ("[{a}, null, 3, {b}]", 2, {Reason.NOT_AN_OBJECT: 2}),
        ("[{a}, nonsense, {b}]", 2, {Reason.BAD_JSON: 1}),
        ("[{a}, {b}}, {c}]", 2, {Reason.SEVERAL_VALUES: 1}),
        ("[\n {a},\n {b,\n {c}\n]", 2, {Reason.BAD_JSON: 1}),
        ('[\n {"prompt": "x,\n {b},\n {c}\n]', 2, {Reason.BAD_JSON: 1}),
        ('[\n{a},\n{"prompt": [1, 2,\n{b},\n{c}\n]', 3, {Reason.BAD_JSON: 1}),
        ('[\n    {\n        "prompt": "x"\n        "completion": "y"\n    },\n    {b}\n]', 1, {Reason.BAD_JSON: 1}),
        ('[\n  {\n    "prompt": {"x": "y",\n    "completion": "y"\n  },\n  {b}\n]', 1, {Reason.BAD_JSON: 1}),
    ],
)
def test_arrays_that_are_not_quite_json(tmp_path: Path, text: str, kept: int, reasons: dict[str, int]) -> None:
    for letter, row in zip("abc", ROWS, strict=False):
        text = text.replace(f"{{{letter}", row[:-1])
    file = tmp_path / "rows.json"
    file.write_text(text)
    names, ledger = read(file)
    assert len(names) == kept
    assert ledger.totals.dropped == reasons


def test_an_element_that_swallows_megabytes_gives_the_others_back(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"question {i}", "completion": "z" * 100_000}) for i in range(150)]
    rows[3] = rows[3][:-1]  # its closing brace is missing: the brackets balance nowhere after it
    file = tmp_path / "rows.json"
    file.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    kept, ledger = read(file)
    assert kept == [name for name in questions(150) if name != "question 3"]
    assert [entry.row for entry in ledger.quarantine] == [3]


def test_one_object_over_several_lines_is_one_row(tmp_path: Path) -> None:
    file = tmp_path / "row.json"
    file.write_text(json.dumps(json.loads(ROWS[0]), indent=2))
    assert read(file, 0.0)[0] == ["question 0"]
    file.write_text("{\n  oops\n}")
    with pytest.raises(DataError):
        read(file, 0.0)


def test_lines_in_a_file_called_json_are_read_as_lines_even_when_the_first_is_bad(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text("\n".join(["{oops", *ROWS[:3]]))
    kept, ledger = read(file)
    assert kept == questions(3)
    assert ledger.quarantine[0].line == 1


def test_text_with_bad_bytes_loses_the_block_only(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_bytes(b"one\nmore\n\ntwo \xff\n\nthree\n")
    ledger = Ledger()
    records = read_source(SourceConfig(path=str(file)), ledger, max_bad_fraction=1.0)
    assert [record.text for record in records] == ["one\nmore", "three"]  # type: ignore[union-attr]
    (entry,) = ledger.quarantine
    assert (entry.reason, entry.row, entry.line) == (Reason.INVALID_UTF8, 1, 4)


@pytest.mark.parametrize(
    ("bad", "reason", "kept"),
    [
        (b"only one cell", Reason.WRONG_TYPE, 3),
        (b"a,b,c", Reason.WRONG_TYPE, 3),
        (b"caf\xe9,yes", Reason.INVALID_UTF8, 3),
        (b'"open" x,b', Reason.DAMAGED_FILE, 3),
        (b"question,", Reason.EMPTY_ANSWER, 3),
        (b"x" * 9_000_000 + b",y", Reason.LINE_TOO_LONG, 3),
    ],
)
def test_bad_rows_of_a_csv_file(tmp_path: Path, bad: bytes, reason: Reason, kept: int) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'prompt,completion\nquestion 0,"a, with\nline feed"\n' + bad + b"\nquestion 1,b\nquestion 2,c\n")
    names, ledger = read(file)
    assert names == questions(kept)
    (entry,) = ledger.quarantine
    assert (entry.reason, entry.row, entry.line) == (reason, 1, 4)


def test_a_csv_quote_that_is_never_closed_is_one_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('prompt,completion\nquestion 0,a\n"question 1,b\nquestion 2,c\n')
    names, ledger = read(file)
    assert names == ["question 0"]
    assert ledger.totals.dropped == {Reason.DAMAGED_FILE: 1}


def test_lines_of_a_csv_file_are_counted_through_bad_ones(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b'prompt,completion\n\xff,b\n"x\ny",b\n\n\xff,b\na\na,b\n')
    _, ledger = read(file)
    assert [(entry.row, entry.line) for entry in ledger.quarantine] == [(0, 2), (2, 6), (3, 7)]
    assert ledger.totals.kept == 2


def test_a_csv_without_a_readable_header_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b"prompt,compl\xe9tion\na,b\n")
    with pytest.raises(DataError, match="the header"):
        read(file)


def test_a_csv_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion,prompt\na,b,c\n")
    with pytest.raises(DataError, match="two columns of the same name"):
        read(file)


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(file)
