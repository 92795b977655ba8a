"""AdamW, the course of the learning rate, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from tutelage.config.schema import Schedule, TrainConfig
from tutelage.parallel.shard import whole


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return the trainable parameters in two groups: matrices, which decay, and vectors (norms, biases), which do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim >= 2]
    vectors = [p for p in trainable if p.ndim < 2]
    groups = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def build_optimiser(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of `model`.

    The fused implementation makes one pass over the memory of weights, gradients and moments where the plain one makes ten;
    torch has it for floating-point tensors on CPU and CUDA.
    Source: Loshchilov and Hutter, arXiv 1711.05101.
    """
    devices = {p.device.type for p in model.parameters() if p.requires_grad}
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=devices <= {"cpu", "cuda"},
    )


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """Return the learning rate of 1-based `step` of `num_steps`: linear warm-up to the peak, then the schedule.

    The first step already learns (warm-up counts from 1), and the last one is at `final_fraction` of the peak.

    Example:
        >>> config = TrainConfig(learning_rate=1.0, warmup_fraction=0.2, schedule="linear", final_fraction=0.0)
        >>> [round(learning_rate(step, 10, config), 3) for step in (1, 2, 6, 10)]
        [0.5, 1.0, 0.5, 0.0]
    """
    warmup_steps = math.ceil(config.warmup_fraction * num_steps)
    if step <= warmup_steps:
        return config.learning_rate * step / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if config.schedule is Schedule.COSINE:
        remaining = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.schedule is Schedule.LINEAR:
        remaining = 1 - progress
    else:
        return config.learning_rate
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * remaining)


def set_learning_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    """Use `value` for every parameter group from now on."""
    for group in optimiser.param_groups:
        group["lr"] = value


def clip_gradients(parameters: Iterable[torch.nn.Parameter], largest_norm: float) -> torch.Tensor:
    """Scale the gradients so that their joint 2-norm is at most `largest_norm` (0: leave them); return the norm before.

    Returns:
        The norm as a zero-dimensional tensor on the gradients' device, so that nothing waits for the GPU here.
    """
    parameters = [p for p in parameters if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if largest_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm)
    return norm
