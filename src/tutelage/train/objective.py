"""The objective: the weighted sum of token losses, divided by the weight of the whole step.

Pre-training text, instructions, and any mixture of the two differ in their token weights only. The denominator is known from the
plan before the step begins, so neither micro-batches nor ranks nor the layout can change what a token is worth.
"""

# N sources, D documents and S supervised tokens of one batch

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tutelage.model.head import LossSums, TokenLosses
from tutelage.pack.batch import Batch
from tutelage.parallel import agree


def step_loss(losses: TokenLosses, weight_sum: float) -> torch.Tensor:
    """Return this batch's part of the step's loss: sum of weight * nll over the step's `weight_sum`.

    Units: nats per unit of weight. The parts of all micro-batches and ranks add up to the loss of the step.
    """
    return losses.weighted_sum / weight_sum


@dataclass(frozen=True)
class SourceTotals:
    """What the model saw of one source: the loss sums of its supervised tokens, and all that was read for them."""

    sums: LossSums
    read_tokens: int
    read_documents: int


class SourceSums:
    """Sums over the tokens of each source, kept on the model's device until they are read, once.

    Rows of the table [4, N], fp64: weighted loss, weight, correct tokens, supervised tokens. What the host knows stays there, [2, N]:
    all tokens, documents.
    """

    def __init__(self, sources: tuple[str, ...], device: torch.device) -> None:
        self.sources = sources
        self._table = torch.zeros(4, len(sources), dtype=torch.float64, device=device)
        self._read = torch.zeros(2, len(sources), dtype=torch.float64)

    def add(self, losses: TokenLosses, batch: Batch) -> None:
        """Add the tokens of `batch`, without waiting for the device."""
        source_D = torch.tensor([self.sources.index(name) for name in batch.document_sources])
        weight_S = losses.weight.double()
        rows = [losses.loss.double() * weight_S, weight_S, losses.correct.double(), torch.ones_like(weight_S)]
        on_device = source_D.to(self._table.device, non_blocking=True)
        self._table.index_add_(1, on_device[losses.document], torch.stack(rows))
        read = torch.tensor([batch.lengths, [1] * batch.num_documents], dtype=torch.float64)
        self._read.index_add_(1, source_D, read)

    def over_all_ranks(self) -> dict[str, SourceTotals]:
        """Return the totals of each source over all ranks; sources without a token are left out."""
        return self.with_figure(self._table.new_zeros(()))[0]

    def with_figure(self, figure: torch.Tensor) -> tuple[dict[str, SourceTotals], float]:
        """Return the totals over all ranks, and `figure` [] of the same device, in one transfer: the host waits once for both."""
        sums = torch.cat([self._table, self._read.to(self._table.device, non_blocking=True)])
        *flat, value = torch.cat([agree.sum_across_ranks(sums).t().flatten(), figure.double()[None]]).tolist()
        columns = [flat[start : start + len(sums)] for start in range(0, len(flat), len(sums))]
        totals = {
            name: SourceTotals(
                LossSums(loss_sum, weight_sum, round(correct), round(tokens)), round(read), round(documents)
            )
            for name, (loss_sum, weight_sum, correct, tokens, read, documents) in zip(
                self.sources, columns, strict=True
            )
            if read
        }
        return totals, value


def total(by_source: Mapping[str, SourceTotals]) -> LossSums:
    """Return the loss sums over all sources."""
    return sum((totals.sums for totals in by_source.values()), LossSums(0.0, 0.0, 0, 0))
