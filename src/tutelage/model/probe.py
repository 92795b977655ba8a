"""Checks of a model as it stands before the first step: real weights, backend, precision and wrapping.

isolation  another document's tokens change: no logit of this one may move, and no gradient may reach across
causality  the second half of a document changes: no logit before it may move
layout     the batch's losses and gradients are those of each document alone, by the definition of the loss

Each probe leaves the model as it found it: mode, gradients and random state. Tolerances come from the arithmetic itself:
the same computation is run twice, or laid out in a second harmless way, and what moves then is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tutelage.chat.rendered import Rendered
from tutelage.errors import IsolationError
from tutelage.model.attention import unwrapped
from tutelage.model.head import supervised_logits, supervised_losses
from tutelage.pack.batch import Batch, document_key, pack_batch

# T tokens, D documents, S chosen positions, V vocabulary, H hidden size

MOST_POSITIONS = 512  # logits compared by a probe; each is a vocabulary wide
MOST_LAYOUT_TOKENS = 1024  # in all documents of a layout probe
NOISE_MARGIN = 8.0  # times the measured noise floor that is still called noise
LAYOUT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class ProbeResult:
    """What one probe found, in the form of an entry of the receipt."""

    law: str
    name: str
    passed: bool
    figures: Mapping[str, float]
    detail: str


def probe_isolation(model: nn.Module, batch: Batch) -> ProbeResult:
    """Change every token of one document of a pack and look at the others; then ask the gradient the same question.

    The gradient of the other documents' logits with respect to the changed document's embeddings must be exactly zero: it
    is no sum of rounding errors, but of terms that must not exist.
    """
    if batch.num_documents < 2:
        return ProbeResult("isolation", "isolation", True, {"documents": 1.0}, "one document: nothing to keep apart")
    changed = batch.num_documents // 2
    watched = _watch(batch, _spread(batch))
    is_changed_S = watched.supervised_document == changed
    try:
        with _undisturbed(model):
            with torch.no_grad():
                before_SV = supervised_logits(model, watched)
                noise = _largest(supervised_logits(model, watched) - before_SV)
                after_SV = supervised_logits(model, _with_other_tokens(watched, _span(batch, changed)))
            gradient_T = _reach(model, watched, ~is_changed_S)
    except IsolationError as refused:
        figures = {"documents": float(batch.num_documents)}
        return ProbeResult("isolation", "isolation", False, figures, refused.problem)
    moved_S = (after_SV - before_SV).abs().amax(dim=-1)
    tolerance = _logit_tolerance(before_SV, noise)
    leak, control = _largest(moved_S[~is_changed_S]), _largest(moved_S[is_changed_S])
    start, stop = _span(batch, changed)
    gradient = _largest(gradient_T[start:stop])
    passed = leak <= tolerance and gradient == 0.0 and control > tolerance
    return ProbeResult(
        "isolation",
        "isolation",
        passed,
        {
            "documents": float(batch.num_documents),
            "tokens": float(batch.num_tokens),
            "max_logit_change": leak,
            "max_gradient": gradient,
            "max_logit_change_of_the_changed_document": control,
            "noise_floor": noise,
            "tolerance": tolerance,
        },
        _isolation_detail(leak, gradient, control, tolerance),
    )


def probe_causality(model: nn.Module, batch: Batch) -> ProbeResult:
    """Change the second half of the longest document: no logit before it may move, and one from it on must.

    All of it, because one token alone may move logits by less than the rounding of a coarse precision.
    """
    longest = int(np.argmax(batch.lengths))
    start, stop = _span(batch, longest)
    middle = (start + stop) // 2
    if stop - start < 2:
        return ProbeResult("isolation", "causality", True, {"tokens": 1.0}, "documents of one token have no past")
    watched = _watch(batch, np.unique(np.linspace(start, stop - 1, min(stop - start, MOST_POSITIONS)).astype(np.int64)))
    past_S = watched.supervised < middle
    with _undisturbed(model), torch.no_grad():
        before_SV = supervised_logits(model, watched)
        noise = _largest(supervised_logits(model, watched) - before_SV)
        after_SV = supervised_logits(model, _with_other_tokens(watched, (middle, stop)))
    moved_S = (after_SV - before_SV).abs().amax(dim=-1)
    tolerance = _logit_tolerance(before_SV, noise)
    leak, control = _largest(moved_S[past_S]), _largest(moved_S[~past_S])
    detail = f"a later token moved an earlier logit by {leak:.3g} (tolerance {tolerance:.3g})"
    if leak <= tolerance:
        detail = (
            "no token sees a later one"
            if control > tolerance
            else "changed tokens moved no logit at all, so this probe sees nothing"
        )
    return ProbeResult(
        "isolation",
        "causality",
        leak <= tolerance < control,
        {
            "max_logit_change": leak,
            "max_logit_change_of_the_changed_half": control,
            "noise_floor": noise,
            "tolerance": tolerance,
        },
        detail,
    )


def probe_layout(
    model: nn.Module,
    documents: Sequence[Rendered],
    make: Callable[[Sequence[Rendered]], Sequence[Batch]] | None = None,
    *,
    name: str = "layout",
) -> ProbeResult:
    """Compare losses and gradients of documents laid out as batches with those of each document alone.

    Alone means by the definition: a plain forward pass over one document, the negative log likelihood of each next token,
    times that token's weight. So a wrong shift, boundary, position or gather shows up whichever part of the path it is in.
    `make` lays the documents out; by default they become one pack. `name` is that of the result. The gradient is that of the loss with respect to the
    input embeddings, which every layer's backward pass takes part in. Of many documents a few are taken, because logits of
    whole documents are made here and nowhere else.
    """
    documents = choose_documents(documents)
    if not documents:
        return ProbeResult("layout", name, True, {"documents": 0.0}, "no document has a token that carries loss")
    batches = [pack_batch(documents)] if make is None else make(documents)
    with _undisturbed(model):
        alone = [_alone(model, document, rows=1) for document in documents]
        again = [_alone(model, document, rows=2) for document in documents]
        reference = {document_key(document): outcome for document, outcome in zip(documents, alone, strict=True)}
        compared = {key: pair for batch in batches for key, pair in _compared(model, batch, reference)}
    loss, gradient = _distance([compared[key] for key in reference])
    loss_noise, gradient_noise = _distance(list(zip(alone, again, strict=True)))
    least = LAYOUT_TOLERANCE[alone[0].precision]
    loss_tolerance = max(least, NOISE_MARGIN * loss_noise)
    gradient_tolerance = max(least, NOISE_MARGIN * gradient_noise)
    passed = loss <= loss_tolerance and gradient <= gradient_tolerance
    return ProbeResult(
        "layout",
        name,
        passed,
        {
            "documents": float(len(documents)),
            "tokens": float(sum(len(document) for document in documents)),
            "max_loss_difference": loss,
            "max_gradient_difference": gradient,
            "loss_tolerance": loss_tolerance,
            "gradient_tolerance": gradient_tolerance,
        },
        f"losses {'equal' if passed else 'differ from'} those of each document alone: by {loss:.3g} at most "
        f"(tolerance {loss_tolerance:.3g}), gradients by {gradient:.3g} (tolerance {gradient_tolerance:.3g})",
    )


def choose_documents(documents: Sequence[Rendered], max_tokens: int = MOST_LAYOUT_TOKENS) -> list[Rendered]:
    """Choose different documents with supervised tokens: the first that fit `max_tokens`, but the two shortest at least."""
    different = list(
        {document_key(document): document for document in documents if document.supervised_tokens}.values()
    )
    chosen: list[Rendered] = []
    for document in different:
        if sum(map(len, chosen)) + len(document) <= max_tokens:
            chosen.append(document)
    return chosen if len(chosen) > 1 else sorted(different, key=len)[:2]


@dataclass(frozen=True, eq=False)
class _Outcome:
    """Losses [S] of a document's supervised tokens, and the gradient [L, H] of their weighted sum at its embeddings."""

    losses: Tensor
    gradient: Tensor
    precision: torch.dtype


def _alone(model: nn.Module, document: Rendered, *, rows: int) -> _Outcome:
    """Compute the outcome from the definition of the loss; equal rows change nothing but the order of the arithmetic."""
    device = next(model.parameters()).device
    ids_T = torch.from_numpy(document.ids.astype(np.int64)).to(device)
    weights_T = torch.from_numpy(document.weights).to(device)
    with _embeddings(model) as seen:
        logits_TV = model(input_ids=ids_T.repeat(rows, 1), use_cache=False).logits[0]
    exact = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    losses_T = -exact[:-1].log_softmax(dim=-1).gather(1, ids_T[1:, None])[:, 0]
    gradient = _gradient((losses_T * weights_T[1:]).sum(), seen[0])[0]
    return _Outcome(losses_T[weights_T[1:] != 0].detach(), gradient, logits_TV.dtype)


def _compared(
    model: nn.Module, batch: Batch, alone: Mapping[int, _Outcome]
) -> Iterator[tuple[int, tuple[_Outcome, _Outcome]]]:
    """Yield (document key, (expected, found)) of every document of a batch, found through the path that training takes.

    What is expected of a token that several documents of a tree share is the sum of its gradients in each of them.
    """
    device = next(model.parameters()).device
    batch = batch.to(device)
    with _embeddings(model) as seen:
        losses = supervised_losses(model, batch)
    gradient_NH = _gradient(losses.weighted_sum, seen[-1]).flatten(0, 1)  # a model that is new may have run twice
    keys = batch.document_keys.tolist()
    places = [torch.from_numpy(batch.places(number)).to(device) for number in range(len(keys))]
    shared_NH = torch.zeros_like(gradient_NH)
    if batch.tree is not None:
        for key, own in zip(keys, places, strict=True):
            shared_NH[own] += alone[key].gradient
    for number, (key, own) in enumerate(zip(keys, places, strict=True)):
        expected = alone[key] if batch.tree is None else replace(alone[key], gradient=shared_NH[own])
        found = _Outcome(losses.loss[losses.document == number], gradient_NH[own], losses.loss.dtype)
        yield key, (expected, found)


def _distance(pairs: Sequence[tuple[_Outcome, _Outcome]]) -> tuple[float, float]:
    """Return the largest difference of a loss, in parts of 1 + loss, and of a document's gradient, in parts of its norm."""
    largest = max(_norm(one.gradient) for one, _ in pairs)
    losses, gradients = [0.0], [0.0]
    for one, other in pairs:
        if one.losses.shape != other.losses.shape or one.gradient.shape != other.gradient.shape:
            return float("inf"), float("inf")
        losses.append(_largest((one.losses - other.losses) / (1 + one.losses.abs())))
        scale = max(_norm(one.gradient), 1e-3 * largest)
        gradients.append(_norm(one.gradient - other.gradient) / scale if scale else 0.0)
    return max(losses), max(gradients)


def _reach(model: nn.Module, watched: Batch, of_S: Tensor) -> Tensor:
    """Return the size [T] of the gradient of the chosen positions' logits at every token's embedding."""
    with _embeddings(model) as seen:
        logits_SV = supervised_logits(model, watched)
    exact = logits_SV[of_S].to(torch.promote_types(logits_SV.dtype, torch.float32))
    gradient_BTH = _gradient(exact.square().mean(), seen[0])
    return gradient_BTH.abs().amax(dim=-1).flatten()


@contextmanager
def _embeddings(model: nn.Module) -> Iterator[list[Tensor]]:
    """Make the input embeddings of the forward passes inside leaves of the graph, and collect them."""
    seen: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = unwrapped(model).get_input_embeddings().register_forward_hook(cut)
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode with gradients on; then restore the mode of every module and all random states."""
    training = [module for module in model.modules() if module.training]
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices), torch.enable_grad():
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    """Differentiate without touching the gradients that parameters hold."""
    if not value.requires_grad:
        return torch.zeros_like(at)
    (gradient,) = torch.autograd.grad(value, at, allow_unused=True, materialize_grads=True)
    return gradient


def _watch(batch: Batch, positions: npt.NDArray[np.int64]) -> Batch:
    """Return the batch with its supervised positions replaced by `positions` of its stream."""
    documents = np.repeat(np.arange(batch.num_documents), batch.lengths)
    return replace(
        batch,
        supervised=torch.from_numpy(positions).to(batch.device),
        supervised_document=torch.from_numpy(documents[positions]).to(batch.device),
    )


def _spread(batch: Batch) -> npt.NDArray[np.int64]:
    """Choose positions of every document: its first tokens, where state would arrive, its middle and its last."""
    stops = np.cumsum(batch.lengths)
    starts = stops - batch.lengths
    chosen = np.unique(np.concatenate([starts, np.minimum(starts + 1, stops - 1), (starts + stops) // 2, stops - 1]))
    return chosen[np.unique(np.linspace(0, len(chosen) - 1, min(len(chosen), MOST_POSITIONS)).astype(np.int64))]


def _span(batch: Batch, document: int) -> tuple[int, int]:
    start = sum(batch.lengths[:document])
    return start, start + batch.lengths[document]


def _with_other_tokens(watched: Batch, span: tuple[int, int]) -> Batch:
    """Replace each token of a span of the stream by another one that occurs in the batch."""
    present = torch.unique(watched.input_ids)
    if len(present) == 1:
        present = torch.stack([present[0], (present[0] + 1) % 2])
    ids = watched.input_ids.clone()
    place = torch.searchsorted(present, ids[0, slice(*span)])
    ids[0, slice(*span)] = present[(place + 1) % len(present)]
    return replace(watched, input_ids=ids)


def _logit_tolerance(logits: Tensor, noise: float) -> float:
    """Allow what measuring twice moves, and rounding where a mixture of experts regroups its rows."""
    return NOISE_MARGIN * noise + NOISE_MARGIN * torch.finfo(logits.dtype).eps * _largest(logits)


def _isolation_detail(leak: float, gradient: float, control: float, tolerance: float) -> str:
    if leak > tolerance:
        return f"another document moved a logit by {leak:.3g} (tolerance {tolerance:.3g})"
    if gradient != 0.0:
        return f"the gradient reaches into another document ({gradient:.3g} instead of exactly 0)"
    if control <= tolerance:
        return "a changed document moved not even its own logits, so this probe sees nothing"
    return "no logit moved and no gradient crossed between documents"


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.double()))
