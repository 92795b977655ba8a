"""A conversation with a model: what has been said so far, and the next answer, piece by piece."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from torch import nn

from tutelage.chat.render import Renderer
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.data.conversation import Message, Role
from tutelage.data.retrieve import Retriever
from tutelage.generate.local import stream
from tutelage.generate.sampler import Sampling


class Talk:
    """A conversation through a chat template. What is typed stays text: control strings in it have no effect."""

    remembers = True

    def __init__(
        self,
        model: nn.Module,
        renderer: Renderer,
        sampling: Sampling,
        *,
        system: str | None = None,
        retriever: Retriever | None = None,
    ) -> None:
        self._model = model
        self._renderer = renderer
        self._sampling = sampling
        self._retriever = retriever
        self.system = system
        self.sources: tuple[str, ...] = ()
        self._turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """Everything said so far, the system message first."""
        system = [Message(Role.SYSTEM, self.system)] if self.system else []
        return system + self._turns

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self._turns = []

    def answer(self, text: str) -> Generator[str, None, None]:
        """Say `text` and yield the answer in pieces.

        Both are remembered once the answer has ended or the iterator is closed; an answer cut short is remembered as
        far as it came. When the question cannot be asked (a template that refuses, a full context), nothing is.
        With a retriever the model sees its passages before each question, and `sources` says where those of this one stand.
        """
        question = Message(Role.USER, text)
        asked: Sequence[Message] = [*self.messages, question]
        if self._retriever is not None:
            *_, last = self._retriever.turns(asked, is_row=False)
            self.sources = tuple(passage.where for passage in last.passages)
            asked = self._retriever.for_use(asked)
        prompt = self._renderer.prompt_ids(asked)
        pieces: list[str] = []
        answers = stream(
            self._model,
            self._renderer.tokenizer,
            prompt,
            stop_ids=self._renderer.stop_ids,
            sampling=self._sampling,
        )
        try:
            for piece in answers:
                pieces.append(piece)
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            self._remember(question, pieces)
            raise
        self._remember(question, pieces)

    def as_row(self) -> dict[str, Any]:
        """Return the conversation as a row of training data in the messages format."""
        return {"messages": [{"role": str(m.role), "content": m.content} for m in self.messages]}

    def _remember(self, question: Message, pieces: list[str]) -> None:
        self._turns += [question, Message(Role.ASSISTANT, "".join(pieces))]


class Continuation:
    """A base model without a chat template: it continues each text, and knows nothing of the one before."""

    remembers = False

    def __init__(self, model: nn.Module, tokenizer: ChatTokenizer, sampling: Sampling) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._sampling = sampling

    def answer(self, text: str) -> Generator[str, None, None]:
        """Continue `text`, piece by piece."""
        before, _ = self._tokenizer.text_ends
        return stream(
            self._model,
            self._tokenizer,
            [*before, *self._tokenizer.encode_text(text)],
            stop_ids=self._tokenizer.eos_ids,
            sampling=self._sampling,
        )
