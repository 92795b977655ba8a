"""The one door from a batch to its losses: logits and cross-entropy at the supervised positions only.

Most tokens of an instruction example carry no loss, and their logits, a vocabulary wide, would be most of the memory of a
step. Here the hidden states are gathered just before the output embedding, so they are never made; whatever the model's own
forward pass does to logits afterwards (soft-capping, scaling) still happens. Training and evaluation use the same door.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tutelage.model.attention import document_attention, forward_arguments, unwrapped
from tutelage.pack.batch import Batch

# B rows, T tokens, S supervised tokens, V vocabulary, C rows of one chunk

# Probabilities that exist at a time. On a CPU larger blocks come from the kernel anew each time, and cost page faults.
CHUNK_VALUES_CPU = 2**22
CHUNK_VALUES_GPU = 2**26


@dataclass(frozen=True, eq=False)
class TokenLosses:
    """What each supervised token cost.

    Shapes: all [S]. `loss` is the negative log likelihood in nats (fp32 or fp64, differentiable), `weight` its loss weight,
    `correct` whether the target was the likeliest token, `document` the document's number within the batch.
    """

    loss: torch.Tensor
    weight: torch.Tensor
    correct: torch.Tensor
    document: torch.Tensor

    @property
    def weighted_sum(self) -> torch.Tensor:
        """Sum of weight times loss; divide by the weight of the whole step, not of this batch."""
        return (self.loss * self.weight).sum()


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
    logits_SV = supervised_logits(model, batch)
    targets_S = batch.targets.flatten()[batch.supervised]
    loss_S, correct_S = _cross_entropy(logits_SV, targets_S)
    return TokenLosses(
        loss=loss_S,
        weight=batch.weights.flatten()[batch.supervised].to(loss_S.dtype),
        correct=correct_S,
        document=batch.supervised_document,
    )


def supervised_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Run the model on a batch and return its logits [S, V] at the supervised positions."""
    with document_attention(batch), _gather_before_head(model, batch.supervised):
        logits: torch.Tensor = model(**forward_arguments(model, batch)).logits
    flat = logits.reshape(-1, logits.shape[-1])
    if flat.shape[0] == batch.num_supervised:
        return flat
    return flat[batch.supervised]


@contextmanager
def _gather_before_head(model: nn.Module, supervised: torch.Tensor) -> Iterator[None]:
    """Let the output embedding see the hidden states at flat positions `supervised` [S] only, as one row [1, S, H]."""

    def gather(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        return (hidden.reshape(-1, hidden.shape[-1])[supervised][None], *rest)

    head: nn.Module | None = unwrapped(model).get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def _cross_entropy(logits_SV: torch.Tensor, targets_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the negative log likelihood [S] of the targets and whether each was the likeliest token."""
    loss_S, correct_S = _ChunkedCrossEntropy.apply(logits_SV, targets_S)  # type: ignore[no-untyped-call]
    return loss_S, correct_S


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of rows, computed in at least fp32, a chunk of rows at a time.

    Only the logits themselves, in the model's precision, are kept for the backward pass: the fp32 probabilities of one
    chunk exist at a time, in both directions.
    """

    @staticmethod
    def forward(ctx: Any, logits_SV: torch.Tensor, targets_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        exact = torch.promote_types(logits_SV.dtype, torch.float32)
        loss_S = torch.empty(len(targets_S), dtype=exact, device=logits_SV.device)
        correct_S = torch.empty(len(targets_S), dtype=torch.bool, device=logits_SV.device)
        for rows in _chunks(logits_SV):
            target_C = targets_S[rows]
            correct_S[rows] = logits_SV[rows].argmax(dim=-1) == target_C
            loss_S[rows] = -logits_SV[rows].log_softmax(dim=-1, dtype=exact).gather(1, target_C[:, None])[:, 0]
        ctx.save_for_backward(logits_SV, targets_S)
        ctx.mark_non_differentiable(correct_S)
        return loss_S, correct_S

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        logits_SV, targets_S = ctx.saved_tensors
        grad_S = gradients[0]
        grad_SV = torch.empty_like(logits_SV)
        for rows in _chunks(logits_SV):
            chunk_CV = logits_SV[rows].softmax(dim=-1, dtype=grad_S.dtype)
            chunk_CV.scatter_add_(1, targets_S[rows, None], -torch.ones_like(grad_S[rows, None]))
            grad_SV[rows] = chunk_CV.mul_(grad_S[rows, None])
        return grad_SV, None


def _chunks(logits_SV: torch.Tensor) -> list[slice]:
    S, V = logits_SV.shape
    values = CHUNK_VALUES_CPU if logits_SV.device.type == "cpu" else CHUNK_VALUES_GPU
    rows = max(1, values // V)
    return [slice(start, start + rows) for start in range(0, S, rows)]
