"""The objective: the weighted sum of token losses, divided by the weight of the whole step.

Pre-training text, instructions, and any mixture of the two differ in their token weights only. The denominator is known from the
plan before the step begins, so neither micro-batches nor ranks nor the layout can change what a token is worth.
"""

# N sources, S supervised tokens of one batch

from __future__ import annotations

import torch

from tutelage.model.head import LossSums, TokenLosses
from tutelage.pack.batch import Batch
from tutelage.parallel import agree


def step_loss(losses: TokenLosses, weight_sum: float) -> torch.Tensor:
    """Return this batch's part of the step's loss: sum of weight * nll over the step's `weight_sum`.

    Units: nats per unit of weight. The parts of all micro-batches and ranks add up to the loss of the step.
    """
    return losses.weighted_sum / weight_sum


class SourceSums:
    """Sums over supervised tokens of each source, kept on the model's device until they are read, once.

    Rows of the table [4, N], fp64: weighted loss, weight, correct tokens, tokens.
    """

    def __init__(self, sources: tuple[str, ...], device: torch.device) -> None:
        self.sources = sources
        self._table = torch.zeros(4, len(sources), dtype=torch.float64, device=device)

    def add(self, losses: TokenLosses, batch: Batch) -> None:
        """Add the supervised tokens of `batch`, without waiting for the device."""
        columns = torch.tensor([self.sources.index(name) for name in batch.document_sources]).to(self._table.device)
        weight = losses.weight.double()
        rows = torch.stack(
            [losses.loss.detach().double() * weight, weight, losses.correct.double(), torch.ones_like(weight)]
        )
        self._table.index_add_(1, columns[losses.document], rows)

    def over_all_ranks(self) -> dict[str, LossSums]:
        """Return the sums of each source over all ranks; sources without a token are left out."""
        columns = agree.sum_across_ranks(self._table.clone()).t().tolist()
        return {
            name: LossSums(loss_sum, weight_sum, round(correct), round(tokens))
            for name, (loss_sum, weight_sum, correct, tokens) in zip(self.sources, columns, strict=True)
            if tokens
        }


def total(by_source: dict[str, LossSums]) -> LossSums:
    """Return the sums over all sources."""
    return sum(by_source.values(), LossSums(0.0, 0.0, 0, 0))
