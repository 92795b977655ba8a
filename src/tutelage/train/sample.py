"""Answers to a few fixed prompts before, during and after training: the change that a loss curve does not show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from tutelage.chat.render import Renderer
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.config.schema import SampleConfig
from tutelage.data.conversation import Conversation, Document, Message, Record, Role


class Completion(Protocol):
    """What a generation gives back."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def text(self) -> str: ...
    @property
    def stopped(self) -> bool: ...


class Generate(Protocol):
    """A function that continues prompts, greedily unless told otherwise; `generate.local.generate` is one."""

    def __call__(
        self,
        model: torch.nn.Module,
        tokenizer: ChatTokenizer,
        prompts: Sequence[Sequence[int]],
        /,
        *,
        stop_ids: Sequence[int],
        max_new_tokens: int,
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


def choose_prompts(config: SampleConfig, records: Sequence[Record], renderer: Renderer) -> list[Prompt]:
    """Return the prompts of the configuration or, without any, those of the first conversations among `records`."""
    system = (Message(Role.SYSTEM, config.system),) if config.system else ()
    conversations: list[tuple[Message, ...]] = [(*system, Message(Role.USER, text)) for text in config.prompts]
    if not conversations:
        chats = [record for record in records if isinstance(record, Conversation)]
        conversations = [_up_to_the_answer(chat.messages) for chat in chats[: config.count]]
    prompts = [Prompt(messages, tuple(renderer.prompt_ids(messages))) for messages in conversations if messages]
    return prompts or _text_prompts(config, records, renderer)


def write_samples(
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    generate: Generate,
    renderer: Renderer,
    *,
    step: int,
    max_new_tokens: int,
) -> list[Sample]:
    """Answer every prompt with the model as it is now."""
    was_training = model.training
    model.eval()
    completions = generate(
        model,
        renderer.tokenizer,
        [prompt.ids for prompt in prompts],
        stop_ids=renderer.stop_ids,
        max_new_tokens=max_new_tokens,
    )
    model.train(was_training)
    return [
        Sample(step, prompt, completion.text, completion.stopped, len(completion.ids))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _up_to_the_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    for index, message in enumerate(messages):
        if message.role is Role.ASSISTANT:
            return messages[:index]
    return messages


def _text_prompts(config: SampleConfig, records: Sequence[Record], renderer: Renderer) -> list[Prompt]:
    """Return the first words of a few documents, for a model that only continues text."""
    openings = [" ".join(r.text.split()[:6]) for r in records if isinstance(r, Document)][: config.count]
    tokenizer = renderer.tokenizer
    start = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    return [Prompt((Message(Role.USER, text),), (*start, *tokenizer.encode_text(text))) for text in openings if text]
