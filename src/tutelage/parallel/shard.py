"""A model spread over the ranks of a run: each holds a part of every weight, gradient and moment (FSDP2 of torch).

A rank gathers the weights of one decoder layer when it comes to it and lets them go again; gradients are summed and cut up on the
way back. What is outside of the layers (embeddings, last norm, head) is gathered for the whole pass, because the loss reads the
head's weights beside the model's own forward pass.

A tensor-parallel model, which transformers loads in parts by the plan of its architecture, has tensors of the same kind; what is said
of parts here holds for both. All of it is a no-op for a whole model, so that callers are written once. Where a docstring says
"every rank", a rank that stays away leaves the others waiting.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from tutelage.errors import ModelError
from tutelage.parallel import agree


def shard_model(model: nn.Module, device: torch.device, *, products: torch.dtype | None = None) -> nn.Module:
    """Leave this rank its part of `model` on `device`, and return the model, changed in place.

    Every rank calls it, and none waits here for another. The model comes whole, on the CPU or the device, and the same on every
    rank. `products` is the type in which autocast multiplies matrices: those of decoder layers are then gathered in it, rounded as
    every product would round them anyway, at half the traffic.

    Source: Zhao et al. 2023, "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", arXiv 2304.11277.
    Raises: ModelError when the model does not say which of its modules are its layers.
    """
    everybody = dist.group.WORLD
    assert everybody is not None  # there is more than one rank
    mesh = DeviceMesh.from_group(everybody, device.type)
    exact = MixedPrecisionPolicy(reduce_dtype=_at_least_fp32(model))
    for layer in decoder_layers(model):
        norms = [module for module in layer.modules() if type(module).__name__.endswith("Norm")]
        if products is None or not _multiplies_only(layer, norms):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=exact)
            continue
        for norm in norms:  # units of their own, as nothing rounds their weights
            fully_shard(norm, mesh=mesh, reshard_after_forward=True, mp_policy=exact)
        rounded = MixedPrecisionPolicy(param_dtype=products, reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=rounded)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=exact)
    for unit in _units(model):
        # The loss is divided by the weight of the whole step already; torch would divide by the ranks on top.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no sum with a factor
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether `model` is spread over the ranks."""
    return isinstance(model, FSDPModule)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that the architecture names as those to keep in one piece: its layers, in order.

    Raises: ModelError when it names none.
    """
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers: list[nn.Module] = []
    inside: set[nn.Module] = set()  # some architectures name a layer and a part of it
    for module in model.modules():
        if type(module).__name__ in names and module not in inside:
            layers.append(module)
            inside.update(module.modules())
    if not layers:
        raise ModelError(
            f"{type(model).__name__} does not say which of its modules are its layers, so it cannot be sharded",
            mend="train.parallel=replicate",
        )
    return layers


def is_tensor_parallel(model: nn.Module) -> bool:
    """Whether the ranks compute every pass of `model` together, each with its part of the matrices."""
    return not is_sharded(model) and any(spread_over_ranks(parameter) for parameter in model.parameters())


def is_in_parts(model: nn.Module) -> bool:
    """Whether no rank holds all of `model`."""
    return is_sharded(model) or is_tensor_parallel(model)


@contextmanager
def head_gathered(model: nn.Module) -> Iterator[None]:
    """Hold the weights outside of the layers whole for a forward pass and the loss that follows it. Every rank enters.

    With gradients on they stay whole beyond it, until the backward pass has used them.
    """
    if isinstance(model, FSDPModule):
        model.unshard()
    yield
    if not torch.is_grad_enabled():
        release(model)


def release(model: nn.Module) -> None:
    """Let go of gathered weights, as before the first forward pass: what follows reads this rank's parts."""
    for unit in _units(model):
        unit.reshard()


@contextmanager
def in_step(model: nn.Module) -> Iterator[None]:
    """Let every rank read the main rank's logits from forward passes inside, so that all choose the same tokens.

    A rank whose rounding chose another one might stop an answer earlier, and leave the others waiting at the next layer.
    """
    if not is_in_parts(model):
        yield
        return

    def share(_: nn.Module, __: Any, output: Any) -> None:
        output.logits = output.logits.contiguous()
        dist.broadcast(output.logits, src=0)

    handle = model.register_forward_hook(share)
    try:
        yield
    finally:
        handle.remove()
        release(model)


def spread_over_ranks(tensor: Tensor) -> bool:
    """Whether each rank holds a part of `tensor` only."""
    return isinstance(tensor, DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a parameter or moment, sharing its memory; a whole tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def place_of_part(tensor: Tensor) -> tuple[slice, ...]:
    """Return where in the whole tensor this rank's part lies, in every dimension."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    shape, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))


def part_like(parameter: Tensor, part: Tensor) -> Tensor:
    """Return this rank's `part` of a moment as a tensor that is spread as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return part
    spread: Tensor = DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return spread


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with what every rank holds of it. Every rank calls it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, *, trainable_only: bool) -> dict[str, Tensor] | None:
    """Gather a sharded model on the CPU of the main rank, one tensor at a time, under the names of its state dict.

    Every rank calls it; ranks other than the main one get an empty dict, and all of them None where the model is whole.
    """
    if not is_in_parts(model):
        return None
    release(model)
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False) if not parameter.requires_grad}
    found: dict[str, Tensor] = {}
    gathered: dict[int, Tensor] = {}  # tied weights once
    for name, tensor in model.state_dict(keep_vars=True).items():
        if trainable_only and name in frozen:
            continue
        if id(tensor) not in gathered:
            full = whole(tensor.detach())
            gathered[id(tensor)] = full.cpu() if agree.is_main() else full.new_empty(0)
        found[name] = gathered[id(tensor)]
    return found if agree.is_main() else {}


def _units(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _multiplies_only(layer: nn.Module, norms: list[nn.Module]) -> bool:
    """Whether every parameter of a layer, its norms' aside, is that of a linear layer, whose products autocast rounds."""
    of_norms = {id(parameter) for norm in norms for parameter in norm.parameters()}
    of_linear = {id(p) for module in layer.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
    return {id(parameter) for parameter in layer.parameters()} <= of_norms | of_linear


def _at_least_fp32(model: nn.Module) -> torch.dtype | None:
    """Return the type in which gradients are summed over ranks, None where their own is exact enough."""
    coarse = {p.dtype for p in model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    return torch.float32 if coarse else None
