"""The objective: the weighted sum of token losses, divided by the weight of the whole step.

Pre-training text, instructions, and any mixture of the two differ in their token weights only. The denominator is known from the
plan before the step begins, so neither micro-batches nor ranks nor the layout can change what a token is worth.
"""

# N sources, C cells of slices, D documents and S supervised tokens of one batch

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from tutelage.chat.documents import loss_weights_of
from tutelage.chat.rendered import Rendered
from tutelage.model.head import LossSums, TokenLosses
from tutelage.pack.batch import Batch
from tutelage.pack.plan import Step
from tutelage.pack.slices import NUM_CELLS, SLICES
from tutelage.parallel import agree


def step_loss(losses: TokenLosses, weight_sum: float) -> torch.Tensor:
    """Return this batch's part of the step's loss: sum of weight * nll over the step's `weight_sum`.

    Units: nats per unit of weight. The parts of all micro-batches and ranks add up to the loss of the step.
    """
    return losses.weighted_sum / weight_sum


@dataclass(frozen=True)
class Reweighing:
    """By how much the weights of the tokens of some sources are multiplied, beyond what the plan says of them."""

    sources: frozenset[str] = frozenset()
    factor: float = 1.0

    def of_step(self, planned: Step, documents: Sequence[Rendered]) -> float:
        """Return the weight of a whole step, known before it begins."""
        if self.factor == 1:
            return planned.weight_sum
        own = [number for number in planned.documents if documents[number].source in self.sources]
        return planned.weight_sum + (self.factor - 1) * sum(loss_weights_of([documents[number] for number in own]))

    def of_batch(self, batch: Batch) -> Batch:
        """Return the batch with these weights."""
        if self.factor == 1:
            return batch
        factor_D = torch.tensor([self.factor if name in self.sources else 1.0 for name in batch.document_sources])
        weights_S = batch.supervised_weights * factor_D.to(batch.device, non_blocking=True)[batch.supervised_document]
        return replace(batch, supervised_weights=weights_S)


@dataclass(frozen=True)
class SourceTotals:
    """What the model saw of one source: the loss sums of its supervised tokens, and all that was read for them."""

    sums: LossSums
    read_tokens: int
    read_documents: int


@dataclass(frozen=True)
class Totals:
    """What the model saw, over all ranks: by source, and by slice (see `pack.slices`); what had no token is left out."""

    by_source: dict[str, SourceTotals]
    by_slice: dict[str, LossSums]


class TokenSums:
    """Sums over tokens by source and by slice, kept on the model's device until they are read, once.

    Rows of the tables [4, N] and [4, C], fp64: weighted loss, weight, correct tokens, supervised tokens. What the host knows stays
    there, [2, N]: all tokens, documents.
    """

    def __init__(self, sources: tuple[str, ...], device: torch.device) -> None:
        self.sources = sources
        self._by_source = torch.zeros(4, len(sources), dtype=torch.float64, device=device)
        self._by_cell = torch.zeros(4, NUM_CELLS, dtype=torch.float64, device=device)
        self._read = torch.zeros(2, len(sources), dtype=torch.float64)

    def add(self, losses: TokenLosses, batch: Batch) -> None:
        """Add the tokens of `batch`, without waiting for the device."""
        source_D = torch.tensor([self.sources.index(name) for name in batch.document_sources])
        weight_S = losses.weight.double()
        rows = torch.stack(
            [losses.loss.double() * weight_S, weight_S, losses.correct.double(), torch.ones_like(weight_S)]
        )
        on_device = source_D.to(self._by_source.device, non_blocking=True)
        self._by_source.index_add_(1, on_device[losses.document], rows)
        self._by_cell.index_add_(1, batch.supervised_cell, rows)
        read = torch.tensor([batch.lengths, [1] * batch.num_documents], dtype=torch.float64)
        self._read.index_add_(1, source_D, read)

    def over_all_ranks(self) -> Totals:
        """Return the totals over all ranks."""
        return self.with_figure(self._by_source.new_zeros(()))[0]

    def with_figure(self, figure: torch.Tensor) -> tuple[Totals, float]:
        """Return the totals over all ranks, and `figure` [] of the same device, in one transfer: the host waits once for both."""
        sums = torch.cat([self._by_source, self._read.to(self._by_source.device, non_blocking=True)])
        own = torch.cat([sums.t().flatten(), self._by_cell.t().flatten()])
        host = torch.cat([agree.sum_across_ranks(own), figure.double()[None]]).cpu().numpy()
        of_sources, of_cells = host[: sums.numel()], host[sums.numel() : -1]
        return Totals(_by_source(self.sources, of_sources), _by_slice(of_cells)), float(host[-1])


def _by_source(sources: tuple[str, ...], flat: npt.NDArray[np.float64]) -> dict[str, SourceTotals]:
    """Return the totals of sources from their columns of 6, end to end; sources without a token are left out."""
    return {
        name: SourceTotals(_loss_sums(sums), round(read), round(documents))
        for name, (*sums, read, documents) in zip(sources, flat.reshape(len(sources), 6).tolist(), strict=True)
        if read
    }


def _by_slice(flat: npt.NDArray[np.float64]) -> dict[str, LossSums]:
    """Return the sums of slices from the columns of 4 of all cells, end to end; slices without a token are left out."""
    of_cells = flat.reshape(NUM_CELLS, 4)
    sums = {name: _loss_sums(of_cells[cells].sum(axis=0).tolist()) for name, cells in SLICES.items()}
    return {name: of_slice for name, of_slice in sums.items() if of_slice.tokens}


def _loss_sums(column: Sequence[float]) -> LossSums:
    loss_sum, weight_sum, correct, tokens = column
    return LossSums(loss_sum, weight_sum, round(correct), round(tokens))


def total(by_source: Mapping[str, SourceTotals]) -> LossSums:
    """Return the loss sums over all sources."""
    return sum((totals.sums for totals in by_source.values()), LossSums(0.0, 0.0, 0, 0))
