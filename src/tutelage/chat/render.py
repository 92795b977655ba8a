"""From records to tokens: each with the message and part it came from, and its loss weight.

A conversation is rendered once by the model's own template and tokenised once. Its assistant turns are trained in that
one document if the template is stable: if at each turn the text so far is what a server would have rendered then.
Where later messages change earlier ones (templates that drop old reasoning, or move the system message), the
conversation becomes several documents, each the text of a turn's own moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from tutelage.chat.attribute import label_tokens
from tutelage.chat.dialect import Dialect, learn_dialect
from tutelage.chat.encode import encode_guarded, guards_of, typed_controls
from tutelage.chat.moments import Moments
from tutelage.chat.rendered import Part, Rendered
from tutelage.chat.template import NAMED_TEMPLATES, Template, TracedRender, plain_render
from tutelage.chat.tokenizer import ChatTokenizer, Encoded
from tutelage.chat.turns import StopFinder, Turn
from tutelage.config.schema import ControlStrings, DataConfig, TrainOn
from tutelage.data.conversation import Conversation, Document, Json, Message, Role
from tutelage.data.reasons import Reason
from tutelage.errors import ConfigError, DataError, TemplateError, TutelageError

REFUSED_BY_TEMPLATE = "refused by the chat template"
_BATCH_RECORDS = 512


class ControlStringError(DataError):
    """Control strings in message text, where `data.control_strings` is `refuse`."""


@dataclass(frozen=True)
class RenderOptions:
    """What of a conversation is trained, and what becomes of control strings in messages."""

    train_on: TrainOn = TrainOn.ASSISTANT
    train_reasoning: bool = True
    train_tool_calls: bool = True
    control_strings: ControlStrings = ControlStrings.TEXT

    @classmethod
    def from_config(cls, config: DataConfig) -> RenderOptions:
        """Take the options from the `data` section of a configuration."""
        return cls(config.train_on, config.train_reasoning, config.train_tool_calls, config.control_strings)

    def trains(self, part: Part) -> bool:
        """Whether this part of a trained turn carries loss."""
        if part is Part.REASONING:
            return self.train_reasoning
        return self.train_tool_calls if part is Part.TOOL_CALL else True


@dataclass(frozen=True)
class RenderFailure:
    """A record that cannot be rendered: the reason for the ledger, and what went wrong."""

    record: Conversation | Document
    cause: str
    problem: TutelageError

    @property
    def error(self) -> TutelageError:
        """The problem as an error that names the row."""
        return type(self.problem)(f"{_where(self.record)}: {self.problem.problem}", mend=self.problem.mend)


@dataclass(frozen=True)
class Draft:
    """One document before tokenisation: the first `count` messages of a record; `turns` are to be trained in it."""

    record: Conversation | Document
    render: TracedRender
    turns: tuple[Turn, ...]
    count: int
    stage: int = 0


@dataclass(frozen=True, eq=False)
class Inspected:
    """A rendered document with its draft and the character offsets of its tokens."""

    draft: Draft
    encoded: Encoded
    rendered: Rendered


class Renderer:
    """Renders records for one tokenizer, template and set of options.

    `template` None takes the tokenizer's own. A tokenizer without one renders plain documents only.
    `variables` reach the template beside the messages, as keyword arguments of `apply_chat_template` do.

    Raises: ConfigError for a variable that the template does not read.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        template: Template | None = None,
        options: RenderOptions = RenderOptions(),
        *,
        variables: Mapping[str, Json] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.extra_variables = dict(variables or {})
        self.variables = {**tokenizer.special_variables, **(variables or {})}
        self.template = template or _own_template(tokenizer, tools=False)
        self.given_template = template
        self._stops = StopFinder(tokenizer)
        if self.extra_variables:
            self._refuse_unread()

    def _refuse_unread(self) -> None:
        templates = (
            (self.template, _own_template(self.tokenizer, tools=True))
            if self.given_template is None
            else (self.template,)
        )
        read = frozenset[str]().union(*(template.settings for template in templates if template is not None))
        read -= self.tokenizer.special_variables.keys()
        for name in self.extra_variables:
            if name not in read:
                raise ConfigError(
                    f"the chat template does not read the variable {name!r}",
                    mend=f"it reads: {', '.join(sorted(read))}" if read else "it reads none: take the variable away",
                )

    def dialect_for(self, tools: Sequence[Mapping[str, Json]] = ()) -> Dialect:
        """Return the template for conversations with these tools on offer, and how to use it.

        Raises: TemplateError when there is no template.
        """
        return self._tool_dialect if tools else self._dialect

    @cached_property
    def _dialect(self) -> Dialect:
        if self.template is None:
            raise TemplateError(
                "the model has no chat template",
                mend=f"choose one with model.template (`--template` of show and check): {', '.join(NAMED_TEMPLATES)}",
            )
        return learn_dialect(self.template, self.variables)

    @cached_property
    def _tool_dialect(self) -> Dialect:
        own = None if self.given_template is not None else _own_template(self.tokenizer, tools=True)
        return (
            self._dialect
            if own is None or own.source == self._dialect.template.source
            else learn_dialect(own, self.variables)
        )

    def render(self, record: Conversation | Document) -> list[Rendered]:
        """Return the documents of one record: one, or several where the template rewrites history.

        Raises: TemplateError or DataError naming the record.
        """
        (result,) = self.render_many([record])
        if isinstance(result, RenderFailure):
            raise result.error
        return result

    def render_many(self, records: Iterable[Conversation | Document]) -> Iterator[list[Rendered] | RenderFailure]:
        """Render records in order, tokenising them in batches."""
        records = iter(records)
        while batch := list(islice(records, _BATCH_RECORDS)):
            drafted = [self._draft_or_failure(record) for record in batch]
            drafts = [draft for result in drafted if not isinstance(result, RenderFailure) for draft in result]
            encoded = iter(self.tokenizer.encode([draft.render.text for draft in drafts]))
            for result in drafted:
                yield result if isinstance(result, RenderFailure) else self._finish_all(result, encoded)

    def inspect(self, record: Conversation) -> list[Inspected]:
        """Return the documents of one conversation with what they were made from."""
        drafts = self.drafts(record)
        encoded = self.tokenizer.encode([draft.render.text for draft in drafts])
        guarded = [self._guard(record, draft.render, tokens) for draft, tokens in zip(drafts, encoded, strict=True)]
        return [
            Inspected(draft, tokens, self._label(draft, tokens, typed))
            for draft, (tokens, typed) in zip(drafts, guarded, strict=True)
        ]

    def _finish_all(self, drafts: list[Draft], encoded: Iterator[Encoded]) -> list[Rendered] | RenderFailure:
        tokens = list(islice(encoded, len(drafts)))
        try:
            return [self._finish(draft, token) for draft, token in zip(drafts, tokens, strict=True)]
        except TutelageError as error:
            return _failure(drafts[0].record, error)

    def _draft_or_failure(self, record: Conversation | Document) -> list[Draft] | RenderFailure:
        try:
            return self.drafts(record)
        except TutelageError as error:
            return _failure(record, error)

    def drafts(self, record: Conversation | Document) -> list[Draft]:
        """Return the documents of a record as traced text, with the turns to train in each."""
        if isinstance(record, Document):
            return [Draft(record, plain_render(record.text), (), 0)]
        messages = record.messages
        moments = Moments(record, self.dialect_for(record.tools), self._stops)
        left, count = self.trained_messages(record), len(messages)
        drafts: list[Draft] = []
        while left or not drafts:
            render = moments.render(count)
            turns = [moments.turn(render, message) for message in left]
            stable = [turn for turn in turns if moments.is_stable(render, count, turn)]
            if len(stable) < len(left) and count > left[-1] + 1:
                count = left[-1] + 1  # the text has to be that of a turn's own moment
                continue
            stage = 0 if len(stable) == len(left) and not drafts else _assistant_number(messages, left[-1])
            drafts.append(Draft(record, render, tuple(stable), count, stage))
            left = [message for message in left if message not in {turn.message for turn in stable}]
            count = left[-1] + 1 if left else count
        return drafts[::-1]

    def trained_messages(self, record: Conversation) -> list[int]:
        """Return the numbers of the messages that carry loss: by their own flag, else by the policy."""
        assistants = [i for i, message in enumerate(record.messages) if message.role is Role.ASSISTANT]
        for number, message in enumerate(record.messages):
            if message.train and message.role is not Role.ASSISTANT:
                raise DataError(
                    f"message {number} ({message.role}) asks to be trained",
                    mend="only assistant messages can be; remove its `train` flag",
                )
        policy = set(assistants if self.options.train_on is TrainOn.ASSISTANT else assistants[-1:])
        chosen = []
        for number in assistants:
            message = record.messages[number]
            if message.weight and (number in policy if message.train is None else message.train):
                chosen.append(number)
        return chosen

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Json]] = (),
        *,
        variables: Mapping[str, Json] | None = None,
    ) -> list[int]:
        """Return what a server feeds the model before it answers: the messages and the generation prompt.

        `variables` are further ones for the template, such as `enable_thinking`.
        """
        dialect = self.dialect_for(tools)
        render = dialect.template.trace(
            messages,
            tools,
            form=dialect.form,
            add_generation_prompt=True,
            variables={**dialect.variables, **(variables or {})},
        )
        (encoded,) = self.tokenizer.encode([render.text])
        tokens, _ = self._guard(Conversation(tuple(messages), tuple(tools)), render, encoded)
        return [int(number) for number in tokens.ids]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id at which generation stops: the configured ones, and those that end this template's turns."""
        return tuple(dict.fromkeys((*self.tokenizer.eos_ids, *self._template_stop_ids)))

    @cached_property
    def _template_stop_ids(self) -> tuple[int, ...]:
        """The stop token of a one-question conversation in this template."""
        messages = (Message(Role.USER, "Hello"), Message(Role.ASSISTANT, "Hi"))
        try:
            (draft,) = self.drafts(Conversation(messages))
        except TutelageError:
            return ()
        return tuple(turn.stop_id for turn in draft.turns if turn.stop_id is not None)

    def _guard(self, record: Conversation, render: TracedRender, encoded: Encoded) -> tuple[Encoded, int]:
        """Take the control out of control strings that were typed into messages, and count them; or refuse them."""
        assistants = frozenset(i for i, message in enumerate(record.messages) if message.role is Role.ASSISTANT)
        guards = guards_of(render, assistants)
        typed = typed_controls(self.tokenizer, render.text, encoded, guards)
        if typed and self.options.control_strings is ControlStrings.REFUSE:
            texts = ", ".join(sorted({repr(control.text) for control in typed.values()}))
            raise ControlStringError(f"control strings in message text: {texts}", mend="set data.control_strings=text")
        return encode_guarded(self.tokenizer, render.text, encoded, guards, typed), len(typed)

    def _finish(self, draft: Draft, encoded: Encoded) -> Rendered:
        if isinstance(draft.record, Document):
            return self._finish_document(draft.record, encoded)
        return self._label(draft, *self._guard(draft.record, draft.render, encoded))

    def _label(self, draft: Draft, encoded: Encoded, typed: int) -> Rendered:
        """Return the tokens of a conversation with their labels."""
        messages = draft.record.messages[: draft.count] if isinstance(draft.record, Conversation) else ()
        turns = [(turn, messages[turn.message].weight) for turn in draft.turns]
        labels = label_tokens(draft.render, turns, encoded, self.options)
        return Rendered(
            ids=encoded.ids,
            weights=labels.weights,
            message=labels.message,
            part=labels.part,
            roles=tuple(message.role.value for message in messages),
            record_id=draft.record.id,
            source=draft.record.source,
            where=_where(draft.record),
            stage=draft.stage,
            typed_controls=typed,
        )

    def _finish_document(self, document: Document, encoded: Encoded) -> Rendered:
        """Plain text: begun as the tokenizer begins a text, ended by its end token, all but the first token trained.

        `encoded` holds its tokens. Only a text in which a control string stands is encoded again, without controls.
        """
        before, after = self.tokenizer.text_ends
        eos = self.tokenizer.eos_id
        end = after if after or eos is None else (eos,)
        if self.tokenizer.has_added_tokens(encoded):
            encoded = self.tokenizer.encode_inert(document.text, after_control=False)
        body = encoded.ids
        ids = np.concatenate([np.array(before, dtype=np.int32), body, np.array(end, dtype=np.int32)])
        weights = np.ones(len(ids), dtype=np.float32)
        weights[:1] = 0
        part = np.full(len(ids), Part.CONTENT, dtype=np.int8)
        part[: len(before)], part[len(ids) - len(end) :] = Part.HEADER, Part.STOP
        return Rendered(
            ids=ids,
            weights=weights,
            message=np.full(len(ids), -1, dtype=np.int32),
            part=part,
            roles=(),
            record_id=document.id,
            source=document.source,
            where=_where(document),
        )


def _own_template(tokenizer: ChatTokenizer, *, tools: bool) -> Template | None:
    source = tokenizer.template_for(tools=tools)
    return None if source is None else Template(source, name="the model's chat template")


def _assistant_number(messages: Sequence[Message], last: int) -> int:
    """Return which assistant turn, counted from 1, message `last` is."""
    return sum(message.role is Role.ASSISTANT for message in messages[: last + 1])


def _where(record: Conversation | Document) -> str:
    return str(record.origin) if record.origin else record.source or record.id


def _failure(record: Conversation | Document, error: TutelageError) -> RenderFailure:
    reason = Reason.CONTROL_STRING if isinstance(error, ControlStringError) else REFUSED_BY_TEMPLATE
    return RenderFailure(record, reason, error)
