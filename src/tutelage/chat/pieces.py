"""What a person sees of a token: its own text, with nothing invisible left invisible.

A byte-level token may hold a part of a character only. Its bytes are then shown in hex, as in `‹E2 82›`, and the
character behind the token that completes it. Control characters, blanks that look like nothing and characters that turn the direction of
text are shown by name, so that no text can draw on a terminal or hide in a page.
"""

# T tokens

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tutelage.chat.tokenizer import ChatTokenizer

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_NAMED = {"\n": "⏎\n", "\r": "␍", "\t": "⇥\t"}
_INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


@dataclass(frozen=True)
class Piece:
    """One token as text: what to show, whether it is a control token, and whether it holds only a part of a character."""

    text: str
    control: bool = False
    partial: bool = False


class Pieces:
    """Turns ids into pieces for one tokenizer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self._controls = tokenizer.control_tokens
        self._decode_piece = _piece_decoder(tokenizer)
        self._known: dict[int, bytes] = {}

    def of(self, ids: Iterable[int]) -> list[Piece]:
        """Return one piece per token; together they show the whole text. Shapes: ids [T] -> T pieces."""
        pieces: list[Piece] = []
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for number in map(int, ids):
            if number in self._controls:
                decoder.reset()
                pieces.append(Piece(visible(self._controls[number].text), control=True))
            else:
                pieces.append(_next_piece(decoder, self.bytes_of(number)))
        return pieces

    def text(self, ids: Iterable[int]) -> str:
        """Return the text of the tokens that are not control tokens; a control token leaves a gap of one U+0000."""
        parts = (b"\0" if number in self._controls else self.bytes_of(number) for number in map(int, ids))
        return b"".join(parts).decode("utf-8", errors="replace")

    def bytes_of(self, number: int) -> bytes:
        """Return the bytes that a token stands for."""
        if number not in self._known:
            piece = self.tokenizer.hf.convert_ids_to_tokens(number)
            self._known[number] = f"⟨id {number}⟩".encode() if piece is None else self._decode_piece(piece)
        return self._known[number]


def visible(text: str) -> str:
    """Return `text` with every character visible; line breaks and tabs still break and tab.

    Example:
        >>> visible("a\\nb\\x1b[31m")
        'a⏎\\nb␛[31m'
    """
    if text.isprintable():
        return text
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if code < 0x20 or code == 0x7F:
        return chr(0x2400 + code) if code < 0x20 else "␡"
    if unicodedata.category(character) in _INVISIBLE_CATEGORIES:
        return f"⟨U+{code:04X}⟩"
    if unicodedata.category(character) == "Zs" and character != " ":
        return "⍽"
    return character


def _next_piece(decoder: codecs.IncrementalDecoder, data: bytes) -> Piece:
    """Return the piece of a token with these bytes; `decoder` holds what earlier tokens left incomplete."""
    begun, _ = decoder.getstate()
    text = decoder.decode(data)
    left, _ = decoder.getstate()
    if not begun and not left and "\ufffd" not in text:
        return Piece(visible(text))
    return Piece(f"‹{data.hex(' ').upper()}›{visible(text)}", partial=True)


def _piece_decoder(tokenizer: ChatTokenizer) -> Callable[[str], bytes]:
    """Return how the tokenizer's vocabulary writes bytes: as byte-level characters, or as text with `▁` and `<0xE2>`."""
    backend = tokenizer.hf.backend_tokenizer
    if "ByteLevel" in f"{backend.decoder!r}{backend.pre_tokenizer!r}":
        table = _byte_of_character()
        return lambda piece: b"".join(
            bytes([table[character]]) if character in table else character.encode() for character in piece
        )
    return _sentence_piece


def _sentence_piece(piece: str) -> bytes:
    match = _BYTE_FALLBACK.fullmatch(piece)
    return bytes.fromhex(match[1]) if match else piece.replace("▁", " ").encode("utf-8", errors="replace")


def _byte_of_character() -> dict[str, int]:
    """Return the byte behind each character of byte-level vocabularies.

    Bytes that are visible Latin-1 characters stand for themselves; the others, in order, for U+0100 onwards.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + index): byte for index, byte in enumerate(others)}
