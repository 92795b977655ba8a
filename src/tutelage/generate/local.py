"""Answers from a model in this process: batched, with a key-value cache, greedy or sampled.

An answer depends on its prompt, its number and the seed, not on which other prompts are asked with it: rows are padded on
the left under a mask with positions counted from the prompt's own start, and a sampled token is chosen by a number that is
a hash of (seed, prompt number, position).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tutelage.data.order import hash64_array
from tutelage.errors import ModelError
from tutelage.generate.sampler import Sampling

# B rows, T tokens of a prompt, K tokens in the cache, V vocabulary

_REPLACEMENT = "\ufffd"  # what decoding gives for bytes that are not yet a whole character


class Decoder(Protocol):
    """What turns token ids into text."""

    def decode(self, ids: list[int], /) -> str:
        """Return the text of `ids`."""


@dataclass(frozen=True)
class Completion:
    """One answer. `ids` and `text` are without the stop token; `stopped` is False when the length limit cut it.

    `log_probability` is that of the whole answer, its stop token included, in nats, under the distribution that it was sampled from
    (of a greedy answer: at temperature 1). It is None where it was not asked for.
    """

    ids: tuple[int, ...]
    text: str
    stopped: bool
    log_probability: float | None = None


def generate(
    model: nn.Module,
    tokenizer: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    sampling: Sampling | None = None,
    batch_rows: int = 64,
    halt: Callable[[], bool] = lambda: False,
    draws: Sequence[int] | None = None,
    log_probabilities: bool = False,
    **settings: Any,
) -> list[Completion]:
    """Answer each prompt, in order. `settings` (max_new_tokens, temperature, ...) replace fields of `sampling`.

    Prompts of like length share a batch of at most `batch_rows`; rows that have stopped leave it. `halt` is asked before every
    token; once it says so, the answers are what there is of them. A prompt's number, which chance comes from, is its place unless
    `draws` says another.

    Raises: ModelError when a prompt is empty or fills the model's context.
    """
    sampling = replace(sampling or Sampling(), **settings)
    draws = range(len(prompts)) if draws is None else draws
    limit = context_limit(model)
    for number, prompt in enumerate(prompts):
        _require_room(prompt, limit, number)
    by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    answers: dict[int, list[int]] = {}
    likely: dict[int, float] = {}
    with _evaluating(model):
        for start in range(0, len(by_length), batch_rows):
            numbers = by_length[start : start + batch_rows]
            rows = _Rows(
                model,
                [prompts[number] for number in numbers],
                numbers,
                sampling,
                limit,
                draws=[draws[number] for number in numbers],
                log_probabilities=log_probabilities,
            )
            answers.update(rows.answer(frozenset(stop_ids), halt))
            likely.update(rows.log_probability)
    return [
        _completion(tokenizer, answers[number], frozenset(stop_ids), likely.get(number))
        for number in range(len(prompts))
    ]


def stream(
    model: nn.Module,
    tokenizer: Decoder,
    prompt: Sequence[int],
    *,
    stop_ids: Sequence[int],
    sampling: Sampling | None = None,
    **settings: Any,
) -> Generator[str, None, None]:
    """Answer one prompt piece by piece; the pieces joined are the text that `generate` returns for it."""
    sampling = replace(sampling or Sampling(), **settings)
    limit = context_limit(model)
    _require_room(prompt, limit, 0)
    text = IncrementalText(tokenizer)
    rows = _Rows(model, [prompt], [0], sampling, limit)
    while rows.can_go_on:
        with _evaluating(model):  # not around the loop: the caller's code runs between two pieces
            token = int(rows.step()[0])
        if token in stop_ids:
            break
        piece = text.add(token)
        if piece:
            yield piece
    rest = text.rest()
    if rest:
        yield rest


class IncrementalText:
    """Text of a growing list of tokens, handed out only when later tokens can no longer change it.

    Only the tokens since the last piece are decoded again, with the piece before them as context, so that a long answer
    costs no more per token than a short one.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # start of the tokens decoded as context
        self._given = 0  # tokens whose text has been handed out

    def add(self, token: int) -> str:
        """Return the text that `token` completes, or an empty string inside an unfinished character."""
        self._ids.append(token)
        return self._piece(whole_only=True)

    def rest(self) -> str:
        """Return what is left at the end: the bytes of a character that was never finished."""
        return self._piece(whole_only=False)

    def _piece(self, *, whole_only: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._given])
        after = self._tokenizer.decode(self._ids[self._context :])
        if whole_only and after.endswith(_REPLACEMENT):
            return ""
        self._context, self._given = self._given, len(self._ids)
        return after[len(before) :]


class _Rows:
    """The rows of one batch while they are being answered: what is in the cache, and who is still speaking."""

    def __init__(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        numbers: Sequence[int],
        sampling: Sampling,
        limit: int | None,
        *,
        draws: Sequence[int] | None = None,
        log_probabilities: bool = False,
    ) -> None:
        device = next(model.parameters()).device
        width = max(len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros((len(prompts), width), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        self._model = model
        self._accepted = _forward_parameters(model)
        self._sampling = sampling
        self._numbers = list(numbers)
        self._draws = dict(zip(numbers, numbers if draws is None else draws, strict=True))
        self.log_probability: dict[int, float] = dict.fromkeys(numbers, 0.0) if log_probabilities else {}
        self._ids_BT = torch.from_numpy(ids).to(device)
        self._mask_BK = torch.from_numpy(mask).to(device)
        self._position_BT = (self._mask_BK.cumsum(dim=1) - 1).clamp_(min=0)
        self._is_padded = bool((mask == 0).any())
        self._cache: Any = None
        self._steps = 0
        self._log_of_step: list[float] = []
        self._limit = limit
        # Each row ends where its own prompt says, so that a longer neighbour does not cut its answer.
        self._most_tokens = {
            number: sampling.max_new_tokens if limit is None else min(sampling.max_new_tokens, limit - len(prompt))
            for number, prompt in zip(numbers, prompts, strict=True)
        }

    @property
    def can_go_on(self) -> bool:
        """Whether the length limits of any row allow another token."""
        return any(self._steps < self._most_tokens[number] for number in self._numbers)

    def answer(self, stop_ids: frozenset[int], halt: Callable[[], bool]) -> dict[int, list[int]]:
        """Return the new tokens of each row by its number, the stop token included; fewer once `halt` says so."""
        answers: dict[int, list[int]] = {number: [] for number in self._numbers}
        done: set[int] = set()
        while self._numbers and not halt():
            tokens = self.step().tolist()
            for row, (number, token) in enumerate(zip(self._numbers, tokens, strict=True)):
                if number not in done:
                    answers[number].append(token)
                    if self.log_probability:
                        self.log_probability[number] += self._log_of_step[row]
                    if token in stop_ids or len(answers[number]) == self._most_tokens[number]:
                        done.add(number)
            self._drop(done)
        return answers

    def step(self) -> Tensor:
        """Run the model once and return the next token [B] of each row."""
        logits_BV = self._forward()
        token_B = self._choose(logits_BV)
        if self.log_probability:
            temperature, top_p = self._sampling.temperature, self._sampling.top_p
            self._log_of_step = log_probability_of(logits_BV, token_B, temperature, top_p).tolist()
        self._steps += 1
        one = self._mask_BK.new_ones(len(token_B), 1)
        self._mask_BK = torch.cat([self._mask_BK, one], dim=1)
        position_B1 = self._position_BT[:, -1:] + 1
        if self._limit is not None:  # a row that has ended may still be in the batch, past the last position there is
            position_B1.clamp_(max=self._limit - 1)
        if self._cache is None:
            self._ids_BT = torch.cat([self._ids_BT, token_B[:, None]], dim=1)
            self._position_BT = torch.cat([self._position_BT, position_B1], dim=1)
        else:
            self._ids_BT, self._position_BT = token_B[:, None], position_B1
        return token_B

    def _forward(self) -> Tensor:
        arguments: dict[str, Any] = {
            "input_ids": self._ids_BT,
            "attention_mask": self._mask_BK if self._is_padded else None,
            "position_ids": self._position_BT,
            "past_key_values": self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        output = self._model(**{name: value for name, value in arguments.items() if name in self._accepted})
        # A model without a key-value cache (state space) reads the whole row again at each step: slow, but right.
        self._cache = getattr(output, "past_key_values", None)
        return torch.as_tensor(output.logits)[:, -1].float()

    def _choose(self, logits_BV: Tensor) -> Tensor:
        if self._sampling.temperature == 0:
            return logits_BV.argmax(dim=-1)
        chance_B = torch.tensor([self._chance(number) for number in self._numbers], device=logits_BV.device)
        return sample_tokens(logits_BV, chance_B, self._sampling.temperature, self._sampling.top_p)

    def _chance(self, number: int) -> float:
        """Return this step's number in [0, 1) for a prompt, from 53 bits of a hash."""
        bits = hash64_array(self._sampling.seed, self._draws[number], counters=np.array([self._steps], dtype=np.uint64))
        return float(bits[0] >> np.uint64(11)) * 2.0**-53

    def _drop(self, done: set[int]) -> None:
        """Take rows that have stopped out of the batch, once they are a tenth of it (moving the cache costs too)."""
        keep = [row for row, number in enumerate(self._numbers) if number not in done]
        if len(keep) > 0.9 * len(self._numbers):
            return
        if keep and self._cache is not None and not hasattr(self._cache, "batch_select_indices"):
            return
        self._numbers = [self._numbers[row] for row in keep]
        index = torch.tensor(keep, dtype=torch.long, device=self._ids_BT.device)
        self._ids_BT, self._position_BT = self._ids_BT[index], self._position_BT[index]
        self._mask_BK = self._mask_BK[index]
        if keep and self._cache is not None:
            self._cache.batch_select_indices(index)


def sample_tokens(logits_BV: Tensor, chance_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """Choose one token a row: the one at which the sum of probabilities, likeliest first, passes `chance_B` in [0, 1).

    Shapes: logits_BV [B, V] fp32, chance_B [B] fp64; returns [B] int64. The chance is spread over the tokens that
    `top_p` keeps: the fewest likeliest ones that together reach it (Holtzman et al. 2019, arXiv 1904.09751).
    """
    probability_BV, token_BV = torch.softmax(logits_BV.double() / temperature, dim=-1).sort(dim=-1, descending=True)
    total_BV = probability_BV.cumsum(dim=-1)
    kept_B = ((total_BV - probability_BV) < top_p).sum(dim=-1)
    kept_total_B = total_BV.gather(1, kept_B[:, None] - 1)
    chosen_B = (total_BV <= chance_B[:, None] * kept_total_B).sum(dim=-1)
    return token_BV.gather(1, torch.minimum(chosen_B, kept_B - 1)[:, None])[:, 0]


def log_probability_of(logits_BV: Tensor, token_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return how likely `sample_tokens` chooses each token, in nats; temperature 0, which chooses without chance, counts as 1.

    Shapes: logits_BV [B, V] fp32, token_B [B]; returns [B] fp64.
    """
    log_BV = torch.log_softmax(logits_BV.double() / (temperature or 1.0), dim=-1)
    own_B = log_BV.gather(1, token_B[:, None])[:, 0]
    if temperature and top_p < 1:
        probability_BV = log_BV.exp().sort(dim=-1, descending=True).values
        is_kept_BV = (probability_BV.cumsum(dim=-1) - probability_BV) < top_p
        own_B = own_B - (probability_BV * is_kept_BV).sum(dim=-1).log()
    return own_B


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _forward_parameters(model: Any) -> frozenset[str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's own forward takes **kwargs
    return frozenset(inspect.signature(inner.forward).parameters)


def context_limit(model: nn.Module) -> int | None:
    """Return how many tokens the context of `model` holds; None where it does not say."""
    config: Any = model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _require_room(prompt: Sequence[int], limit: int | None, number: int) -> None:
    if not len(prompt):
        raise ModelError(f"prompt {number} is empty", mend="begin it with at least one token, such as BOS")
    if limit is not None and len(prompt) >= limit:
        raise ModelError(
            f"prompt {number} has {len(prompt)} tokens, and the model's context holds {limit}",
            mend="shorten it (in a chat: /reset)",
        )


def _completion(
    tokenizer: Decoder, ids: list[int], stop_ids: frozenset[int], log_probability: float | None
) -> Completion:
    stopped = bool(ids) and ids[-1] in stop_ids
    spoken = ids[:-1] if stopped else ids
    return Completion(tuple(spoken), tokenizer.decode(spoken) if spoken else "", stopped, log_probability)
