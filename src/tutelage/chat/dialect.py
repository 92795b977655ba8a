"""What there is to know of a template before it meets data: how it wants its messages, and how it opens a turn.

Found out by rendering two small conversations, so that nothing about a model family has to be written down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.chat.probes import Shape, synthetic
from tutelage.chat.template import Template, TracedRender
from tutelage.chat.trace import Field
from tutelage.chat.view import MessageForm, template_messages
from tutelage.data.conversation import Json, Message, Role
from tutelage.errors import TemplateError

_QUESTION = Message(Role.USER, "Question")
_ANSWER = Message(Role.ASSISTANT, "Reply")


@dataclass(frozen=True)
class Dialect:
    """A template, the form of messages it understands, and how it opens an assistant's turn.

    `prompt_tail` is the generation prompt proper: what asking for one adds to the text.
    `unprompted_header` is what the template writes before an answer although its generation prompt does not hold it:
    words that are not the assistant's, yet that no server would write for it. Empty for a sound template.
    `switches` are settings of the template's own variables, such as `enable_thinking=False`, that change the generation
    prompt: a server may use any of them, so a turn may stand behind any of these prompts.
    `answers_end_bare`: nothing is written behind an answer, so that only the header of a next message can stop it.
    """

    template: Template
    variables: Mapping[str, Json]
    form: MessageForm
    prompt_tail: str
    unprompted_header: str
    answers_end_bare: bool = False
    switches: tuple[tuple[str, bool], ...] = ()


def learn_dialect(template: Template, variables: Mapping[str, Json]) -> Dialect:
    """Render small conversations to find out how `template` wants to be used."""
    form = MessageForm(
        content_parts=not _speaks(template, variables, MessageForm())
        and _speaks(template, variables, MessageForm(True)),
        argument_text=_wants_argument_text(template, variables),
    )
    try:
        bare = template.render(template_messages([_QUESTION], form), variables=variables)
        prompt = template.render(template_messages([_QUESTION], form), add_generation_prompt=True, variables=variables)
        answered = template.trace([_QUESTION, _ANSWER], form=form, variables=variables)
    except TemplateError:
        return Dialect(template, variables, form, "", "")
    tail = prompt[len(bare) :] if prompt.startswith(bare) else ""
    said = answered.sources_of(1)
    bare_end = bool(said) and not answered.text[said[-1].end :].strip()
    header = _unprompted_header(answered, prompt)
    return Dialect(template, variables, form, tail, header, bare_end, _switches(template, variables, form, prompt))


def _switches(
    template: Template, variables: Mapping[str, Json], form: MessageForm, prompt: str
) -> tuple[tuple[str, bool], ...]:
    """Return the settings of one variable of the template that change its generation prompt."""
    found = []
    for name in sorted(template.settings - variables.keys()):
        for value in (True, False):
            try:
                changed = template.render(
                    template_messages([_QUESTION], form),
                    add_generation_prompt=True,
                    variables={**variables, name: value},
                )
            except TemplateError:
                continue
            if changed != prompt:
                found.append((name, value))
    return tuple(found)


def _unprompted_header(answered: TracedRender, prompt: str) -> str:
    region, said = answered.region_of(1), answered.sources_of(1)
    if region is None or not said or answered.text[: region[0]] != prompt:
        return ""
    header = answered.text[region[0] : said[0].start]
    return header if header.strip() else ""


def _speaks(template: Template, variables: Mapping[str, Json], form: MessageForm) -> bool:
    """Whether both messages of a plain exchange come through in this form."""
    try:
        render = template.trace([_QUESTION, _ANSWER], form=form, variables=variables)
    except TemplateError:
        return False
    heard = {
        span.source.message for span in render.sources if span.source.field is Field.CONTENT and span.end > span.start
    }
    return heard == {0, 1}


def _wants_argument_text(template: Template, variables: Mapping[str, Json]) -> bool:
    """Whether a conversation with a tool call can be rendered only with the call's arguments as JSON text."""

    call = synthetic(Shape(tools=True))

    def renders(form: MessageForm) -> bool:
        try:
            template.trace(call.messages, call.tools, form=form, variables=variables)
        except TemplateError:
            return False
        return True

    return not renders(MessageForm()) and renders(MessageForm(argument_text=True))
