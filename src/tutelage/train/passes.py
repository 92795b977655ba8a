"""Which forward passes this rank runs of those that are to be run, and what it runs where it has none.

The ranks of a sharded model gather weights from one another at every layer, so that all must run the same number of passes. Replicas
meet only at the end. The ranks of a tensor-parallel model run every pass together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout
from tutelage.model.attention import unwrapped
from tutelage.pack.batch import Batch, make_batches
from tutelage.parallel import agree
from tutelage.parallel.deal import deal, pass_cost
from tutelage.parallel.shard import is_sharded, is_tensor_parallel


@dataclass(frozen=True)
class Pass:
    """A forward pass of this rank. `number` is None for one that it runs only to keep the others company; `counts` says whether
    this rank is the one to count its losses."""

    number: int | None
    counts: bool


def passes_of_rank(model: torch.nn.Module, lengths: Sequence[Sequence[int]]) -> list[Pass]:
    """Return this rank's passes, in order.

    `lengths` are those of the documents of each pass.
    """
    if is_tensor_parallel(model):
        return [Pass(number, agree.is_main()) for number in range(len(lengths))]
    hidden_size: int = unwrapped(model).config.get_text_config().hidden_size
    costs = [pass_cost(of_pass, hidden_size) for of_pass in lengths]
    mine = deal(costs, agree.world_size())[agree.rank()]
    return [Pass(number, number is not None) for number in mine if number is not None or is_sharded(model)]


def idle_batch(documents: Sequence[Rendered], layout: Layout) -> Batch:
    """Return a batch that costs little and whose losses and gradients are all zero: the shortest document without weight."""
    shortest = min(documents, key=len)
    without_loss = replace(shortest, weights=np.zeros_like(shortest.weights))
    (batch,) = make_batches([without_loss], layout, len(shortest))
    return batch
