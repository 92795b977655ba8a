"""The one door from a batch to its losses: logits and cross-entropy at the supervised positions only.

Most tokens of an instruction example carry no loss, and their logits, a vocabulary wide, would be most of the memory of a
step. Here the hidden states are gathered just before the output embedding, so they are never made. Where that embedding is a
plain linear layer, and what the model does to logits after it is understood (nothing, scaling, soft-capping), the other
logits exist a chunk at a time as well; else the model makes them itself. Training and evaluation use the same door.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from tutelage.model.attention import document_attention, forward_arguments, unwrapped
from tutelage.model.cross_entropy import Head, LogitMap, cross_entropy, linear_cross_entropy
from tutelage.pack.batch import Batch
from tutelage.parallel.shard import head_gathered

# B rows, T tokens, S supervised tokens, H hidden size, V vocabulary

# What follows the head of a model, once its forward pass has shown it; None where it is not understood.
_after_head: WeakKeyDictionary[nn.Module, LogitMap | None] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """What each supervised token cost.

    `weighted_sum` [] is the sum of weight times loss, to be divided by the weight of the whole step, not of this batch; it can
    be differentiated, once, and nothing else here can.
    Shapes of the others: [S]. `loss` is the negative log likelihood in nats (fp32 or fp64), `weight` its loss weight, `correct`
    whether no token was likelier than the target, `document` the document's number within the batch.
    """

    weighted_sum: torch.Tensor
    loss: torch.Tensor
    weight: torch.Tensor
    correct: torch.Tensor
    document: torch.Tensor


@dataclass(frozen=True)
class LossSums:
    """Sums over tokens; they add up over batches, ranks and steps, and are divided only when printed."""

    loss_sum: float
    weight_sum: float
    correct: int
    tokens: int

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.loss_sum + other.loss_sum,
            self.weight_sum + other.weight_sum,
            self.correct + other.correct,
            self.tokens + other.tokens,
        )


def supervised_losses(model: nn.Module, batch: Batch) -> TokenLosses:
    """Run the model on a batch and return the loss of every supervised token."""
    targets_S, weight_S = batch.supervised_targets, batch.supervised_weights
    with head_gathered(model):
        seen = _hidden_states_and_head(model, batch)
        if seen is not None:
            weighted_sum, loss_S, correct_S = linear_cross_entropy(*seen, targets_S, weight_S)
        else:
            loss_S, correct_S = cross_entropy(supervised_logits(model, batch), targets_S)
            weighted_sum = (loss_S * weight_S).sum()
    return TokenLosses(
        weighted_sum=weighted_sum,
        loss=loss_S.detach(),
        weight=weight_S.to(loss_S.dtype),
        correct=correct_S,
        document=batch.supervised_document,
    )


def supervised_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Run the model on a batch and return its logits [S, V] at the supervised positions."""
    with document_attention(batch), _gather_before_head(model, batch.supervised) as gathered:
        logits: torch.Tensor = model(**forward_arguments(model, batch)).logits
    return logits.reshape(-1, logits.shape[-1]) if gathered else _rows(logits, batch.supervised)


@contextmanager
def _gather_before_head(model: nn.Module, supervised: torch.Tensor) -> Iterator[list[bool]]:
    """Let the output embedding see the hidden states at flat positions `supervised` [S] only, as one row [1, S, H].

    What is yielded is no longer empty once that has happened.
    """
    gathered: list[bool] = []

    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        gathered.append(True)
        return (_rows(hidden, supervised)[None], *rest)

    head: nn.Module | None = unwrapped(model).get_output_embeddings()
    if head is None:
        yield gathered
        return
    handle = head.register_forward_pre_hook(gather)
    try:
        yield gathered
    finally:
        handle.remove()


def _rows(states: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return rows [S, H] of states [B, T, H], at flat positions that may occur more than once.

    Not by indexing: where a position repeats, the gradient of that adds in no fixed order.
    """
    return nn.functional.embedding(chosen, states.reshape(-1, states.shape[-1]))


def _hidden_states_and_head(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, Head] | None:
    """Run the model up to its head and return the hidden states [S, H] that would enter it, and the head.

    In place of logits the head gives out known numbers, and the first time, what the model makes of them shows what follows
    its head. None where that is unknown, or the head more than a linear layer; the random state is then as it was.
    """
    head: Any = unwrapped(model).get_output_embeddings()
    if not _is_plain(head) or _after_head.get(head, LogitMap()) is None:
        return None
    random_states = _random_states(batch.device)
    known = _known_logits(head)
    with document_attention(batch), _instead_of_head(head, known) as hidden:
        shown = model(**forward_arguments(model, batch)).logits
    if head not in _after_head and isinstance(shown, FakeTensor):
        after: LogitMap | None = (
            LogitMap()
        )  # without values nothing shows, and the memory it takes is the same for all but a cap
    else:
        if head not in _after_head:
            _after_head[head] = _recognise(known, shown) if len(hidden) == 1 else None
        after = _after_head[head]
    if after is None:
        _restore_random_states(random_states, batch.device)
        return None
    return _rows(hidden[0], batch.supervised), Head(head.weight, head.bias, after)


@contextmanager
def _instead_of_head(head: nn.Module, logits: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Let the head give out `logits` without computing anything, and collect the hidden states that come in."""
    hidden: list[torch.Tensor] = []

    def instead(states: torch.Tensor) -> torch.Tensor:
        hidden.append(states)
        return logits

    vars(head)["forward"] = instead
    try:
        yield hidden
    finally:
        del vars(head)["forward"]


def _is_plain(head: nn.Module | None) -> bool:
    """Whether `head` is a linear layer and nothing more: not wrapped, quantised, sharded or watched by hooks."""
    if type(head) is not nn.Linear or "forward" in vars(head):
        return False
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    plain = (nn.Parameter, FakeTensor)  # a fake one stands for a plain one where only shapes are known
    return not any(hooks) and type(head.weight) in plain and type(head.bias) in (*plain, type(None))


def _known_logits(head: nn.Linear) -> torch.Tensor:
    """Return logits [1, 3, V] that tell a scale (all 1), a cap (all far beyond it) and any exception (a ramp) apart.

    In fp64 wherever the device has it, so that a scale is found exactly whatever the precision of the model.
    """
    device = head.weight.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    known = torch.linspace(-40.0, 40.0, head.out_features, dtype=dtype, device=device).repeat(1, 3, 1)
    known[:, 0], known[:, 1] = 1.0, 2.0**14
    return known


def _recognise(known: torch.Tensor, shown: torch.Tensor) -> LogitMap | None:
    """Return the map that makes `shown` of the `known` logits, None where it is neither a scale nor a soft cap."""
    if known.shape != shown.shape:
        return None
    scale, cap = shown[0, 0, 0].item(), shown[0, 1, 0].item()
    for candidate in (LogitMap(scale=scale), LogitMap(cap=cap)):
        expected = known.clone()
        candidate.apply_(expected)
        if scale > 0 and torch.allclose(expected, shown.to(expected.dtype), rtol=1e-5, atol=1e-5 * scale):
            return candidate
    return None


def _random_states(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), on_device


def _restore_random_states(states: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1], device)
