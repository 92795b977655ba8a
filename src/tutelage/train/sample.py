"""Answers to a few fixed prompts before, during and after training: the change that a loss curve does not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tutelage.chat.render import Renderer
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.config.schema import Retrieve, SampleConfig
from tutelage.data.conversation import Conversation, Document, Message, Record, Role
from tutelage.data.retrieve import open_retriever
from tutelage.train.stop import Halt, never

OPENING_WORDS = 6  # of a text that a model without a chat template is asked to continue


class Completion(Protocol):
    """What a generation gives back."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def text(self) -> str: ...
    @property
    def stopped(self) -> bool: ...


class Generate(Protocol):
    """A function that continues prompts, greedily unless told otherwise; `generate.local.generate` is one.

    It asks `halt` before every token, and where that says so leaves off with the tokens that there are.
    """

    def __call__(
        self,
        model: torch.nn.Module,
        tokenizer: ChatTokenizer,
        prompts: Sequence[Sequence[int]],
        /,
        *,
        stop_ids: Sequence[int],
        max_new_tokens: int,
        halt: Halt,
    ) -> Sequence[Completion]: ...


@dataclass(frozen=True)
class Prompt:
    """One fixed prompt: its messages for people, its token ids for the model."""

    messages: tuple[Message, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One answer at one step; step 0 is before training."""

    step: int
    prompt: Prompt
    answer: str
    stopped: bool
    num_tokens: int

    def to_json(self) -> dict[str, object]:
        """Return the line of `samples.jsonl`."""
        return {
            "step": self.step,
            "prompt": [{"role": m.role.value, "content": m.content} for m in self.prompt.messages],
            "answer": self.answer,
            "stopped": self.stopped,
            "num_tokens": self.num_tokens,
        }


def choose_prompts(
    config: SampleConfig,
    records: Sequence[Record],
    renderer: Renderer,
    *,
    context_tokens: int,
    retrieve: Retrieve = Retrieve(),
) -> list[Prompt]:
    """Return the prompts of the configuration or, without any, those of the first `records` that leave room to answer.

    The former get the passages that `retrieve` asks for; records have theirs.
    Units: `context_tokens` is the longest sequence, prompt and answer together, that the model is to see.
    """
    if config.prompts:
        system = (Message(Role.SYSTEM, config.system),) if config.system else ()
        asked = [(*system, Message(Role.USER, text)) for text in config.prompts]
        retriever = open_retriever(retrieve)
        if retriever is not None:
            asked = [retriever.for_use(messages) for messages in asked]
        return [_prompt(messages, renderer) for messages in asked]
    fitting: list[Prompt] = []
    for record in records:
        if len(fitting) == config.count:
            break
        prompt = _prompt_of(record, renderer)
        if prompt is not None and len(prompt.ids) + config.max_new_tokens <= context_tokens:
            fitting.append(prompt)
    return fitting


def of_one_pass(prompts: Sequence[Prompt], max_new_tokens: int, tokens: int) -> Iterator[Sequence[Prompt]]:
    """Yield the prompts in groups, in order, whose rows with their answers take at most so many tokens; a longer one alone."""
    start = 0
    for end in range(1, len(prompts) + 1):
        longest = max((len(prompt.ids) for prompt in prompts[start : end + 1]), default=0)
        if end == len(prompts) or (end + 1 - start) * (longest + max_new_tokens) > tokens:
            yield prompts[start:end]
            start = end


def write_samples(
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    generate: Generate,
    renderer: Renderer,
    *,
    step: int,
    max_new_tokens: int,
    halt: Halt = never,
) -> list[Sample]:
    """Answer every prompt with the model as it is now; once `halt` says so, the answers are as short as they are."""
    was_training = model.training
    model.eval()
    completions = generate(
        model,
        renderer.tokenizer,
        [prompt.ids for prompt in prompts],
        stop_ids=renderer.stop_ids,
        max_new_tokens=max_new_tokens,
        halt=halt,
    )
    model.train(was_training)
    return [
        Sample(step, prompt, completion.text, completion.stopped, len(completion.ids))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _prompt_of(record: Record, renderer: Renderer) -> Prompt | None:
    """Return what the first answer of a conversation answers, or the first words of a text."""
    if isinstance(record, Conversation):
        first = next((i for i, m in enumerate(record.messages) if m.role is Role.ASSISTANT), 0)
        return _prompt(record.messages[:first], renderer, record.tools) if first else None
    if not isinstance(record, Document):
        return None
    text = " ".join(record.text.split()[:OPENING_WORDS])
    before, _ = renderer.tokenizer.text_ends
    return Prompt((Message(Role.USER, text),), (*before, *renderer.tokenizer.encode_text(text)))


def _prompt(messages: tuple[Message, ...], renderer: Renderer, tools: Sequence[Mapping[str, object]] = ()) -> Prompt:
    return Prompt(messages, tuple(renderer.prompt_ids(messages, tools)))
