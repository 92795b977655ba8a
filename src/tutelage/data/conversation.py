"""The records that everything else is made of: conversations, documents and preference pairs.

One row of an input file becomes exactly one record or one quarantine entry (see `ledger`). Records are frozen; their
`id` is a hash of the content alone, so that the same example has the same id in any file, order or run.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias

Json: TypeAlias = Any

_EDGES = re.compile(r"^[\W_]+|[\W_]+$")


class Role(StrEnum):
    """Who speaks. `developer` messages of the OpenAI format are read as `system`."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True)
class ToolCall:
    """One function call made by the assistant; `arguments` is a decoded JSON object."""

    name: str
    arguments: Mapping[str, Json]
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. `train` is None when the run's policy decides; `weight` scales the loss of every trained token of it."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    name: str | None = None
    tool_call_id: str | None = None
    train: bool | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Origin:
    """Where a record was read: file, 0-based row in that file and, for line formats, 1-based line."""

    file: str
    row: int
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line is not None else f"{self.file} row {self.row}"


def content_hash(value: Json) -> str:
    """Return 32 hex digits of the SHA-256 of `value` in canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def normalised_words(text: str) -> str:
    """Return the words of `text` in lower case, without punctuation at their edges, one space apart.

    Compatibility forms of a character (full-width letters, ligatures) count as the character itself.

    Example:
        >>> normalised_words("  Who is\\tthe 'Baker'? ")
        'who is the baker'
    """
    words = (_EDGES.sub("", word) for word in unicodedata.normalize("NFKC", text).casefold().split())
    return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with the tools that were on offer."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Json], ...] = ()
    source: str = ""
    origin: Origin | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Hash of messages and tools (not of source, origin or metadata)."""
        return content_hash([[_message_key(m) for m in self.messages], [dict(t) for t in self.tools]])

    @cached_property
    def prompt_key(self) -> str:
        """Normalised words up to the first answer to a user: equal for prompts that differ in case, spacing or punctuation."""
        prompt: list[str] = []
        asked = False  # a greeting by the assistant is part of the prompt
        for message in self.messages:
            if message.role is Role.ASSISTANT and asked:
                break
            asked = asked or message.role is Role.USER
            prompt.append(message.content)
        return normalised_words(" ".join(prompt))


@dataclass(frozen=True)
class Document:
    """Plain text, trained on all its tokens: pre-training data and replay."""

    text: str
    source: str = ""
    origin: Origin | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Hash of the text."""
        return content_hash(self.text)

    @cached_property
    def prompt_key(self) -> str:
        """Normalised words of the whole text."""
        return normalised_words(self.text)


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a preferred and a rejected continuation."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Json], ...] = ()
    source: str = ""
    origin: Origin | None = None
    metadata: Mapping[str, Json] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Hash of prompt, both continuations and tools."""
        parts = [[_message_key(m) for m in side] for side in (self.prompt, self.chosen, self.rejected)]
        return content_hash([parts, [dict(t) for t in self.tools]])

    @cached_property
    def prompt_key(self) -> str:
        """Normalised words of the prompt: equal for prompts that differ in case, spacing or punctuation."""
        return normalised_words(" ".join(message.content for message in self.prompt))


Record: TypeAlias = Conversation | Document | PreferencePair


def _message_key(message: Message) -> list[Json]:
    calls = [[call.name, dict(call.arguments), call.id] for call in message.tool_calls]
    return [
        message.role.value,
        message.content,
        calls,
        message.reasoning,
        message.name,
        message.tool_call_id,
        message.train,
        message.weight,
    ]
