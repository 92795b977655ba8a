"""Passages: how texts are cut, which are found, and that a row is not given its own answer."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.config.schema import Retrieve
from tutelage.data import retrieve
from tutelage.data.conversation import Conversation, Document, Message, Role
from tutelage.data.retrieve import Passage, Retriever, cut, digest_of, recall, remember, with_passages
from tutelage.errors import ConfigError, DataError
from tutelage.files.manifest import write_manifest

TEXTS = (
    "Mira Dell is a potter. She lives in Sedge.",
    "Anton Hill is a miller. He lives in Marsh.",
    "Bread rises early.",
    "Mira Dell has a green door.",
)


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def retriever(corpus: str, passages: int = 2, passage_words: int = 50) -> Retriever:
    return Retriever(corpus, Retrieve(corpus=corpus, passages=passages, passage_words=passage_words))


def asks(*texts: str) -> list[Message]:
    roles = (Role.USER, Role.ASSISTANT)
    return [Message(roles[number % 2], text) for number, text in enumerate(texts)]


def texts_of(passages: list[Passage]) -> list[str]:
    return [passage.text for passage in passages]


def test_the_passages_that_share_rare_words_come_first(corpus: str) -> None:
    found, left_out = retriever(corpus).best("What colour is the door of Mira Dell?")
    assert texts_of(found) == [TEXTS[3], TEXTS[0]] and left_out == 0


def test_a_question_that_shares_no_word_gets_nothing_and_stays_as_it_is(corpus: str) -> None:
    own = retriever(corpus)
    assert own.best("Quo vadis?") == ([], 0) and own.best("?!") == ([], 0)
    assert own.for_use(asks("Quo vadis?")) == tuple(asks("Quo vadis?"))


def test_ties_go_to_the_passage_that_stands_first(tmp_path: Path) -> None:
    path = tmp_path / "alike.txt"
    path.write_text("\n".join(f"crow {word}" for word in ("one", "two", "three", "four", "five")))
    found, _ = retriever(str(path), passages=3).best("crow")
    assert texts_of(found) == ["crow one", "crow two", "crow three"]


def test_equal_passages_count_once(tmp_path: Path) -> None:
    path = tmp_path / "twice.txt"
    path.write_text("A crow sings.\nA dog barks.\nA crow sings.")
    assert [p.where for p in retriever(str(path)).passages] == [f"{path}:1", f"{path}:2"]


def test_passages_stand_before_every_question_and_nothing_else_changes(corpus: str) -> None:
    said = [Message(Role.SYSTEM, "Be brief, Mira."), *asks("Who is Mira Dell?", "A potter.", "And Anton Hill?")]
    system, first, answer, second = retriever(corpus, passages=1).for_use(said)
    assert (system, answer) == (said[0], said[2])
    assert first.content == f"Documents:\n[1] {TEXTS[0]}\n\nWho is Mira Dell?"
    assert second.content.endswith("\n\nAnd Anton Hill?") and TEXTS[1] in second.content


def test_a_question_is_asked_together_with_the_one_before_it(corpus: str) -> None:
    said = asks("Who is Mira Dell?", "A potter.", "Which town?")
    *_, last = retriever(corpus, passages=1).for_use(said)
    assert TEXTS[0] in last.content
    (alone,) = retriever(corpus, passages=1).for_use(said[2:])
    assert alone == said[2]


def test_a_row_gets_in_training_what_its_question_gets_in_use(corpus: str) -> None:
    said = asks("Who is Mira Dell?", "Somebody.", "Where does Anton Hill live?", "In a house.")
    own = retriever(corpus)
    row = own.for_row(Conversation(tuple(said)))
    assert row.conversation.messages == own.for_use(said)
    assert row.where[0][0].endswith("texts.jsonl:1") and len(row.where) == 2
    assert row.counts == {retrieve.ROWS: 1, retrieve.ANSWERED: 0, retrieve.LEFT_OUT: 0}


def test_a_passage_that_is_the_row_itself_is_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("Who is Mira Dell? She is a potter!\nMira Dell, she is a potter.\nBread and Mira.")
    own = retriever(str(path), passages=1)
    said = asks("Who is Mira Dell?", "She is a potter.")
    assert own.best("Who is Mira Dell?")[0][0].where.endswith(":1")  # in use, nobody knows the answer
    row = own.for_row(Conversation(tuple(said)))
    assert row.where == ((f"{path}:2",),)
    assert row.counts == {retrieve.ROWS: 1, retrieve.ANSWERED: 1, retrieve.LEFT_OUT: 1}


def test_an_answer_of_half_a_word_is_not_held(corpus: str) -> None:
    row = retriever(corpus).for_row(Conversation(tuple(asks("Who is Mira Dell?", "pot"))))
    assert row.counts[retrieve.ANSWERED] == 0


def test_texts_are_cut_at_the_ends_of_sentences_and_lines() -> None:
    text = "One two three. Four five six seven.\nEight nine ten eleven twelve thirteen"
    pieces = [passage.text for passage in cut(Document(text, "a"), 5)]
    assert pieces == ["One two three.", "Four five six seven.", "Eight nine ten eleven twelve", "thirteen"]
    assert [p.where for p in cut(Document(text, "a"), 5)][1] == "a, words 4 to 7"
    assert cut(Document(text, "a"), 100) == [Passage(text, "a")]


@given(text=st.text(alphabet="ab. \n!", max_size=200), most=st.integers(1, 9))
def test_no_word_is_lost_and_no_passage_too_long(text: str, most: int) -> None:
    pieces = [passage.text.split() for passage in cut(Document(text, "a"), most)]
    kept = [word for piece in pieces for word in piece if any(c.isalnum() for c in word)]
    assert kept == [word for word in text.split() if any(c.isalnum() for c in word)]
    assert all(len(piece) <= most for piece in pieces)


def test_a_question_without_passages_is_the_question() -> None:
    assert with_passages([], "Who?") == "Who?"


@pytest.mark.parametrize(
    ("content", "words"), [(None, "does not exist"), ("", "no rows"), ("?!\n...", "no words"), ("\udcff", "UTF-8")]
)
def test_a_corpus_that_cannot_be_used_says_why(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=words):
        retriever(str(path))


def test_without_the_library_the_mend_is_told(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "bm25s":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match="bm25s") as caught:
        retriever(corpus)
    assert "tutelage[retrieval]" in str(caught.value.mend)


def test_a_model_remembers_how_it_was_trained_and_of_which_texts(corpus: str, tmp_path: Path) -> None:
    own = retriever(corpus, passages=5, passage_words=30)
    folder = tmp_path / "final"
    folder.mkdir()
    write_manifest(folder, about=remember(Retrieve(corpus=corpus, passages=5, passage_words=30), own.files))
    known = recall(folder)
    assert known is not None and known.corpus == "texts.jsonl" and known.digest == digest_of(own.files)
    assert known.rule("other.txt") == Retrieve(corpus="other.txt", passages=5, passage_words=30)
    assert remember(Retrieve(), {}) == {}


@pytest.mark.parametrize("about", [{}, {"retrieve": 3}, {"retrieve": {"corpus": "a", "digest": "b", "passages": -1, "passage_words": 1}}])  # fmt: skip
def test_a_manifest_that_tells_of_no_passages_tells_of_none(tmp_path: Path, about: dict[str, Any]) -> None:
    write_manifest(tmp_path, about=about)
    assert recall(tmp_path) is None and recall(tmp_path / "nowhere") is None
