"""The picture shows the mask as it is: in colour, in brackets where there is no colour, and as a page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tiny import tiny_tokenizer
from tutelage.chat.picture import View, print_picture, runs, view, worst_first
from tutelage.chat.picture_page import picture_page
from tutelage.chat.pieces import Pieces
from tutelage.chat.rendered import Part, Rendered
from tutelage.chat.tokenizer import ChatTokenizer

TOKENIZER = ChatTokenizer(tiny_tokenizer())
PIECES = Pieces(TOKENIZER)


def document(*parts: tuple[int, str, float, Part], roles: Sequence[str] = (), where: str = "chats.jsonl:1") -> Rendered:
    """Return a document of (message, text, weight, part) stretches."""
    ids, weights, message, part = [], [], [], []
    for number, text, weight, kind in parts:
        tokens = TOKENIZER.encode_text(text)
        ids += tokens
        weights += [weight] * len(tokens)
        message += [number] * len(tokens)
        part += [kind] * len(tokens)
    return Rendered(
        ids=np.array(ids, np.int32),
        weights=np.array(weights, np.float32),
        message=np.array(message, np.int32),
        part=np.array(part, np.int8),
        roles=tuple(roles),
        record_id=where,
        source="chats",
        where=where,
    )


def chat(question: str, answer: str, *, weight: float = 1.0, where: str = "chats.jsonl:1") -> Rendered:
    return document(
        (-1, "<bos>", 0, Part.HEADER),
        (0, "user: ", 0, Part.HEADER),
        (0, question, 0, Part.CONTENT),
        (1, "assistant: ", 0, Part.HEADER),
        (1, answer, weight, Part.CONTENT),
        (1, "<eos>", weight, Part.STOP),
        roles=("user", "assistant"),
        where=where,
    )


def printed(*documents: Rendered, whole: bool = False, colour: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=200, force_terminal=colour, color_system="truecolor" if colour else None)
    print_picture(console, [view(one, PIECES) for one in documents], whole=whole)
    return stream.getvalue()


def test_brackets_stand_around_exactly_what_is_trained() -> None:
    text = printed(chat("Who lives there?", "Mira lives there."))
    assert "⟦Mira lives there.⟧⟦<eos>■⟧" in text
    assert text.count("⟦") == 2 + 2  # two in the legend
    assert "assistant: ⟦" in text
    assert "chats.jsonl:1" in text


def test_colours_stand_on_exactly_what_is_trained() -> None:
    text = printed(chat("Who?", "Mira."), colour=True)
    legend, _, picture = text.partition("\n")
    assert "reasoning" in legend
    trained = "".join(re.findall(r"\x1b\[30;(?:42|102)m([^\x1b]*)", picture))
    assert trained == "Mira."
    assert "<eos>" in re.findall(r"\x1b\[1;30;43m([^\x1b]*)", text)


def test_a_weight_other_than_one_is_written_before_what_it_weighs() -> None:
    assert "×0.5 ⟦Mira.⟧" in printed(chat("Who?", "Mira.", weight=0.5))
    assert "×" not in printed(chat("Who?", "Mira.")).split("\n", 1)[1]


def test_long_stretches_that_are_read_only_are_shortened_unless_all_is_wanted() -> None:
    long = chat("word " * 400, "Mira.")
    short, whole = printed(long), printed(long, whole=True)
    assert "tokens not shown" in short
    assert "tokens not shown" not in whole
    assert whole.count("word") == 400
    assert "⟦Mira.⟧" in short


def test_many_messages_that_are_read_only_are_folded() -> None:
    parts = [(number, f"Message {number}. ", 0.0, Part.CONTENT) for number in range(11)]
    one = document(*parts, (11, "Answer.", 1.0, Part.CONTENT), roles=["user", "assistant"] * 6)
    text = printed(one)
    assert "… 8 messages, " in text
    for number in (0, 9, 10):
        assert f"Message {number}." in text
    assert "Message 5." not in text
    assert "Message 5." in printed(one, whole=True)


def test_text_from_data_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in printed(chat("\x1b[2J[bold]x[/bold]", "ok"))
    assert "[bold]x[/bold]" in printed(chat("[bold]x[/bold]", "ok"))


def test_plain_text_documents_have_no_role() -> None:
    one = document((-1, "Once upon a time.", 1.0, Part.CONTENT))
    assert "⟦Once upon a time.⟧" in printed(one)


def test_the_worst_documents_come_first_and_each_once() -> None:
    normal = chat("Who?", "Mira lives there.", where="a:1")
    longest = chat("word " * 50, "Mira lives there with two dogs. " * 10, where="a:2")
    least = chat("word " * 20, "x", where="a:3")
    typed = Rendered(
        **{
            **{name: getattr(normal, name) for name in ("roles", "source", "record_id")},
            "where": "a:4",
            "ids": np.array(TOKENIZER.encode_inert("say <eos> <bos>", after_control=False).ids, np.int32),
            **{
                name: np.ones(len(TOKENIZER.encode_inert("say <eos> <bos>", after_control=False).ids), kind)
                for name, kind in (("weights", np.float32), ("message", np.int32), ("part", np.int8))
            },
        }
    )
    order = worst_first([normal, longest, least, typed], PIECES)
    assert order[:3] == [(1, "longest"), (2, "least supervised"), (3, "most control strings")]
    assert sorted(index for index, _ in order) == [0, 1, 2, 3]
    assert view(typed, PIECES).typed_controls == 2


def test_of_a_split_conversation_one_document_comes_first() -> None:
    same = [chat("word " * n, "Mira.", where="a:1") for n in (30, 29, 28)]
    order = [index for index, _ in worst_first([*same, chat("Who?", "Mira.", where="a:2")], PIECES)]
    assert order[:2] == [0, 3]


def test_runs_of_nothing_are_none() -> None:
    assert runs(np.array([])) == []
    assert runs(np.array([1, 1, 2, 1])) == [(0, 2), (2, 3), (3, 4)]


def page_data(html: str) -> dict[str, Any]:
    (embedded,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    return json.loads(embedded)


def test_the_page_holds_the_tokens_as_they_are() -> None:
    one = chat("Who?", "Mira.", weight=0.5)
    (data,) = page_data(picture_page([view(one, PIECES, why="longest")], title="t", facts={}))["documents"]
    assert data["ids"] == one.ids.tolist()
    assert [weight for length, weight in data["weight"] for _ in range(length)] == one.weights.tolist()
    assert [message for length, message in data["message"] for _ in range(length)] == one.message.tolist()
    assert data["supervised"] == one.supervised_tokens
    assert data["roles"] == ["user", "assistant"]
    assert data["why"] == "longest"


@pytest.mark.parametrize("evil", ["</script><script>alert(1)</script>", "<!--", "<img src=x onerror=alert(1)>", "&lt;"])
def test_text_from_data_cannot_become_markup(evil: str) -> None:
    one = chat(evil, "ok", where=evil)
    html = picture_page([view(one, PIECES)], title=evil, facts={evil: evil})
    assert evil not in html.replace("&amp;lt;", "")
    assert html.count("<script") == 2
    assert page_data(html)["documents"][0]["where"] == evil


def test_the_page_asks_nothing_of_the_network() -> None:
    html = picture_page([view(chat("Who?", "Mira."), PIECES)], title="t", facts={"Model": "m"})
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?://", html)
    assert "default-src 'none'" in html


def test_the_policy_of_the_page_allows_its_own_script_and_style_only() -> None:
    import base64
    import hashlib

    html = picture_page([], title="t", facts={})
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.S)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    for text in (style, script):
        assert "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in html
    assert "unsafe-inline" not in html


def test_an_empty_view_is_drawn() -> None:
    empty = view(document(), PIECES)
    assert isinstance(empty, View)
    assert empty.trained_share == 0
    assert "0 tokens" in printed(document())
