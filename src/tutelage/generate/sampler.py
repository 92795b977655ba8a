"""What is asked of a model and what it says: one request, one reply, and the two things that can answer.

A request is what goes to the model in the end (model, messages, settings, seed), and its key is the hash of exactly that, so that a
question with another system prompt, or to another server, is another question. A reply has the layout of an OpenAI-compatible
chat completion, whoever gives it, and is read in one place, so that what was stored can be read again without asking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from tutelage.data.conversation import Json, Message, content_hash

NANODOLLARS = 1_000_000_000
"""In a dollar. Money is counted in whole numbers, so that sums are exact."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: temperature 0 is greedy; `top_p` keeps the likeliest tokens that make up that probability."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for settings that mean nothing."""
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"max_new_tokens must be positive, temperature at least 0, top_p in (0, 1]; got {self}")


@dataclass(frozen=True)
class Request:
    """One question: `body` is what is sent to `endpoint`, word for word."""

    endpoint: str
    body: Mapping[str, Json]

    @cached_property
    def key(self) -> str:
        """Hash of endpoint and body."""
        return content_hash([self.endpoint, dict(self.body)])


@dataclass(frozen=True)
class Reply:
    """What a model said. `model` is its name as whoever answered gives it; `finish` is `stop`, or `length` where the limit cut it.

    `log_probability` is that of the whole answer, in nats, under the distribution that `body` asked for; None where nobody told.
    Token counts are None where nobody told.
    """

    text: str
    finish: str
    model: str
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    log_probability: float | None = None


def unusable(reply: Reply) -> str | None:
    """Return why nothing can be made of a reply, or None."""
    if not reply.text.strip():
        return "the answer is empty"
    return "the answer was cut at the longest allowed" if reply.finish == "length" else None


class ReplyError(ValueError):
    """A reply that does not say what a reply must say."""


def read_reply(raw: Json) -> Reply:
    """Return what a chat completion says.

    Raises: ReplyError when it has no answer.
    """
    if not isinstance(raw, Mapping):
        raise ReplyError("the reply is no JSON object")
    choices = raw.get("choices")
    if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
        raise ReplyError("the reply has no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, Mapping) else None
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str):
        raise ReplyError("the reply has no text")
    usage = raw.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    return Reply(
        text=text,
        finish=str(choice.get("finish_reason") or "stop"),
        model=str(raw.get("model") or ""),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        answer_tokens=_count(usage.get("completion_tokens")),
        log_probability=_log_probability(choice),
    )


def _count(value: Json) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _log_probability(choice: Mapping[str, Json]) -> float | None:
    """Return that of the whole answer, or the sum over its tokens; None when any is missing."""
    whole, tokens = choice.get("log_probability"), choice.get("logprobs")
    if isinstance(whole, float):
        return whole
    tokens = tokens.get("content") if isinstance(tokens, Mapping) else None
    if not isinstance(tokens, Sequence) or not tokens:
        return None
    found = [token.get("logprob") if isinstance(token, Mapping) else None for token in tokens]
    known = [float(one) for one in found if isinstance(one, int | float)]
    return sum(known) if len(known) == len(found) else None


class Books(Protocol):
    """Where a sampler writes down what it does. Each call is on the disk when it returns, or when the block of `together` ends."""

    def together(self) -> AbstractContextManager[None]:
        """Write everything inside the block to the disk at once."""

    def sent(self, request: Request) -> None:
        """Book that `request` is about to be sent, and what it may cost at most.

        Raises: CapReachedError when there is no money left for it; it must then not be sent.
        """

    def received(self, request: Request, raw: Json) -> bool:
        """Book a reply; return whether the request has ended: it has not when the reply cannot be read and there are attempts left."""

    def returned(self, request: Request, reason: str, *, charged: bool, counts: bool = True) -> bool:
        """Book that an attempt brought no reply, and whether it may have cost something; return whether to ask again.

        What `counts` is one of the few attempts that a request has; being turned away by a busy server does not.
        """

    def refused(self, request: Request, reason: str) -> None:
        """Book that `request` will never be answered."""


class Sampler(Protocol):
    """Something that answers requests."""

    def request(self, messages: Sequence[Message], *, seed: int) -> Request:
        """Return the request that asks for one answer to `messages`; another seed asks for another answer."""

    def most_cost(self, request: Request) -> int:
        """Return what `request` may cost at most, in billionths of a dollar."""

    def cost(self, request: Request, reply: Reply) -> int:
        """Return what `reply` cost, in billionths of a dollar: the most it may have been where nobody told."""

    def run(self, requests: Sequence[Request], books: Books) -> None:
        """Answer every request, and book each as it comes."""
