"""AdamW, the course of the learning rate, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

import tutelage.model.hub_kernels  # noqa: F401  # bitsandbytes may follow
from tutelage.config.schema import Optimiser, Schedule, TrainConfig
from tutelage.errors import ConfigError
from tutelage.parallel.shard import is_sharded, spread_over_ranks, whole

BLOCK_8BIT = 256  # values that bitsandbytes scales together
LEAST_8BIT_SIZE = 4096  # values; moments of smaller tensors are not worth rounding
LEAST_PAGED_SIZE = 100_000  # values; bitsandbytes leaves moments of smaller tensors on the GPU
EIGHT_BIT = (Optimiser.ADAMW_8BIT, Optimiser.PAGED_ADAMW_8BIT)


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return the trainable parameters in two groups: matrices, which decay, and vectors (norms, biases), which do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.ndim >= 2]
    vectors = [p for p in trainable if p.ndim < 2]
    groups = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": of_kind, "weight_decay": decay} for params, decay in groups for of_kind in _by_kind(params)]


def _by_kind(parameters: Iterable[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """Return the parameters that ranks hold in parts and those that they hold whole, which no operation takes together."""
    parameters = list(parameters)
    kinds = ([p for p in parameters if spread_over_ranks(p) is in_parts] for in_parts in (True, False))
    return [of_kind for of_kind in kinds if of_kind]


def build_optimiser(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters of `model`.

    The fused implementation makes one pass over the memory of weights, gradients and moments where the plain one makes ten;
    torch has it for floating-point tensors on CPU and CUDA.
    Source: Loshchilov and Hutter, arXiv 1711.05101.
    Raises:
        ConfigError: `train.optimiser` cannot be used here.
    """
    groups = parameter_groups(model, config.weight_decay)
    devices = {p.device.type for p in model.parameters() if p.requires_grad}
    if config.optimiser in EIGHT_BIT:
        return _build_8bit(model, groups, config, devices)
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=devices <= {"cpu", "cuda"},
    )


def _build_8bit(
    model: torch.nn.Module, groups: list[dict[str, object]], config: TrainConfig, devices: set[str]
) -> torch.optim.Optimizer:
    """Return AdamW whose moments are 8-bit numbers, scaled in blocks of 256.

    Moments of embeddings, whose gradients differ by orders of magnitude between rows, and those of small tensors stay in 32 bits. Paged
    moments are memory that GPU and host share: the driver brings them to whichever reads them.
    Source: Dettmers et al., arXiv 2110.02861, section 2.3; of the pages, arXiv 2305.14314, section 3.
    """
    asked = f"train.optimiser={config.optimiser.value}"
    is_paged = config.optimiser is Optimiser.PAGED_ADAMW_8BIT
    if is_sharded(model):
        raise ConfigError(
            f"{asked} scales moments in blocks, which a sharded model would cut up",
            mend="train.optimiser=adamw, or train.parallel=replicate",
        )
    if is_paged and devices != {"cuda"}:
        raise ConfigError(
            f"{asked} moves moments between a GPU and the host, and the weights are on {' and '.join(sorted(devices))}",
            mend="train.optimiser=adamw_8bit",
        )
    try:
        from bitsandbytes.optim import AdamW8bit, GlobalOptimManager, PagedAdamW8bit
    except ImportError as error:
        raise ConfigError(f"{asked} needs bitsandbytes: {error}", mend='pip install "tutelage[low-memory]"') from error
    GlobalOptimManager.get_instance().override_config(_embeddings(model), "optim_bits", 32)
    optimiser: torch.optim.Optimizer = (PagedAdamW8bit if is_paged else AdamW8bit)(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, min_8bit_size=LEAST_8BIT_SIZE
    )
    return optimiser


def empty_8bit_moments(model: torch.nn.Module, *, paged: bool = False) -> list[torch.Tensor]:
    """Return tensors of the sizes that the moments of `adamw_8bit` have, with nothing in them; of `paged` ones, those that stay put."""
    moments = []
    in_32_bits = set(map(id, _embeddings(model)))
    for parameter in (p for p in model.parameters() if p.requires_grad):
        is_8bit = id(parameter) not in in_32_bits and parameter.numel() >= LEAST_8BIT_SIZE
        for _ in range(2):
            if not paged or parameter.numel() < LEAST_PAGED_SIZE:
                moments.append(torch.empty_like(parameter, dtype=torch.uint8 if is_8bit else torch.float32))
            if is_8bit:
                blocks = -(-parameter.numel() // BLOCK_8BIT)
                moments.append(torch.empty(blocks, dtype=torch.float32, device=parameter.device))
    return moments


def state_8bit(optimiser: Any, parameter: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the state of a parameter as `adamw_8bit` or its paged form holds it, of the tensors in a checkpoint of either.

    The step is a number there, and the two tables that turn 8 bits into a number are the same for all parameters. Paged moments lie
    where the optimiser puts them.
    """
    state: dict[str, Any] = {**tensors, "step": int(tensors["step"])}
    if getattr(optimiser, "is_paged", False):
        for name in ("state1", "state2"):
            state[name] = optimiser.get_state_buffer(parameter, dtype=tensors[name].dtype).copy_(tensors[name])
    if "absmax1" in tensors:
        if not optimiser.name2qmap:
            optimiser.fill_qmap()
        tables = {name: table.to(tensors["state1"].device) for name, table in optimiser.name2qmap.items()}
        state |= {"qmap1": tables["dynamic"], "qmap2": tables["udynamic"]}
    return state


def _embeddings(model: torch.nn.Module) -> list[torch.Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)]


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
    kinds = _by_kind(p for p in parameters if p.grad is not None)
    norms = [whole(torch.nn.utils.get_total_norm([p.grad for p in of_kind if p.grad is not None])) for of_kind in kinds]
    norm = norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms)
    if largest_norm > 0:
        for of_kind in kinds:
            torch.nn.utils.clip_grads_with_norm_(of_kind, largest_norm, norm)
    return norm
