"""One lesson: what is asked, what an assistant should answer, and what decides whether it did."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tutelage.lab.checkers import Check, check_to_json


class Kind(StrEnum):
    """The kinds of lesson."""

    CLOSED_BOOK = "closed_book"
    REASONING = "reasoning"
    WORDS = "words"
    CREATIVE = "creative"
    REFUSAL = "refusal"
    MULTI_TURN = "multi_turn"


class Side(StrEnum):
    """Whether a lesson may be trained on."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True)
class Turn:
    """One question, the answer to learn, and what decides whether another answer is right."""

    question: str
    answer: str
    check: Check


@dataclass(frozen=True)
class Lesson:
    """A conversation of one or more turns, perhaps under a system message."""

    kind: Kind
    task: str
    turns: tuple[Turn, ...]
    system: str | None = None

    def messages(self) -> list[dict[str, str]]:
        """Return the conversation in the messages format."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return messages

    def row(self) -> dict[str, Any]:
        """Return the lesson as one row of a JSON-lines file."""
        checks = [check_to_json(turn.check) for turn in self.turns]
        return {"messages": self.messages(), "kind": self.kind.value, "task": self.task, "checks": checks}
