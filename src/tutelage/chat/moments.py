"""What a template renders at each moment of a conversation, and whether later messages change it.

A turn may be trained in a longer document only if the text up to its end is, character for character, what the
template gives for the conversation as it stood then: the generation prompt before the turn, and the turn itself as last
message. Both can be checked by rendering every prefix, which takes time quadratic in the number of turns. Most
templates let us off: the trace tells how many messages the template had looked at when it wrote each character, and
what was written before it looked further cannot depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from tutelage.chat.dialect import Dialect
from tutelage.chat.kept import require_kept
from tutelage.chat.template import TracedRender
from tutelage.chat.turns import StopFinder, Turn, find_turn
from tutelage.chat.view import template_messages
from tutelage.data.conversation import Conversation, Json, Role
from tutelage.errors import TemplateError


class Moments:
    """The renderings of one conversation at its successive moments. `renderings` counts the template's runs."""

    def __init__(self, record: Conversation, dialect: Dialect, stops: StopFinder) -> None:
        self._record = record
        self._dialect = dialect
        self._stops = stops
        self._prompt_tails: dict[Role, str] = {}
        self._renders: dict[int, TracedRender] = {}
        self._texts: dict[tuple[int, bool, tuple[tuple[str, bool], ...]], str | None] = {}
        self.renderings = 0

    @cached_property
    def _fields(self) -> list[dict[str, Json]]:
        return template_messages(self._record.messages, self._dialect.form)

    def render(self, count: int) -> TracedRender:
        """Return the traced rendering of the first `count` messages."""
        if count not in self._renders:
            dialect, messages = self._dialect, self._record.messages[:count]
            render = dialect.template.trace(
                messages, self._record.tools, form=dialect.form, variables=dialect.variables
            )
            self._renders[count] = require_kept(render, messages)
            self.renderings += 1
        return self._renders[count]

    def text(self, count: int) -> str | None:
        """Return the rendered text of the first `count` messages; None if the template cannot."""
        return self._text(count, False, ())

    def prompt(self, message: int, *switch: tuple[str, bool]) -> str | None:
        """Return what a server renders before the assistant writes `message`; None if the template cannot."""
        return self._text(message, True, switch)

    def _text(self, count: int, add_generation_prompt: bool, switch: tuple[tuple[str, bool], ...]) -> str | None:
        key = count, add_generation_prompt, switch
        if key not in self._texts:
            self._texts[key] = self._rendered_text(*key)
            self.renderings += 1
        return self._texts[key]

    def _rendered_text(
        self, count: int, add_generation_prompt: bool, switch: tuple[tuple[str, bool], ...]
    ) -> str | None:
        try:
            return self._dialect.template.render(
                self._fields[:count],
                self._record.tools,
                add_generation_prompt=add_generation_prompt,
                variables={**self._dialect.variables, **dict(switch)},
            )
        except TemplateError:
            return None

    def turn(self, render: TracedRender, message: int) -> Turn:
        """Return the turn of `message` in `render`, a rendering of the conversation up to this turn or further."""
        return find_turn(render, message, self._prompts_in(render, message), self._dialect, self._stops)

    def is_stable(self, render: TracedRender, count: int, turn: Turn) -> bool:
        """Whether later messages have left the text up to the end of `turn` as it was when the turn was the last."""
        if turn.message == count - 1:
            return True
        if not turn.prompt_matches or turn.stop_id is None:
            return self.turn(self.render(turn.message + 1), turn.message) == turn
        end = turn.stop if turn.stop_is_header else turn.end
        if render.known_before(end) <= turn.message:
            return True
        own = self.text(turn.message + 1)
        return own is not None and own[:end] == render.text[:end]

    def _prompts_in(self, render: TracedRender, message: int) -> Iterator[str | None]:
        yield self._prompt_in(render, message)
        for switch in self._dialect.switches:
            yield self.prompt(message, switch)

    def _prompt_in(self, render: TracedRender, message: int) -> str | None:
        """Return the text before `message`'s turn in `render`, by construction where possible.

        If the template had seen nothing of `message` when it wrote all that stands before the message's region, that
        text is what it writes for the prefix; behind it comes the generation prompt proper. Within a conversation that
        depends on who spoke last, so one rendering per role is enough.
        """
        region = render.region_of(message)
        if region is None or message == 0 or render.known_before(region[0]) >= message:
            return self.prompt(message)
        before, speaker = render.text[: region[0]], self._record.messages[message - 1].role
        if speaker not in self._prompt_tails:
            prompt = self.prompt(message)
            if prompt is None or not prompt.startswith(before):
                return prompt
            self._prompt_tails[speaker] = prompt[len(before) :]
        return before + self._prompt_tails[speaker]
