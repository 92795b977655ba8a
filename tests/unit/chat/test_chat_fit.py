"""Long documents are named, dropped or shortened by whole exchanges; never cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from chat_samples import CONVERSATIONS, GOLDEN, assistant, system, tokenizer_of, user
from tutelage.chat.fit import fit, windows
from tutelage.chat.render import Renderer
from tutelage.chat.template import load_template
from tutelage.config.schema import TooLong
from tutelage.data.conversation import Conversation, Document, Origin
from tutelage.data.ledger import Ledger
from tutelage.errors import DataError

LONG = Conversation(
    (
        system("You answer briefly."),
        *(message for number in range(6) for message in (user(f"Question {number}?"), assistant(f"Reply {number}."))),
    ),
    source="chats",
    origin=Origin("chats.jsonl", 7, 8),
)


def renderer() -> Renderer:
    return Renderer(tokenizer_of("byte-level", ("<|im_start|>", "<|im_end|>")), load_template("chatml"))


def books(*records: Conversation | Document) -> Ledger:
    ledger = Ledger()
    account = ledger.open_source("chats")
    account.rows = account.kept = len(records)
    return ledger


def test_what_fits_is_left_alone() -> None:
    rendered = renderer().render(LONG)
    assert fit(LONG, rendered, len(rendered[0]), TooLong.ERROR, renderer(), books(LONG)) == rendered


def test_the_default_names_the_row_its_length_and_the_mend() -> None:
    rendered = renderer().render(LONG)
    with pytest.raises(DataError, match=rf"chats.jsonl:8: {len(rendered[0])} tokens.*data.max_tokens=50"):
        fit(LONG, rendered, 50, TooLong.ERROR, renderer(), books(LONG))


def test_dropping_is_counted() -> None:
    ledger = books(LONG)
    assert fit(LONG, renderer().render(LONG), 50, TooLong.DROP, renderer(), ledger) == []
    ledger.check_balanced()
    assert ledger.sources["chats"].dropped == {"longer than data.max_tokens": 1}


@pytest.mark.parametrize("max_tokens", range(30, 200, 9))
def test_the_oldest_exchanges_go_first_and_what_is_left_is_whole(max_tokens: int) -> None:
    ledger, render = books(LONG), renderer()
    fitted = fit(LONG, render.render(LONG), max_tokens, TooLong.DROP_OLDEST_TURNS, render, ledger)
    ledger.check_balanced()
    if not fitted:
        assert ledger.sources["chats"].dropped
        return
    (document,) = fitted
    assert len(document) <= max_tokens and document.record_id == LONG.id
    text = render.tokenizer.decode(document.ids.tolist())
    left = text.count("Question")
    rest = Conversation((LONG.messages[0], *LONG.messages[len(LONG.messages) - 2 * left :]))
    (whole,) = render.render(rest)
    assert document.ids.tolist() == whole.ids.tolist()
    assert np.array_equal(document.weights, whole.weights)
    if left < 6:
        (longer,) = render.render(Conversation((LONG.messages[0], *LONG.messages[-2 * (left + 1) :])))
        assert len(longer) > max_tokens


def test_a_split_conversation_is_fitted_document_by_document() -> None:
    tokenizer = tokenizer_of("byte-level", ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"))
    render = Renderer(tokenizer, load_template(GOLDEN / "own" / "thinking.jinja"))
    messages = CONVERSATIONS["everything"].messages
    thanks = replace(messages[5], content="Thanks! " * 20)
    record = replace(CONVERSATIONS["everything"], messages=(*messages[:5], thanks, messages[6]))
    first, last = render.render(record)
    fitted = fit(record, [first, last], len(last) - 1, TooLong.DROP_OLDEST_TURNS, render, Ledger())
    assert [document.stage for document in fitted] == [2, 3]
    assert fitted[0] is first
    text = tokenizer.decode(fitted[1].ids[fitted[1].weights != 0].tolist())
    assert text == "<think>They are polite.</think>Gladly.<|end|>"


@pytest.mark.parametrize("max_tokens", [2, 3, 7, 20, 1000])
def test_plain_text_is_read_in_windows_that_predict_each_token_once(max_tokens: int) -> None:
    (whole,) = renderer().render(Document("It is four, not five. " * 12, source="chats"))
    parts = windows(whole, max_tokens)
    assert all(2 <= len(part) <= max_tokens for part in parts) or parts == [whole]
    predicted = [int(token) for part in parts for token in part.ids[1:][part.weights[1:] != 0]]
    assert predicted == whole.ids[1:][whole.weights[1:] != 0].tolist()
    assert [part.stage for part in parts] == list(range(len(parts)))
    assert all(part.weights[0] == 0 for part in parts)
