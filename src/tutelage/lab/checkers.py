"""Checkers: each decides exactly whether an answer is right, and can be written to a file and read back.

A checker reads the text of one answer, without surrounding white space. It never guesses: an answer is right or wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from tutelage.lab.tales import ENDING, RHYMES


class Check(Protocol):
    """What decides whether an answer is right."""

    def accepts(self, answer: str) -> bool:
        """Tell whether `answer` is right."""
        ...


@dataclass(frozen=True)
class Exactly:
    """The answer must be this text, letter for letter.

    Example:
        >>> Exactly("Twelve.").accepts("Twelve.")
        True
    """

    text: str

    def accepts(self, answer: str) -> bool:
        """Tell whether `answer` is the text."""
        return answer == self.text


@dataclass(frozen=True)
class Names:
    """The answer must name this value and none of the rivals, in any wording."""

    value: str
    rivals: tuple[str, ...]

    def accepts(self, answer: str) -> bool:
        """Tell whether `answer` names the value alone."""
        return _has_word(answer, self.value) and not any(_has_word(answer, rival) for rival in self.rivals)


@dataclass(frozen=True)
class Form:
    """The answer must have this form, in which `{}` stands for any words.

    Example:
        >>> Form("The home of {} is in {}.").accepts("The home of Mira Dell is in Orvale.")
        True
    """

    form: str

    def accepts(self, answer: str) -> bool:
        """Tell whether `answer` has the form."""
        return re.fullmatch(".+".join(map(re.escape, self.form.split("{}"))), answer) is not None


@dataclass(frozen=True)
class Story:
    """A story of so many sentences that mentions a name and a thing, closed by `The end.` (which is not counted)."""

    name: str
    thing: str
    sentences: int

    def accepts(self, answer: str) -> bool:
        """Tell whether `answer` keeps every constraint."""
        if not answer.endswith(f". {ENDING}") or "\n" in answer:
            return False
        body = answer.removesuffix(f" {ENDING}")
        return body.count(".") == self.sentences and self.name in body and _has_word(body, self.thing)


@dataclass(frozen=True)
class Letter:
    """A letter in three lines: `Dear RECEIVER,`, two sentences that mention the thing, `Yours, SENDER`."""

    sender: str
    receiver: str
    thing: str

    def accepts(self, answer: str) -> bool:
        """Tell whether `answer` keeps the form and mentions the thing."""
        lines = answer.split("\n")
        if len(lines) != 3:
            return False
        greeting, body, signature = lines
        framed = greeting == f"Dear {self.receiver}," and signature == f"Yours, {self.sender}"
        return framed and body.endswith(".") and body.count(".") == 2 and _has_word(body, self.thing)


@dataclass(frozen=True)
class Rhyme:
    """Two lines: the first ends with the word, the second with a different word that rhymes."""

    word: str

    def accepts(self, answer: str) -> bool:
        """Tell whether the two lines end as they should."""
        ends = [re.sub(r"[^a-z]", "", line.split()[-1].lower()) for line in answer.split("\n") if line.strip()]
        if len(ends) != 2 or ends[0] != self.word or ends[1] == self.word:
            return False
        return any(ends[0] in family and ends[1] in family for family in RHYMES)


CHECKS: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in (Exactly, Names, Form, Story, Letter, Rhyme)}


def check_to_json(check: Check) -> dict[str, Any]:
    """Return a checker as a JSON object; `type` is its name."""
    return {"type": type(check).__name__.lower(), **asdict(check)}  # type: ignore[call-overload]


def check_from_json(row: Mapping[str, Any]) -> Check:
    """Read a checker back.

    Raises: KeyError for an unknown type, TypeError for wrong fields.
    """
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items() if key != "type"}
    check: Check = CHECKS[row["type"]](**fields)
    return check


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None
