"""One optimiser step: its packs forward and backward, gradients summed over ranks, clipped, applied.

Dropout is drawn from a generator seeded by (seed, step, pack) before each forward pass, so that it does not matter which rank
runs a pack, what ran before it, or whether the run was interrupted in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch

from tutelage.chat.documents import lengths_of
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout, Precision
from tutelage.data.order import hash64
from tutelage.model.head import LossSums, supervised_losses
from tutelage.model.noise import noisy_embeddings
from tutelage.pack.batch import Batch, make_batches, pack_batch
from tutelage.pack.plan import Step
from tutelage.parallel import agree
from tutelage.parallel.shard import is_in_parts
from tutelage.train.objective import Reweighing, SourceTotals, TokenSums, step_loss, total
from tutelage.train.optim import clip_gradients
from tutelage.train.passes import idle_batch, passes_of_rank


@dataclass(frozen=True)
class StepSettings:
    """What every step of a run has in common."""

    layout: Layout
    micro_tokens: int
    seed: int
    precision: Precision
    device: torch.device
    largest_grad_norm: float
    neftune_alpha: float
    sources: tuple[str, ...]

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass: bf16 where asked for, over weights that stay fp32."""
        if self.precision is Precision.BF16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


@dataclass(frozen=True)
class StepResult:
    """What one step did, summed over all ranks. `loss` is in nats per unit of weight.

    `num_tokens` are those of its documents, `computed_tokens` those that the model computed: shared prefixes once.
    `left_out` is why the optimiser did not take the step; None where it did.
    """

    by_source: dict[str, SourceTotals]
    by_slice: dict[str, LossSums]
    weight_sum: float
    num_tokens: int
    computed_tokens: int
    num_documents: int
    num_packs: int
    grad_norm: float
    seconds: float
    left_out: str | None = None

    @property
    def sums(self) -> LossSums:
        """Sums over all sources."""
        return total(self.by_source)

    @property
    def loss(self) -> float:
        """Weighted mean loss of the step."""
        return self.sums.loss_sum / self.weight_sum


Judge: TypeAlias = Callable[[float, float], str | None]
"""Says why a step with this loss (nats per unit of weight) and gradient norm must not be taken; None if it may."""


def nothing_is_wrong(loss: float, grad_norm: float) -> None:
    """Let every step be taken."""


def train_step(
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    planned: Step,
    documents: Sequence[Rendered],
    settings: StepSettings,
    *,
    step: int,
    judge: Judge = nothing_is_wrong,
    reweighing: Reweighing = Reweighing(),
) -> StepResult:
    """Run one optimiser step, the `step`th, on the documents that the plan gave it.

    `judge` is asked whether the step may be taken. Where it says why not, on any rank, weights and moments of all stay as they were.
    """
    started = time.perf_counter()
    sums = accumulate_gradients(model, planned, documents, settings, step=step, reweighing=reweighing)
    weight_sum = reweighing.of_step(planned, documents)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    if not is_in_parts(model):  # whose gradients were summed on the way back
        agree.sum_gradients(parameters)
    # The one moment of a step at which the host waits for the device: whether to take the step depends on its figures.
    totals, grad_norm = sums.with_figure(clip_gradients(parameters, settings.largest_grad_norm))
    fault = judge(total(totals.by_source).loss_sum / weight_sum, grad_norm)
    if agree.any_rank(fault is not None, settings.device):
        fault = fault or "another rank saw a loss or gradient that must not be learned from"
    else:
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return StepResult(
        by_source=totals.by_source,
        by_slice=totals.by_slice,
        weight_sum=weight_sum,
        num_tokens=planned.num_tokens,
        computed_tokens=planned.computed_tokens,
        num_documents=len(planned.documents),
        num_packs=len(planned.packs),
        grad_norm=grad_norm,
        seconds=time.perf_counter() - started,
        left_out=fault,
    )


def accumulate_gradients(
    model: torch.nn.Module,
    planned: Step,
    documents: Sequence[Rendered],
    settings: StepSettings,
    *,
    step: int,
    reweighing: Reweighing = Reweighing(),
) -> TokenSums:
    """Add the gradient of this rank's packs to the parameters; return the sums over their tokens.

    A rank without a pack adds nothing.
    """
    sums = TokenSums(settings.sources, settings.device)
    weight_sum = reweighing.of_step(planned, documents)
    for laid_out, counts in step_batches(model, planned, documents, settings, step=step):
        batch = reweighing.of_batch(laid_out)
        noise = noisy_embeddings(model, batch, alpha=settings.neftune_alpha, seed=settings.seed, step=step)
        with settings.autocast(), noise:
            losses = supervised_losses(model, batch)
        if counts:
            sums.add(losses, batch)
        step_loss(losses, weight_sum).backward()  # type: ignore[no-untyped-call]
    return sums


def step_batches(
    model: torch.nn.Module, planned: Step, documents: Sequence[Rendered], settings: StepSettings, *, step: int
) -> Iterator[tuple[Batch, bool]]:
    """Yield this rank's batches of a step on the device, seeding dropout before each, and whether this rank counts its losses.

    Nothing is prepared by another thread: a pack is laid out in 0.1 ms for 1,000 tokens, a five thousandth of a step of a 15 M model on a
    CPU, and while a GPU works off what it was given, as nothing before the end of a step waits for it.
    """
    if settings.layout is Layout.PACKED:
        tokens = lengths_of(documents)
        lengths: list[Sequence[int]] = [
            [int(tokens[index]) - common for index, common in zip(pack, planned.shared_in(number), strict=True)]
            for number, pack in enumerate(planned.packs)
        ]
    else:  # grouped by length over the whole step, so that rows need little padding
        batches = make_batches(_of(planned.documents, documents), settings.layout, settings.micro_tokens)
        lengths = [batch.lengths for batch in batches]
    for own in passes_of_rank(model, lengths):
        number = own.number
        if number is None:
            idle = idle_batch(_of(planned.documents, documents), settings.layout)
            yield idle.to(settings.device), False
            continue
        torch.manual_seed(hash64(settings.seed, step, number) >> 1)  # torch takes 63 bits
        if settings.layout is Layout.PACKED:
            batch = pack_batch(_of(planned.packs[number], documents), planned.shared_in(number))
        else:
            batch = batches[number]
        yield batch.to(settings.device), own.counts


def _of(indices: Sequence[int], documents: Sequence[Rendered]) -> list[Rendered]:
    return [documents[index] for index in indices]
