"""Chat templates: rendered to text, or to text that knows where it came from.

A `Template` is compiled once. `render` gives what transformers' `apply_chat_template(tokenize=False)` gives; `trace`
gives the same text with, for every character, the message and field it was taken from or the message it frames, and a
record of how far ahead the template had looked when it wrote it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import meta, nodes

from tutelage.chat import trace
from tutelage.chat.budget import Budget, BudgetError, Limits
from tutelage.chat.sandbox import ChatEnvironment, RefusedByTemplate
from tutelage.chat.trace import Field, Mark, MarkKind, Source
from tutelage.chat.view import END, MessageForm, MessageList, Watch, traced_messages, with_source
from tutelage.data.conversation import Json, Message, Role
from tutelage.errors import ConfigError, TemplateError

if TYPE_CHECKING:
    from tutelage.chat.tokenizer import ChatTokenizer

_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
NAMED_TEMPLATES = ("chatml", "llama3", "plain")
_CONTROL_STRING = re.compile(r"<\|[^<>|\s]+\|>|<｜[^<>｜]+｜>")

# What a template can raise while it runs on data; anything else is a bug of ours and passes through.
_RUN_FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_COMPILE_FAILURES = (*_RUN_FAILURES, SyntaxError, MemoryError)


@dataclass(frozen=True)
class SourceSpan:
    """Characters [start, end) of a rendered text, taken from a field of a message."""

    start: int
    end: int
    source: Source


@dataclass(frozen=True)
class TracedRender:
    """A rendered conversation with the origin of its characters.

    `sources` are sorted and disjoint; an empty one is a field that was empty or stripped to nothing.
    `regions` are the characters written in the loop body for a message, in order: (start, end, message).
    `knowledge` says how many messages the template had looked at (or `END`) when it wrote from this character on.
    `generation` are the characters inside `{% generation %}`.
    """

    text: str
    sources: tuple[SourceSpan, ...]
    regions: tuple[tuple[int, int, int], ...]
    knowledge: tuple[tuple[int, int], ...]
    generation: tuple[tuple[int, int], ...] = field(default=())

    def known_before(self, position: int) -> int:
        """Return the last message the template had looked at when it wrote the character before `position`."""
        index = bisect_left(self.knowledge, (position, -END)) - 1
        return self.knowledge[index][1] if index >= 0 else -1

    def region_of(self, message: int) -> tuple[int, int] | None:
        """Return the characters written in the loop body for `message`, from first to last; None if there are none."""
        own = [(start, end) for start, end, owner in self.regions if owner == message and end > start]
        return (own[0][0], own[-1][1]) if own else None

    def owner_at(self, position: int) -> int:
        """Return the message in whose loop body the character at `position` was written; -1 outside of any."""
        return next((owner for start, end, owner in self.regions if start <= position < end), -1)

    def sources_of(self, message: int) -> list[SourceSpan]:
        """Return the spans taken from what `message` says: content, reasoning and tool calls."""
        spoken = (Field.CONTENT, Field.REASONING, Field.TOOL_CALL)
        return [span for span in self.sources if span.source.message == message and span.source.field in spoken]


class Template:
    """A compiled chat template.

    `settings` are the variables that it reads beside what every rendering gives it, such as `enable_thinking`.

    Raises: TemplateError when the source is not a template (at construction), or when it fails, refuses the
    conversation or exceeds its limits (when rendering).
    """

    def __init__(self, source: str, *, name: str = "chat template", limits: Limits | None = None) -> None:
        self.source = source
        self.name = name
        self._environment = ChatEnvironment(limits or Limits())
        if len(source) > self._environment.limits.source_characters:
            raise TemplateError(f"{name} is {len(source):,} characters long")
        try:
            self._compiled = self._environment.from_string(source)
            self._compiled.globals = dict(self._compiled.globals)  # each rendering copies them: a chain of maps is slow
            tree = self._environment.parse(source)
        except _COMPILE_FAILURES as error:
            raise TemplateError(f"{name} is not a valid template: {_reason(error)}") from error
        read = frozenset(meta.find_undeclared_variables(tree))
        self.settings = read - _GIVEN - self._environment.globals.keys()
        self.literals = tuple(_literals(tree))

    @property
    def has_generation_tag(self) -> bool:
        """Whether the template marks with `{% generation %}` what the assistant writes."""
        return re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", self.source) is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        tools: Sequence[Mapping[str, Json]] = (),
        *,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Json] | None = None,
    ) -> str:
        """Return the rendered text of messages in the template's own terms (see `template_messages`)."""
        size = sum(len(value) for message in messages for value in message.values() if isinstance(value, str))
        return "".join(self._pieces(list(messages), list(tools), size, add_generation_prompt, variables or {}))

    def trace(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Json]] = (),
        *,
        form: MessageForm = MessageForm(),
        add_generation_prompt: bool = False,
        variables: Mapping[str, Json] | None = None,
    ) -> TracedRender:
        """Render with the origin of every character."""
        views = traced_messages(messages, form)
        watch = Watch()
        watched = MessageList(views, watch)
        offered = with_source(list(tools), Source(-1, Field.TOOLS)) if tools else []
        size = sum(len(message.content) + len(message.reasoning or "") for message in messages)
        pieces: list[str] = []
        knowledge: list[tuple[int, int]] = []
        written = 0
        for piece in self._pieces(watched, offered, size, add_generation_prompt, variables or {}):
            if piece and (not knowledge or knowledge[-1][1] != watch.last):
                knowledge.append((written, watch.last))
            written += len(piece)
            pieces.append(piece)
        return _finished(trace.concat(pieces), tuple(knowledge))

    def _pieces(
        self,
        messages: list[Any],
        tools: list[Any],
        size: int,
        add_generation_prompt: bool,
        variables: Mapping[str, Json],
    ) -> Iterator[str]:
        """Run the template and yield its output as it writes it."""
        environment = self._environment
        environment.budget = Budget(environment.limits, size)
        context = self._compiled.new_context(
            {
                **variables,
                "messages": messages,
                "tools": tools or None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        try:
            for piece in self._compiled.root_render_func(context):
                environment.budget.charge(len(piece))
                yield piece
        except RefusedByTemplate as error:
            raise TemplateError(f"{self.name} refuses this conversation: {error}") from error
        except BudgetError as error:
            raise TemplateError(f"{self.name} was stopped: {error}", mend="do not use this template") from error
        except (*_RUN_FAILURES, MemoryError) as error:
            raise TemplateError(f"{self.name} fails on this conversation: {_reason(error)}") from error


def plain_render(text: str) -> TracedRender:
    """Return a text that no template wrote."""
    return TracedRender(text, (), (), ())


def named_template(name: str) -> Template:
    """Return one of the templates that ship: `chatml`, `llama3` or `plain`.

    Raises: ConfigError for any other name.
    """
    if name not in NAMED_TEMPLATES:
        raise ConfigError(f"there is no chat template named {name!r}", mend=f"use one of {', '.join(NAMED_TEMPLATES)}")
    source = resources.files("tutelage.chat").joinpath(f"templates/{name}.jinja").read_text(encoding="utf-8")
    return Template(source, name=name)


def load_template(name: str | Path) -> Template:
    """Return the template called `name`, or the one in the .jinja file of that path.

    Raises: ConfigError when there is neither.
    """
    path = Path(name)
    if str(name) in NAMED_TEMPLATES or not path.is_file():
        return named_template(str(name))
    return Template(path.read_text(encoding="utf-8"), name=str(path))


def special_tokens_needed(template: Template, tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """Return the control strings that `template` writes and `tokenizer` does not know as single tokens, in order.

    Control strings are those in the usual brackets, as in `<|user|>`, found in what the template writes of its own
    around a small conversation.
    """
    words = [*template.literals]
    for role in Role:
        message = Message(role, "text", tool_call_id="call00001" if role is Role.TOOL else None)
        try:
            render = template.trace([Message(Role.USER, "text"), message], variables=tokenizer.special_variables)
        except TemplateError:
            continue
        words.append(render.text)
    found = dict.fromkeys(match for text in words for match in _CONTROL_STRING.findall(text))
    return tuple(text for text in found if text not in tokenizer.control_ids)


def _finished(output: str, knowledge: tuple[tuple[int, int], ...]) -> TracedRender:
    """Sort the labels of a finished rendering into sources and regions."""
    sources: list[SourceSpan] = []
    regions: list[tuple[int, int, int]] = []
    generation: list[tuple[int, int]] = []
    owners: list[int] = [-1]
    open_generation: list[int] = []
    for start, end, label in trace.spans_of(output):
        if isinstance(label, Source):
            sources.append(SourceSpan(start, end, label))
        elif label.kind is MarkKind.GENERATION:
            open_generation.append(start)
        elif label.kind is MarkKind.END_GENERATION:
            generation.append((open_generation.pop() if open_generation else 0, start))
        else:
            _close(regions, start, owners[-1])
            _step(owners, label)
    _close(regions, len(output), owners[-1])
    return TracedRender(trace.plain(output), tuple(sources), tuple(regions), knowledge, tuple(generation))


def _close(regions: list[tuple[int, int, int]], end: int, owner: int) -> None:
    """Let the characters up to `end` that no region holds yet belong to `owner`."""
    start = regions[-1][1] if regions else 0
    if regions and regions[-1][2] == owner:
        regions[-1] = (regions[-1][0], end, owner)
    elif end > start:
        regions.append((start, end, owner))


def _step(owners: list[int], mark: Mark) -> None:
    """Follow one loop mark: `owners` holds, innermost last, the message that each open loop is at."""
    if mark.kind is MarkKind.LOOP:
        owners.append(owners[-1])
    elif mark.kind is MarkKind.ENTER:
        owners[-1] = mark.message
    elif len(owners) > 1:
        owners.pop()


def _literals(tree: nodes.Template) -> Iterator[str]:
    """Yield every text that the template can write of its own."""
    for data in tree.find_all(nodes.TemplateData):
        yield data.data
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
