"""The ledger closes, and says so when it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.data.conversation import Document, Origin
from tutelage.data.ledger import Ledger, ledger_table
from tutelage.data.reasons import Reason
from tutelage.errors import DataError


def small_ledger() -> Ledger:
    """Return the books of two sources with 3 and 1 rows, of which one is dropped."""
    ledger = Ledger()
    chats = ledger.open_source("chats", path="chats.jsonl", kind="messages", taken_as="messages")
    chats.rows, chats.kept = 3, 2
    ledger.reject("chats", Origin("chats.jsonl", 1, 2), Reason.BAD_JSON, "oops", excerpt="{oops")
    news = ledger.open_source("news")
    news.rows, news.kept = 1, 1
    return ledger


def record(row: int) -> Document:
    return Document("text", source="chats", origin=Origin("chats.jsonl", row, row + 1))


def test_books_that_close_are_accepted_and_add_up() -> None:
    ledger = small_ledger()
    ledger.check_balanced()
    totals = ledger.totals
    assert (totals.rows, totals.kept, totals.dropped) == (4, 3, {Reason.BAD_JSON: 1})


@pytest.mark.parametrize("field", ["rows", "kept"])
@pytest.mark.parametrize("change", [1, -1])
def test_a_row_that_vanishes_or_appears_is_noticed(field: str, change: int) -> None:
    ledger = small_ledger()
    account = ledger.sources["chats"]
    setattr(account, field, getattr(account, field) + change)
    with pytest.raises(DataError, match="'chats' does not balance"):
        ledger.check_balanced()


def test_a_dropped_row_that_is_not_in_the_quarantine_is_noticed() -> None:
    ledger = small_ledger()
    ledger.quarantine.clear()
    with pytest.raises(DataError, match="quarantined"):
        ledger.check_balanced()


def test_dropping_a_kept_record_moves_it_once() -> None:
    ledger = small_ledger()
    ledger.drop(record(0), Reason.TOO_LONG, "9 tokens")
    ledger.check_balanced()
    account = ledger.sources["chats"]
    assert (account.kept, account.dropped) == (1, {Reason.BAD_JSON: 1, Reason.TOO_LONG: 1})
    assert ledger.quarantine[-1].where == "chats.jsonl:1"
    with pytest.raises(DataError, match="dropped before"):
        ledger.drop(record(0), Reason.TOO_LONG, "9 tokens")
    with pytest.raises(DataError, match="unknown source"):
        ledger.drop(Document("x", source="other"), Reason.TOO_LONG, "9 tokens")


def test_rows_dropped_by_a_rule_are_no_faults() -> None:
    ledger = small_ledger()
    ledger.drop(record(0), Reason.TOO_LONG, "9 tokens")
    assert ledger.sources["chats"].num_faulty == 1
    ledger.drop(record(2), "a reason of one's own", "so")
    assert ledger.sources["chats"].num_faulty == 2


@pytest.mark.parametrize(
    ("booked", "closes"),
    [
        ({"rendered": (10, 4), "train": (7, 3), "held_out": (3, 1)}, True),
        ({"rendered": (10, 4), "train": (7, 3), "held_out": (2, 1), "dropped": (1, 0)}, True),
        ({"rendered": (10, 4), "train": (7, 3), "held_out": (2, 1)}, False),
        ({"rendered": (10, 4), "train": (10, 3)}, False),
        ({"rendered": (10, 4)}, True),
        ({"planned": (10, 4), "loss": (10, 4)}, True),
        ({"planned": (10, 4), "loss": (10, 3)}, False),
        ({"mine": (10, 4)}, True),
    ],
)
def test_tokens_are_followed_from_row_to_loss(booked: dict[str, tuple[int, int]], closes: bool) -> None:
    ledger = small_ledger()
    for stage, (tokens, supervised) in booked.items():
        ledger.book_tokens("chats", stage, tokens - 1, supervised)
        ledger.book_tokens("chats", stage, 1, 0)
    if closes:
        ledger.check_balanced()
    else:
        with pytest.raises(DataError, match="does not balance"):
            ledger.check_balanced()


def test_token_totals_add_up_over_sources() -> None:
    ledger = small_ledger()
    ledger.book_tokens("chats", "train", 10, 4, documents=2)
    ledger.book_tokens("news", "train", 5, 5)
    count = ledger.totals.tokens["train"]
    assert (count.documents, count.tokens, count.supervised) == (3, 15, 9)


def test_secrets_do_not_reach_the_quarantine() -> None:
    ledger = small_ledger()
    secret = "hf_" + "a" * 30
    ledger.reject("chats", Origin("f", 0), Reason.WRONG_TYPE, f"saw {secret}", excerpt="x" * 150 + f" {secret}")
    entry = ledger.quarantine[-1]
    assert "hf_" not in entry.cause + entry.excerpt
    assert entry.cause == "saw ***"
    assert len(entry.excerpt) <= 160


def test_the_books_are_written_as_json_and_the_quarantine_line_by_line(tmp_path: Path) -> None:
    ledger = small_ledger()
    ledger.book_tokens("chats", "train", 10, 4)
    ledger.write(tmp_path / "ledger.json", quarantine=tmp_path / "quarantine.jsonl")
    books = json.loads((tmp_path / "ledger.json").read_text())
    assert books == ledger.to_json()
    assert books["sources"]["chats"]["dropped"] == {"bad JSON": 1}
    assert books["totals"]["rows"] == 4
    entry = json.loads((tmp_path / "quarantine.jsonl").read_text())
    assert entry == {
        "source": "chats",
        "file": "chats.jsonl",
        "row": 1,
        "line": 2,
        "reason": "bad JSON",
        "cause": "oops",
        "excerpt": "{oops",
    }


def test_the_table_shows_each_source_each_reason_and_the_totals() -> None:
    ledger = small_ledger()
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(ledger_table(ledger.to_json()))
    shown = [line.split() for line in console.export_text().splitlines()]
    assert any(words[:1] == ["│"] and words[1:10:2] == ["chats", "3", "2", "1"] for words in shown), shown
    assert any(words[:1] == ["│"] and words[1:10:2] == ["total", "4", "3", "1"] for words in shown), shown
