"""What each rank holds of the model, all of it or a part of every weight, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn

from tutelage.config.schema import Parallel
from tutelage.parallel import agree
from tutelage.parallel.shard import shard_model

MOST_OF_MEMORY = 0.5  # of a rank's memory for what replicas keep; activations and gathered layers want the rest


@dataclass(frozen=True)
class SpreadChoice:
    """Whether the ranks are replicas or hold shards, and why."""

    name: Parallel
    reason: str


def choose_spread(model: nn.Module, asked: Parallel, device: torch.device) -> SpreadChoice:
    """Return what each rank is to hold of `model`, which is whole: what `train.parallel` says, else what fits; all ranks agree."""
    choice = spread_for(
        asked, num_ranks=agree.world_size(), kept_bytes=kept_bytes(model), memory_bytes=memory_of_rank(device)
    )
    if asked is not Parallel.AUTO:
        return choice
    if agree.any_rank(choice.name is Parallel.SHARD, device) and choice.name is Parallel.REPLICATE:
        return SpreadChoice(Parallel.SHARD, "another process has too little memory for a whole model")
    return choice


def spread_for(asked: Parallel, *, num_ranks: int, kept_bytes: int, memory_bytes: int) -> SpreadChoice:
    """Return what a rank with `memory_bytes` wants, of a model of which a replica keeps `kept_bytes`."""
    if num_ranks == 1:
        return SpreadChoice(Parallel.REPLICATE, "there is one process")
    if asked is not Parallel.AUTO:
        return SpreadChoice(asked, "asked for by train.parallel")
    return SpreadChoice(
        Parallel.SHARD if kept_bytes > MOST_OF_MEMORY * memory_bytes else Parallel.REPLICATE,
        f"weights, gradients and moments take {kept_bytes / 2**30:.3g} GiB, and a process has {memory_bytes / 2**30:.3g} GiB",
    )


def place_model(
    model: nn.Module, spread: SpreadChoice, device: torch.device, *, products: torch.dtype | None = None
) -> nn.Module:
    """Return `model` on `device`, whole or this rank's part of it; `products` is the type that autocast multiplies in."""
    if spread.name is Parallel.SHARD:
        return shard_model(model, device, products=products)
    return model.to(device)


def kept_bytes(model: nn.Module) -> int:
    """Return the bytes of weights, gradients and the two moments of AdamW, all in the type of their weight."""
    return sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in model.parameters())


def memory_of_rank(device: torch.device) -> int:
    """Return the bytes of a GPU, or of the machine's memory over the processes that `torchrun` started on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
