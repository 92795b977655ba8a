"""The conversation as a chat template sees it: plain dicts and lists whose text knows where it came from.

Templates may also be watched while they read: how far ahead in the conversation they have looked decides which part of
the text was known at inference.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TypeAlias

from tutelage.chat import trace
from tutelage.chat.trace import Field, Source, Traced
from tutelage.data.conversation import Json, Message, ToolCall

_Label: TypeAlias = Callable[[Any, Source], Any]
END = 1 << 30
"""In place of a message's number: the template knows where the conversation ends."""


@dataclass(frozen=True)
class MessageForm:
    """How messages are handed to a template: some want content as a list of parts, or call arguments as JSON text."""

    content_parts: bool = False
    argument_text: bool = False


class MessageView(dict[str, Any]):
    """A message as the template sees it: a plain mapping that knows its number."""

    __slots__ = ("_index",)
    _index: int

    def __init__(self, fields: Mapping[str, Any], index: int) -> None:
        super().__init__(fields)
        self._index = index


class SourcedDict(dict[str, Any]):
    """A mapping all of whose text comes from one source, such as the arguments of a tool call."""

    __slots__ = ("_source",)
    _source: Source

    def __init__(self, fields: Mapping[str, Any], source: Source) -> None:
        super().__init__(fields)
        self._source = source


class SourcedList(list[Any]):
    """A list all of whose text comes from one source."""

    __slots__ = ("_source",)
    _source: Source

    def __init__(self, items: list[Any], source: Source) -> None:
        super().__init__(items)
        self._source = source


def source_of(value: Any) -> Source | None:
    """Return where all the text of `value` came from, if it is one place."""
    if isinstance(value, Traced):
        return next((label for _, _, label in trace.spans_of(value) if isinstance(label, Source)), None)
    return getattr(value, "_source", None) if isinstance(value, SourcedDict | SourcedList) else None


def template_messages(messages: Sequence[Message], form: MessageForm = MessageForm()) -> list[dict[str, Json]]:
    """Return messages as `apply_chat_template` takes them: plain dicts in the OpenAI layout."""
    return [
        _fields(message, number, form, lambda text, _: text, lambda value, _: value)
        for number, message in enumerate(messages)
    ]


def traced_messages(messages: Sequence[Message], form: MessageForm) -> list[MessageView]:
    """Return the same, with strings that know where they come from."""
    return [
        MessageView(_fields(message, number, form, trace.of, with_source), number)
        for number, message in enumerate(messages)
    ]


def _fields(message: Message, number: int, form: MessageForm, text: _Label, tree: _Label) -> dict[str, Json]:
    """Return the fields of a message; `text` and `tree` label a string or a structure with its source."""
    fields: dict[str, Json] = {"role": text(str(message.role), Source(number, Field.ROLE))}
    content = text(message.content, Source(number, Field.CONTENT))
    fields["content"] = [{"type": "text", "text": content}] if form.content_parts else content
    if message.reasoning is not None:
        reasoning = text(message.reasoning, Source(number, Field.REASONING))
        fields |= {"thinking": reasoning, "reasoning_content": reasoning}
    if message.tool_calls:
        calls = [_call_fields(call, form) for call in message.tool_calls]
        fields["tool_calls"] = tree(calls, Source(number, Field.TOOL_CALL))
    for key, value in (("name", message.name), ("tool_call_id", message.tool_call_id)):
        if value is not None:
            fields[key] = text(value, Source(number, Field.LABEL))
    return fields


def _call_fields(call: ToolCall, form: MessageForm) -> dict[str, Json]:
    arguments: Json = dict(call.arguments)
    if form.argument_text:
        arguments = json.dumps(arguments, ensure_ascii=False)
    fields = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    return fields if call.id is None else {"id": call.id, **fields}


def with_source(value: Json, source: Source) -> Json:
    """Return a structure whose strings, keys included, all come from `source`."""
    if isinstance(value, str):
        return trace.of(value, source)
    if isinstance(value, Mapping):
        return SourcedDict({with_source(key, source): with_source(item, source) for key, item in value.items()}, source)
    if isinstance(value, list | tuple):
        return SourcedList([with_source(item, source) for item in value], source)
    return value


class Watch:
    """How far into the conversation a template has looked."""

    def __init__(self) -> None:
        self.last = -1

    def saw(self, message: int) -> None:
        """Note that message number `message` was looked at."""
        self.last = max(self.last, message)


class MessageList(list[Any]):
    """The messages as a template sees them: a list that reports what is read from it.

    Reading message i, or learning that there is one, is reported as i; anything that depends on where the conversation
    ends (its length, its last message, running out of messages) as `END`. A view on the rest of the list, as
    `messages[1:]` gives, reports the same numbers.
    """

    __slots__ = ("_first", "_watch")

    def __init__(self, items: Sequence[Any], watch: Watch, first: int = 0) -> None:
        super().__init__(items)
        self._watch = watch
        self._first = first

    def __iter__(self) -> Iterator[Any]:
        for number in range(super().__len__()):
            self._watch.saw(self._first + number)
            yield super().__getitem__(number)
        self._watch.saw(END)

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        size = super().__len__()
        if isinstance(key, slice):
            start = key.start or 0
            if start >= 0 and key.stop is None and key.step in (None, 1):
                return MessageList(super().__getitem__(key), self._watch, self._first + start)
            self._watch.saw(END)
            return super().__getitem__(key)
        index = operator.index(key)
        self._watch.saw(self._first + index if 0 <= index < size else END)
        return super().__getitem__(index)

    def __bool__(self) -> bool:
        size = super().__len__()
        self._watch.saw(self._first if size else END)
        return size > 0

    def __len__(self) -> int:
        self._watch.saw(END)
        return super().__len__()

    def __reversed__(self) -> Iterator[Any]:
        self._watch.saw(END)
        return super().__reversed__()

    def __contains__(self, item: object) -> bool:
        self._watch.saw(END)
        return super().__contains__(item)

    def __eq__(self, other: object) -> bool:
        self._watch.saw(END)
        return super().__eq__(other)

    __hash__ = None  # as for any list

    def __add__(self, other: Any) -> Any:
        self._watch.saw(END)
        return super().__add__(other)

    def copy(self) -> list[Any]:
        """Return a plain copy."""
        self._watch.saw(END)
        return super().copy()

    def index(self, *args: Any) -> int:
        """Return the place of a message."""
        self._watch.saw(END)
        return super().index(*args)

    def count(self, value: Any) -> int:
        """Return how often a message occurs."""
        self._watch.saw(END)
        return super().count(value)
