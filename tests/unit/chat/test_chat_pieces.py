"""Tokens are shown as text in which nothing is invisible and nothing is lost."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tiny import tiny_tokenizer
from tutelage.chat.pieces import Pieces, visible
from tutelage.chat.tokenizer import ChatTokenizer


@cache
def byte_level() -> ChatTokenizer:
    return ChatTokenizer(tiny_tokenizer())


@cache
def sentence_piece() -> ChatTokenizer:
    """A tokenizer of the SentencePiece kind: `▁` for blanks, `<0xE2>` for bytes without a token of their own."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    backend = Tokenizer(
        models.BPE(
            {word: index for index, word in enumerate(words)}, [("▁", "a")], byte_fallback=True, unk_token="<unk>"
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return ChatTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"))


def shown(tokenizer: ChatTokenizer, text: str) -> list[str]:
    return [piece.text for piece in Pieces(tokenizer).of(tokenizer.encode_text(text))]


@pytest.mark.parametrize("make", [byte_level, sentence_piece])
@given(text=st.text(st.characters(codec="utf-8"), max_size=30))
def test_the_bytes_of_the_tokens_are_those_of_the_text(make: object, text: str) -> None:
    tokenizer = make()  # type: ignore[operator]
    if any(control in text for control in tokenizer.control_ids):
        return
    pieces = Pieces(tokenizer)
    assert pieces.text(tokenizer.encode_text(text)) == text


def test_a_character_of_several_tokens_stands_with_its_last_one() -> None:
    assert shown(sentence_piece(), "€") == ["‹E2›", "‹82›", "‹AC›€"]
    assert shown(sentence_piece(), "a€b")[-2:] == ["‹AC›€", "b"]
    pieces = Pieces(byte_level()).of(byte_level().encode_text("🤖"))
    assert pieces[-1].text.endswith("›🤖")
    assert all(piece.partial for piece in pieces)


def test_half_a_character_before_a_control_token_is_shown_as_bytes() -> None:
    tokenizer = sentence_piece()
    first, second, *_ = tokenizer.encode_text("€")
    pieces = Pieces(tokenizer).of([first, second, tokenizer.control_ids["</s>"], *tokenizer.encode_text("a")])
    assert [piece.text for piece in pieces] == ["‹E2›", "‹82›", "</s>", "a"]
    assert [piece.control for piece in pieces] == [False, False, True, False]
    assert [piece.partial for piece in pieces] == [True, True, False, False]


def test_a_byte_that_is_no_utf8_is_shown_as_a_byte() -> None:
    tokenizer = sentence_piece()
    (number,) = [index for index in range(len(tokenizer.hf)) if tokenizer.hf.convert_ids_to_tokens(index) == "<0xFF>"]
    (piece,) = Pieces(tokenizer).of([number])
    assert piece.text.startswith("‹FF›")
    assert piece.partial


def test_blanks_are_blanks_again() -> None:
    assert shown(sentence_piece(), " a b") == [" a", " ", "b"]


def test_an_id_beyond_the_vocabulary_is_named() -> None:
    assert [piece.text for piece in Pieces(byte_level()).of([5000])] == ["⟨id 5000⟩"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text, ünïcode 🤖", "plain text, ünïcode 🤖"),
        ("a\nb\tc\r", "a⏎\nb⇥\tc␍"),
        ("\x1b[31mred\x07\x7f", "␛[31mred␇␡"),
        ("\u202eevil\u200b", "⟨U+202E⟩evil⟨U+200B⟩"),
        ("a\u00a0b", "a⍽b"),
        ("\ufeff", "⟨U+FEFF⟩"),
    ],
)
def test_nothing_invisible_stays_invisible(text: str, expected: str) -> None:
    assert visible(text) == expected


@given(st.text(st.characters(codec="utf-8")))
def test_what_is_shown_cannot_steer_a_terminal(text: str) -> None:
    assert all(character.isprintable() or character in "\n\t" for character in visible(text))
