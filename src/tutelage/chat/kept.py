"""Whether everything that was said is in the text: no template may leave out a message unseen.

Many templates drop what they were not written for: tool results, tool calls, a system message in the wrong place. A
model trained on such text learns answers to things it was never shown, so the conversation is refused, with the reason.
Reasoning is another matter: that templates leave it out of earlier turns is how they are meant to work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tutelage.chat.template import SourceSpan, TracedRender
from tutelage.chat.trace import Field, Source
from tutelage.data.conversation import Message
from tutelage.errors import TemplateError


def require_kept(render: TracedRender, messages: Sequence[Message]) -> TracedRender:
    """Return `render`, with the places of contents added whose trace a rare operation of the template lost.

    Raises: TemplateError when the content or the tool calls of a message are not in the text.
    """
    heard = {(span.source.message, span.source.field) for span in render.sources if span.end > span.start}
    found: list[SourceSpan] = []
    for number, message in enumerate(messages):
        if message.tool_calls and (number, Field.TOOL_CALL) not in heard:
            raise _left_out(number, message, "the tool calls")
        said = message.content.strip()
        if not said or heard & {(number, Field.CONTENT), (number, Field.REASONING)}:
            continue
        start, end = render.region_of(number) or (0, len(render.text))
        at = render.text.find(said, start, end)
        if at < 0:
            raise _left_out(number, message, "the content")
        found.append(SourceSpan(at, at + len(said), Source(number, Field.CONTENT)))
    if not found:
        return render
    return replace(render, sources=tuple(sorted((*render.sources, *found), key=lambda span: (span.start, span.end))))


def _left_out(number: int, message: Message, what: str) -> TemplateError:
    return TemplateError(
        f"the chat template leaves out {what} of message {number} ({message.role})",
        mend="use a template that shows it (model.template), or take such conversations out",
    )
