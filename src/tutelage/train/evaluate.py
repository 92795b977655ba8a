"""The held-out loss, token-exact and per source. It draws no random number and changes nothing that training depends on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tutelage.chat.rendered import Rendered
from tutelage.model.head import LossSums, supervised_losses
from tutelage.pack.batch import make_batches
from tutelage.parallel import agree
from tutelage.train.objective import SourceTotals, TokenSums, total
from tutelage.train.passes import idle_batch, passes_of_rank
from tutelage.train.probe import Probed
from tutelage.train.step import StepSettings
from tutelage.train.stop import Halt, never


@dataclass(frozen=True)
class Evaluation:
    """Sums over the held-out tokens of each source and of each slice, over all ranks, and what the gate saw."""

    step: int
    by_source: dict[str, SourceTotals]
    by_slice: dict[str, LossSums]
    seconds: float
    probed: Probed = field(default_factory=Probed)

    @property
    def loss(self) -> float:
        """Weighted mean loss in nats per unit of weight."""
        sums = total(self.by_source)
        return sums.loss_sum / sums.weight_sum if sums.weight_sum else math.nan

    def to_json(self) -> dict[str, object]:
        """Return the line of `evals.jsonl`; a perplexity too large for a float is null."""
        return {
            "step": self.step,
            "loss": self.loss,
            "perplexity": math.exp(self.loss) if self.loss < 700 else None,
            "seconds": self.seconds,
            "per_source": {name: vars(totals.sums) for name, totals in self.by_source.items()},
            "per_slice": {name: vars(sums) for name, sums in self.by_slice.items()},
            "probed": self.probed.to_json(),
        }


def evaluate(
    model: torch.nn.Module, held_out: Sequence[Rendered], settings: StepSettings, *, step: int, halt: Halt = never
) -> Evaluation | None:
    """Compute the loss of every supervised held-out token, without dropout or noise.

    None where `halt`, asked before every pass, said on any rank to leave off: half an evaluation is none.
    """
    started = time.perf_counter()
    sums = TokenSums(settings.sources, settings.device)
    batches = make_batches(held_out, settings.layout, settings.micro_tokens)
    was_training, halted = model.training, False
    model.eval()
    with torch.no_grad():
        for own in passes_of_rank(model, [batch.lengths for batch in batches]):
            if halted := halt():
                break
            batch = idle_batch(held_out, settings.layout) if own.number is None else batches[own.number]
            on_device = batch.to(settings.device)
            with settings.autocast():
                losses = supervised_losses(model, on_device)
            if own.counts:
                sums.add(losses, on_device)
    model.train(was_training)
    if agree.any_rank(halted, settings.device):
        return None
    totals = sums.over_all_ranks()
    return Evaluation(step, totals.by_source, totals.by_slice, time.perf_counter() - started)
