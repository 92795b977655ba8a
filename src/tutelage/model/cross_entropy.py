"""Cross-entropy a chunk of tokens at a time, with the output embedding inside or from logits that exist already.

With the output embedding inside, the logits of all tokens never exist. What backward needs of a softmax cross-entropy is known
as soon as the logits are: softmax minus one-hot, times the token's weight. So each chunk's logits turn into that in place, then
into the gradients of hidden states and of the head, and make room for the next chunk's; backward only multiplies by the scalar
that comes in. Nothing is computed twice, and memory beyond those gradients grows with a chunk, not with tokens times vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# S supervised tokens, C of them in one chunk, H hidden size, V vocabulary

# A chunk is large enough for the matrix products to run at full speed. On a GPU, where adding to the head's gradient is bound
# by memory, it is as large as 1 GiB of fp32 logits allows.
CHUNK_ROWS_CPU = 512
CHUNK_VALUES_GPU = 2**28


@dataclass(frozen=True)
class LogitMap:
    """What a model does to logits after its head: times `scale`, or softly capped, cap * tanh(logits / cap)."""

    scale: float = 1.0
    cap: float | None = None

    def apply_(self, logits: Tensor) -> Tensor | None:
        """Map logits in place; return the slope at each of them where it is not `scale` everywhere."""
        if self.cap is None:
            if self.scale != 1.0:
                logits.mul_(self.scale)
            return None
        logits.div_(self.cap).tanh_()
        slope = logits.square().neg_().add_(1.0)
        logits.mul_(self.cap)
        return slope


@dataclass(frozen=True, eq=False)
class Head:
    """The output embedding of a model, weight [V, H] and bias [V] or None, and what follows it."""

    weight: Tensor
    bias: Tensor | None
    after: LogitMap


def linear_cross_entropy(
    hidden_SH: Tensor, head: Head, targets_S: Tensor, weights_S: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sum of the losses, each loss [S], and whether no token was likelier than the target [S].

    Only the sum is differentiable, once, and only with respect to the hidden states, the weight and the bias. Products run in
    autocast's precision where it is on, the softmax and the sums in at least fp32.
    """
    wanted = [
        torch.is_grad_enabled() and x is not None and x.requires_grad for x in (hidden_SH, head.weight, head.bias)
    ]
    if not any(wanted):
        done = _run_chunks(hidden_SH, head, targets_S, weights_S, wanted)
        return done.weighted_sum, done.loss, done.correct
    weighted_sum, loss_S, correct_S = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_SH, head.weight, head.bias, targets_S, weights_S, head.after
    )
    return weighted_sum, loss_S, correct_S


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_SH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        targets_S: Tensor,
        weights_S: Tensor,
        after: LogitMap,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = Head(weight_VH, bias_V, after)
        done = _run_chunks(hidden_SH, head, targets_S, weights_S, ctx.needs_input_grad[:3])
        ctx.gradients = done.gradients
        ctx.mark_non_differentiable(done.loss, done.correct)
        return done.weighted_sum, done.loss, done.correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        # Given away, not kept: autograd then makes the head's gradient the parameter's own, or adds the one of a tied input
        # embedding to it, without a copy. That is why there is no second time, which autograd's own nodes refuse as well.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss was differentiated already, and its gradients were freed; run the model again")
        return *(None if gradient is None else gradient.mul_(incoming[0]) for gradient in gradients), None, None, None


def cross_entropy(logits_SV: Tensor, targets_S: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each row of logits [S], differentiable, and whether no token was likelier than the target [S].

    Computed in at least fp32. Only the logits themselves, in the model's precision, are kept for the backward pass.
    """
    loss_S, correct_S = _CrossEntropy.apply(logits_SV, targets_S)  # type: ignore[no-untyped-call]
    return loss_S, correct_S


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_SV: Tensor, targets_S: Tensor) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(logits_SV.dtype, torch.float32)
        loss_S = logits_SV.new_empty(len(targets_S), dtype=exact)
        correct_S = logits_SV.new_empty(len(targets_S), dtype=torch.bool)
        chunks, C = _chunks(len(logits_SV), logits_SV.shape[1], logits_SV.device)
        values = logits_SV.new_empty(C, logits_SV.shape[1], dtype=exact)
        for chunk in chunks:
            value_CV = values[: chunk.stop - chunk.start].copy_(logits_SV[chunk])
            loss_S[chunk], correct_S[chunk] = _losses_then_errors_(value_CV, targets_S[chunk])
        ctx.save_for_backward(logits_SV, targets_S)
        ctx.mark_non_differentiable(correct_S)
        return loss_S, correct_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None]:
        logits_SV, targets_S = ctx.saved_tensors
        grad_S = incoming[0]
        grad_SV = torch.empty_like(logits_SV)
        chunks, C = _chunks(len(logits_SV), logits_SV.shape[1], logits_SV.device)
        values = logits_SV.new_empty(C, logits_SV.shape[1], dtype=grad_S.dtype)
        for chunk in chunks:
            value_CV = values[: chunk.stop - chunk.start].copy_(logits_SV[chunk])
            _losses_then_errors_(value_CV, targets_S[chunk])
            grad_SV[chunk] = value_CV.mul_(grad_S[chunk, None])
        return grad_SV, None


@dataclass(frozen=True, eq=False)
class _Done:
    weighted_sum: Tensor
    loss: Tensor  # [S]
    correct: Tensor  # [S]
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None]  # of hidden states, weight and bias


@torch.no_grad()
def _run_chunks(hidden_SH: Tensor, head: Head, targets_S: Tensor, weights_S: Tensor, wanted: Sequence[bool]) -> _Done:
    """Compute losses, and the gradients that are `wanted` (hidden states, weight, bias) of their weighted sum."""
    kind = hidden_SH.device.type
    inexact = torch.is_autocast_enabled(kind) and head.weight.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if inexact else head.weight.dtype
    with torch.autocast(kind, enabled=False):
        return _run_chunks_in(dtype, hidden_SH, head, targets_S, weights_S, wanted)


def _run_chunks_in(
    dtype: torch.dtype, hidden_SH: Tensor, head: Head, targets_S: Tensor, weights_S: Tensor, wanted: Sequence[bool]
) -> _Done:
    exact = torch.promote_types(dtype, torch.float32)
    weight_VH = head.weight.to(dtype)
    (S, H), V = hidden_SH.shape, len(weight_VH)
    new = hidden_SH.new_empty
    loss_S, correct_S = new(S, dtype=exact), new(S, dtype=torch.bool)
    weights_S = weights_S.to(exact)
    grad_SH = new(S, H) if wanted[0] else None
    # The sum over chunks is kept in at least fp32, whatever precision the parameters have.
    grad_VH = hidden_SH.new_zeros(V, H, dtype=exact) if wanted[1] else None
    grad_V = hidden_SH.new_zeros(V, dtype=exact) if wanted[2] else None
    chunks, C = _chunks(S, V, hidden_SH.device)
    products = new(C, V, dtype=dtype)
    values = products if dtype == exact else new(C, V, dtype=exact)
    for chunk in chunks:
        hidden_CH, weights_C = hidden_SH[chunk].to(dtype), weights_S[chunk, None] * head.after.scale
        product_CV, value_CV = products[: len(hidden_CH)], values[: len(hidden_CH)]
        torch.mm(hidden_CH, weight_VH.t(), out=product_CV)
        if head.bias is not None:
            product_CV.add_(head.bias.to(dtype))
        if value_CV is not product_CV:
            value_CV.copy_(product_CV)
        slope_CV = head.after.apply_(value_CV)
        loss_S[chunk], correct_S[chunk] = _losses_then_errors_(value_CV, targets_S[chunk])
        if not any(wanted):
            continue
        if slope_CV is not None:
            value_CV.mul_(slope_CV)
        if value_CV is not product_CV:
            product_CV.copy_(value_CV)
        # Weights scale rows: cheaper on the side that is H wide than on the one that is V wide.
        if grad_SH is not None:
            grad_SH[chunk] = torch.mm(product_CV, weight_VH).mul_(weights_C)
        if grad_VH is not None:
            _add_product_(grad_VH, product_CV.t(), (hidden_CH * weights_C).to(dtype))
        if grad_V is not None:
            _add_product_(grad_V[:, None], product_CV.t(), weights_C.to(dtype))
    gradients = (
        grad_SH,
        None if grad_VH is None else grad_VH.to(head.weight.dtype),
        None if grad_V is None or head.bias is None else grad_V.to(head.bias.dtype),
    )
    return _Done((loss_S * weights_S).sum(), loss_S, correct_S, gradients)


def _losses_then_errors_(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log likelihoods and whether no logit exceeds the target's; leave softmax minus one-hot behind."""
    target_C1 = targets_C[:, None]
    logit_C = logits_CV.gather(1, target_C1)[:, 0]
    largest_C = logits_CV.amax(dim=1)
    torch.softmax(logits_CV, dim=1, out=logits_CV)
    # The largest probability is never tiny, so its logarithm is exact where that of the target's would not be.
    loss_C = (largest_C - logit_C).sub_(logits_CV.amax(dim=1).log_())
    logits_CV.scatter_add_(1, target_C1, logits_CV.new_full(target_C1.shape, -1.0))
    return loss_C, logit_C == largest_C


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _chunks(S: int, V: int, device: torch.device) -> tuple[list[slice], int]:
    """Return slices of S rows, of equal length but for the last, and that length."""
    most = CHUNK_ROWS_CPU if device.type == "cpu" else max(1, CHUNK_VALUES_GPU // V)
    C = -(-S // max(1, -(-S // most)))
    return [slice(start, min(start + C, S)) for start in range(0, S, max(1, C))], C
