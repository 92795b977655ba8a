"""Where an assistant's turn begins and ends in a rendered conversation.

A turn is what the assistant must produce: it begins where the generation prompt ends (what a server would render of
the messages before it) and ends behind the token at which generation stops. Both are derived from the template's own
run, not from a list of markers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tutelage.chat.dialect import Dialect
from tutelage.chat.rendered import Part
from tutelage.chat.template import TracedRender
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.chat.trace import Field


@dataclass(frozen=True)
class Turn:
    """An assistant's turn as characters of the rendered text: produced [start, end), of which [stop, end) stops it.

    `stop == end` when nothing ends the turn. `stop_is_header`: what stops it is the header of the next message.
    `prompt_matches` is False when the text before `start` is not what the
    template renders as generation prompt.
    """

    message: int
    start: int
    stop: int
    end: int
    stop_id: int | None
    prompt_matches: bool = True
    stop_is_header: bool = False


class StopFinder:
    """Finds the control token that ends a turn."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        tokens = tokenizer.control_tokens.values()
        self._ids = tokenizer.control_ids
        self._eos = {token.text for token in tokens if token.id in tokenizer.eos_ids}
        self._special = {token.text for token in tokens if token.special}
        self._pattern = tokenizer.control_pattern

    def find(
        self, render: TracedRender, last_said: int, region_end: int, *, exact: bool
    ) -> tuple[int, int, int] | None:
        """Return (start, end, id) of the token that ends the turn of `message`, or None.

        Behind the last character that came from the message, and within what the template wrote for it, the first
        token at which generation is known to stop counts; without one the last special token; else the last added one.
        Where the end of what was written for the message is not known (not `exact`), the first one counts throughout.
        """
        found = list(self._pattern.finditer(render.text, last_said, region_end))
        for known in (self._eos, self._special, self._ids.keys()):
            matches = [match for match in found if match.group() in known]
            if matches:
                match = matches[-1] if exact and known is not self._eos else matches[0]
                return match.start(), match.end(), self._ids[match.group()]
        return None

    def directly_behind(self, render: TracedRender, position: int) -> tuple[int, int, int] | None:
        """Return (start, end, id) of the special token that the template wrote at `position`, or None."""
        match = self._pattern.match(render.text, position)
        if match and match.group() in self._special and not _said_at(render, position):
            return match.start(), match.end(), self._ids[match.group()]
        return None

    def outside_control(self, text: str, begin: int, position: int) -> int:
        """Return `position`, or the start of the control token that it would cut in two."""
        for match in self._pattern.finditer(text, begin):
            if match.end() > position:
                return min(position, match.start())
        return position


def _said_at(render: TracedRender, position: int) -> bool:
    return any(span.start <= position < span.end and span.source.field is not Field.ROLE for span in render.sources)


def find_turn(
    render: TracedRender, message: int, prompts: Iterable[str | None], dialect: Dialect, stops: StopFinder
) -> Turn:
    """Return the turn of assistant `message`.

    `prompts`: what the template renders of the messages before it, generation prompt included (None if it cannot), by
    default and then with each of its switches; no more are asked for than it takes to find the one that was used.
    """
    prompt = next((prompt for prompt in prompts if prompt is not None and render.text.startswith(prompt)), None)
    said = render.sources_of(message)
    exact = render.region_of(message)
    region = exact or _region_by_sources(render, message)
    first_said = said[0].start if said else region[0]
    last_said = said[-1].end if said else region[1]
    start, matches = _start(render.text, region[0], first_said, prompt, dialect, stops)
    found = stops.find(render, max(last_said, start), region[1], exact=exact is not None)
    by_header = False
    if found is None:  # written behind the loop, or with the next message: to end this one, or to begin that one
        found = stops.directly_behind(render, region[1])
        by_header = dialect.answers_end_bare and render.owner_at(region[1]) >= 0
    if found is None:
        end = max(last_said, start, start + len(render.text[start : region[1]].rstrip()))
        return Turn(message, start, end, end, None, matches)
    return Turn(message, start, *found, prompt_matches=matches, stop_is_header=by_header)


def _start(
    text: str, region_start: int, first_said: int, prompt: str | None, dialect: Dialect, stops: StopFinder
) -> tuple[int, bool]:
    """Return where the assistant's own words begin, and whether what precedes them is the generation prompt.

    Where it is not (the contract will refuse the template), the header is as much of the generation prompt as the
    template wrote, and never reaches into what the message says. A header that the template writes though the prompt of
    this moment does not hold it is no word of the assistant's either.
    """
    matches = prompt is not None
    if prompt is not None:
        start = len(prompt)
    else:
        start = region_start + _common(text, region_start, dialect.prompt_tail)
        start = stops.outside_control(text, region_start, start)
    for header in (dialect.unprompted_header, dialect.prompt_tail):
        if header and start <= region_start and text.startswith(header, region_start):
            start, matches = region_start + len(header), False
    return (start, matches) if matches else (min(start, first_said), False)


def _common(text: str, start: int, tail: str) -> int:
    """Return how many characters of `tail` stand in the text from `start`."""
    longest = min(len(tail), len(text) - start)
    return next((at for at in range(longest) if text[start + at] != tail[at]), longest)


def _region_by_sources(render: TracedRender, message: int) -> tuple[int, int]:
    """Return the characters between what other messages say, where the template has no loop over messages."""
    own = [span for span in render.sources if span.source.message == message]
    if not own:
        return len(render.text), len(render.text)
    later = [span.start for span in render.sources if span.start >= own[-1].end and span.source.message != message]
    return own[0].start, min(later, default=len(render.text))


def parts_of_turn(render: TracedRender, turn: Turn) -> list[tuple[int, int, Part]]:
    """Divide [turn.start, turn.end) into parts.

    The template's own words in a turn belong with what they frame: those between two fields go with a tool call that
    follows, else with reasoning that precedes (its closing mark) or follows (its opening mark), else with a tool call
    that precedes, else they are content.
    """
    said = [span for span in render.sources_of(turn.message) if span.end >= turn.start and span.start <= turn.stop]
    parts: list[tuple[int, int, Part]] = []
    at, before = turn.start, None
    for span in said:
        part = _PART[span.source.field]
        if span.start > at:
            parts.append((at, span.start, _between(before, part)))
        parts.append((max(at, span.start), span.end, part))
        at, before = max(at, span.end), part
    if turn.stop > at:
        parts.append((at, turn.stop, _between(before, None)))
    parts.append((turn.stop, turn.end, Part.STOP))
    return [part for part in parts if part[1] > part[0]]


_PART = {Field.CONTENT: Part.CONTENT, Field.REASONING: Part.REASONING, Field.TOOL_CALL: Part.TOOL_CALL}


def _between(before: Part | None, after: Part | None) -> Part:
    if after is Part.TOOL_CALL:
        return Part.TOOL_CALL
    if Part.REASONING in (before, after):
        return Part.REASONING
    return Part.TOOL_CALL if before is Part.TOOL_CALL else Part.CONTENT
