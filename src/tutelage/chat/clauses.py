"""The clauses of the render contract: each looks at rendered documents and yields what is wrong with them, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage.chat.probes import Shape, synthetic
from tutelage.chat.render import ControlStringError, Inspected, Renderer
from tutelage.chat.rendered import Part
from tutelage.chat.turns import Turn
from tutelage.chat.view import template_messages
from tutelage.config.schema import ControlStrings
from tutelage.data.conversation import Conversation, Role
from tutelage.errors import TemplateError, TutelageError

_SHOWN_CHARACTERS = 40
_TYPED_AT_ONCE = 64


@dataclass(frozen=True)
class Sample:
    """One document to check."""

    record: Conversation
    document: Inspected
    synthetic: bool

    @property
    def where(self) -> str:
        """The row, for messages."""
        return f"synthetic conversation ({self.record.source})" if self.synthetic else self.document.rendered.where

    def turns(self) -> Iterator[tuple[str, Turn, int]]:
        """Yield each trained turn: its name for messages, itself, and the index of its first token."""
        for turn in self.document.draft.turns:
            first = int(np.searchsorted(self.document.encoded.ends, turn.start, side="right"))
            yield f"{self.where}, turn of message {turn.message}", turn, first


def wrong_ids(renderer: Renderer, samples: Sequence[Sample]) -> Iterator[str]:
    """The tokens are those of transformers; where control strings were typed, the text is."""
    for sample in samples:
        ours, theirs = sample.document.draft.render.text, _transformers(renderer, sample, tokenize=False)
        if ours != theirs:
            at = _first_difference(ours, theirs)
            yield f"{sample.where}: character {at} begins {ours[at : at + 20]!r}, transformers has {theirs[at : at + 20]!r}"
            continue
        if sample.document.rendered.typed_controls:
            continue
        ids, expected = (
            sample.document.rendered.ids.tolist(),
            _transformers(renderer, sample, tokenize=True)["input_ids"],
        )
        if ids != expected:
            at = _first_difference(ids, expected)
            yield f"{sample.where}: {_token(renderer, ids, at)}, transformers has {_token(renderer, expected, at)}"


def wrong_prompts(renderer: Renderer, samples: Sequence[Sample]) -> Iterator[str]:
    """What precedes a trained turn is what a server feeds the model then, as text and as tokens.

    In real rows an answer may begin with characters that its tokenizer merges with the header's last one (a line break
    after a line break). That is the row's doing; `merged_turns` counts it.
    """
    for sample in samples:
        for name, turn, first in sample.turns():
            if not turn.prompt_matches:
                yield f"{name}: {_prompt_difference(renderer, sample, turn)}"
            elif sample.synthetic:
                ids, prompts = sample.document.rendered.ids[:first].tolist(), _prompt_ids(renderer, sample, turn)
                if ids not in prompts:
                    prompt = prompts[0] if prompts else []
                    at = _first_difference(ids, prompt)
                    yield (
                        f"{name}: training has {_token(renderer, sample.document.rendered.ids.tolist(), at)} before or at "
                        f"the answer, but the generation prompt has {_token(renderer, prompt, at)}: the tokenizer merges "
                        "the end of the prompt with the beginning of the answer"
                    )


def merged_turns(samples: Sequence[Sample]) -> int:
    """Return how many turns of real rows begin inside a token."""
    return sum(
        first < len(sample.document.encoded.ids) and int(sample.document.encoded.starts[first]) < turn.start
        for sample in samples
        if not sample.synthetic
        for _, turn, first in sample.turns()
    )


def wrong_stops(renderer: Renderer, samples: Sequence[Sample]) -> Iterator[str]:
    """Each turn ends with one token at which generation can stop, and that token is trained.

    Where the header of the next message is what stops a turn, the last turn of a conversation has none; then at least
    one turn of the data must have it.
    """
    turns = [(name, turn, sample) for sample in samples for name, turn, _ in sample.turns()]
    header_stops = _stopped_by_next_header(renderer)
    for name, turn, sample in turns:
        if turn.stop_id is None and not (header_stops and turn.message == sample.document.draft.count - 1):
            yield f"{name}: {_missing_stop(sample, turn)}"
        elif turn.stop_id is not None and not _stop_is_trained(renderer, sample, turn):
            yield f"{name}: its stop token {renderer.tokenizer.decode([turn.stop_id])!r} carries no loss"
    if header_stops and turns and all(turn.stop_id is None for _, turn, sample in turns if not sample.synthetic):
        yield "only the header of a next message stops a turn here, and no conversation goes on after an answer"


def _stopped_by_next_header(renderer: Renderer) -> bool:
    """Whether this template ends a turn with the header of the next one only."""
    try:
        (document,) = renderer.inspect(synthetic(Shape(several_turns=True)))
    except (TutelageError, ValueError):
        return False
    turns = document.draft.turns
    return len(turns) > 1 and turns[-1].stop_id is None and all(turn.stop_id is not None for turn in turns[:-1])


def _stop_is_trained(renderer: Renderer, sample: Sample, turn: Turn) -> bool:
    tokens, rendered = sample.document.encoded, sample.document.rendered
    inside = (tokens.starts >= turn.stop) & (tokens.ends <= max(turn.end, turn.stop + 1)) & (rendered.part == Part.STOP)
    before = np.flatnonzero((tokens.ends <= turn.stop) & (tokens.starts >= turn.start))
    last_part = Part(int(rendered.part[before[-1]])) if len(before) else Part.CONTENT
    return not renderer.options.trains(last_part) or bool(np.any(rendered.weights[inside] != 0))


def _missing_stop(sample: Sample, turn: Turn) -> str:
    text = sample.document.draft.render.text
    said = sample.document.draft.render.sources_of(turn.message)
    tail = text[said[-1].end if said else turn.start :][:_SHOWN_CHARACTERS]
    return (
        f"no token ends it, so the model would not learn to stop: behind the answer stands {tail!r}, none of which is a "
        "single control token of this tokenizer"
    )


def doubled_bos(renderer: Renderer, samples: Sequence[Sample]) -> Iterator[str]:
    """A text begins with one BOS at most."""
    bos = renderer.tokenizer.bos_id
    for sample in samples:
        if bos is not None and sample.document.rendered.ids[:2].tolist() == [bos, bos]:
            yield f"{sample.where}: tokens 0 and 1 are both {_token(renderer, [bos], 0)}"


def wrong_masks(renderer: Renderer, samples: Sequence[Sample]) -> Iterator[str]:
    """Something is trained in each turn, and nothing that is not an assistant's or is a header."""
    for sample in samples:
        rendered = sample.document.rendered
        for index in np.flatnonzero(rendered.weights).tolist():
            message = int(rendered.message[index])
            if message < 0 or rendered.roles[message] != Role.ASSISTANT or rendered.part[index] == Part.HEADER:
                yield f"{sample.where}: {_token(renderer, rendered.ids.tolist(), index)} carries loss"
                break
        trained = set(rendered.message[rendered.weights != 0].tolist())
        for name, turn, _ in sample.turns():
            if turn.message not in trained and renderer.options.train_reasoning and renderer.options.train_tool_calls:
                yield f"{name}: none of its tokens carries loss"


def wrong_generation(renderer: Renderer, samples: Sequence[Sample]) -> Iterator[str]:
    """Where the template marks with `{% generation %}` what the assistant writes, it marks what is trained.

    The marks may leave out the stop token, and take in white space behind it or the header, which nobody has to learn.
    """
    for sample in samples:
        draft, text = sample.document.draft, sample.document.draft.render.text
        for name, turn, _ in sample.turns() if draft.render.generation else ():
            blocks = [(a, b) for a, b in draft.render.generation if a < turn.end and b > turn.start]
            marked = "".join(text[max(a, turn.start) : b] for a, b in blocks)
            if marked.strip() not in (text[turn.start : turn.end].strip(), text[turn.start : turn.stop].strip()):
                trained = _short(text[turn.start : turn.end])
                yield f"{name}: trained is {trained}, but the template marks {_short(marked)}"


def live_controls(renderer: Renderer, shapes: Sequence[Shape]) -> Iterator[str]:
    """Control strings typed by anybody but the assistant stay text, or the row is refused, as asked."""
    texts = list(renderer.tokenizer.control_ids)
    for shape in shapes:
        for first in range(0, len(texts), _TYPED_AT_ONCE):
            typed = " ".join(texts[first : first + _TYPED_AT_ONCE])
            yield from _live_controls(renderer, shape, typed)


def _live_controls(renderer: Renderer, shape: Shape, typed: str) -> Iterator[str]:
    tokenizer = renderer.tokenizer
    try:
        harmless = [document.rendered for document in renderer.inspect(synthetic(shape, typed="words"))]
    except TutelageError:
        return  # this shape of synthetic conversation is not for this template
    try:
        documents = [document.rendered for document in renderer.inspect(synthetic(shape, typed=typed))]
    except ControlStringError:
        return
    except TutelageError as error:
        yield f"synthetic conversation ({shape}): {error.problem}"
        return
    if renderer.options.control_strings is ControlStrings.REFUSE:
        yield f"synthetic conversation ({shape}): control strings were typed and not refused"
    for plain, full in zip(harmless, documents, strict=True):
        known = plain.ids[tokenizer.is_control[plain.ids]].tolist()
        found = full.ids[tokenizer.is_control[full.ids]].tolist()
        if found != known:
            at = _first_difference(found, known)
            yield f"synthetic conversation ({shape}): typed text became {_token(renderer, found, at)}"


def _transformers(renderer: Renderer, sample: Sample, *, tokenize: bool) -> Any:
    dialect, count = renderer.dialect_for(sample.record.tools), sample.document.draft.count
    return renderer.tokenizer.hf.apply_chat_template(
        template_messages(sample.record.messages[:count], dialect.form),
        tools=[dict(tool) for tool in sample.record.tools] or None,
        chat_template=dialect.template.source,
        tokenize=tokenize,
        **renderer.extra_variables,
    )


def _prompt_ids(renderer: Renderer, sample: Sample, turn: Turn) -> list[list[int]]:
    """Return the tokens of the generation prompt, by default and with each of the template's switches."""
    found = []
    for switch in ({}, *({name: value} for name, value in renderer.dialect_for(sample.record.tools).switches)):
        with suppress(TutelageError):
            messages, tools = sample.record.messages[: turn.message], sample.record.tools
            found.append(renderer.prompt_ids(messages, tools, variables=switch))
    return found


def _prompt_difference(renderer: Renderer, sample: Sample, turn: Turn) -> str:
    dialect = renderer.dialect_for(sample.record.tools)
    if dialect.unprompted_header:
        return (
            "the template has no generation prompt, so at inference nothing would write the header "
            f"{dialect.unprompted_header!r} that stands before the answer in training"
        )
    before = sample.document.draft.render.text[: turn.start]
    try:
        prompt = dialect.template.render(
            template_messages(sample.record.messages[: turn.message], dialect.form),
            sample.record.tools,
            add_generation_prompt=True,
            variables=dialect.variables,
        )
    except TemplateError as error:
        return f"there is no generation prompt for this turn: {error.problem}"
    return (
        f"the answer stands behind {before[-_SHOWN_CHARACTERS:]!r}, but the generation prompt ends "
        f"{prompt[-_SHOWN_CHARACTERS:]!r}"
    )


def _first_difference(left: Sequence[object], right: Sequence[object]) -> int:
    shorter = min(len(left), len(right))
    return next((at for at in range(shorter) if left[at] != right[at]), shorter)


def _token(renderer: Renderer, ids: Sequence[int], at: int) -> str:
    if at >= len(ids):
        return f"nothing at token {at}"
    return f"token {at} {renderer.tokenizer.decode([ids[at]])!r} (id {ids[at]})"


def _short(text: str) -> str:
    half = _SHOWN_CHARACTERS // 2
    return repr(text if len(text) <= 2 * half else f"{text[:half]}…{text[-half:]}")
