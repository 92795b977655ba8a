"""How much memory a step needs, and of what: found by taking the step on tensors that have shapes and no data.

The code that runs is the training step's own, model, loss, clipping and optimiser, so any architecture, method, layout and kind of
checkpointing is counted as it is. torch's fake tensors stand for weights and batch; every storage is followed from the
operation that makes it to its end, and the largest sum of those alive at once is the peak. What kernels take for themselves
while they run is not seen, and a gradient that autograd adds to in place, as that of a tied head, is counted as if it did not. A
second or less for a model of a few dozen layers.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tutelage.config.schema import Optimiser, TrainConfig
from tutelage.model.head import supervised_losses
from tutelage.model.noise import noisy_embeddings
from tutelage.model.quantise import quantised_layers, scales_of, without_values
from tutelage.pack.batch import Batch
from tutelage.parallel.shard import is_in_parts, own_part
from tutelage.train.objective import step_loss
from tutelage.train.optim import EIGHT_BIT, build_optimiser, clip_gradients, empty_8bit_moments
from tutelage.train.step import StepSettings


class Part(StrEnum):
    """What memory is for."""

    WEIGHTS = "weights"
    FROZEN = "frozen_weights"
    CASTS = "weights_in_bf16"
    """Copies that autocast makes of fp32 weights and keeps for the backward pass."""
    GRADIENTS = "gradients"
    OPTIMISER = "optimiser"
    ACTIVATIONS = "activations"
    LOSS = "loss"
    """Head and cross-entropy: a chunk of logits, and the gradients made with it."""
    SCRATCH = "scratch"
    """What the backward pass and the optimiser hold between two operations."""
    BATCH = "batch"


@dataclass(frozen=True)
class Peak:
    """The moment of a step at which most is alive at once, in bytes by part."""

    bytes_by_part: dict[Part, int]

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(self.bytes_by_part.values())

    @property
    def beyond_weights(self) -> int:
        """Bytes that are not there yet when the model is."""
        there = (Part.WEIGHTS, Part.FROZEN)
        return sum(size for part, size in self.bytes_by_part.items() if part not in there)


class UnpredictableError(Exception):
    """The model decides by values what it computes, so that shapes alone do not tell."""


def predict_peak(
    model: nn.Module, batch: Batch, settings: StepSettings, config: TrainConfig, *, accumulates: bool
) -> Peak:
    """Return the peak of a step that holds `batch`, on `settings.device`; `model` may be on the meta device.

    `accumulates` says that gradients of other batches of the step are there already. Neither the model nor any random state is
    changed.

    Raises:
        UnpredictableError: a step of this model cannot be taken without values.
    """
    if is_in_parts(model):
        raise UnpredictableError("its weights are spread over the ranks")
    scales = [tensor for layer in quantised_layers(model) for tensor in scales_of(layer)]
    try:
        with (
            _quiet_about_failures(),
            torch.random.fork_rng(devices=[]),
            FakeTensorMode(allow_non_fake_inputs=True),
            _without_data(model, settings.device),
        ):
            return _peak_of_step(model, batch, settings, config, scales, accumulates=accumulates)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError) as error:
        # Whatever a model does with values that are not there must not stop a run that has them.
        raise UnpredictableError(str(error).strip().split("\n")[0]) from error


def standing_bytes(model: nn.Module) -> dict[Part, int]:
    """Return what is there whatever a step computes: weights, gradients and AdamW's moments; of a sharded model, this rank's part."""
    sizes = dict.fromkeys((Part.WEIGHTS, Part.FROZEN, Part.GRADIENTS, Part.OPTIMISER), 0)
    for tensor in (*model.parameters(), *model.buffers()):
        size = own_part(tensor).numel() * tensor.element_size()
        sizes[Part.WEIGHTS if tensor.requires_grad else Part.FROZEN] += size
    sizes[Part.GRADIENTS] = sizes[Part.WEIGHTS]
    sizes[Part.OPTIMISER] = 2 * sizes[Part.WEIGHTS]
    return sizes


def _peak_of_step(
    model: nn.Module,
    batch: Batch,
    settings: StepSettings,
    config: TrainConfig,
    scales: list[torch.Tensor],
    *,
    accumulates: bool,
) -> Peak:
    trained = [p for p in model.parameters() if p.requires_grad]
    with Allocations(settings.device) as allocations:
        for tensor in (*model.parameters(), *model.buffers(), *scales):
            allocations.assign(tensor, Part.WEIGHTS if tensor.requires_grad else Part.FROZEN)
        allocations.part = Part.BATCH
        batch = _batch_without_data(batch, settings.device)

        # The optimiser's state is there from the second step on.
        allocations.part = Part.OPTIMISER
        optimiser = _optimiser_with_state(model, config)

        allocations.part = Part.GRADIENTS
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter) if accumulates else None
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda p: allocations.assign(p.grad, Part.GRADIENTS)
            )
        allocations.forget_peak()

        allocations.part = Part.ACTIVATIONS
        noise = noisy_embeddings(model, batch, alpha=settings.neftune_alpha, seed=settings.seed, step=1)
        with settings.autocast(), noise, _then(model, allocations, Part.LOSS):
            losses = supervised_losses(model, batch)
        allocations.part = Part.SCRATCH
        step_loss(losses, 1.0).backward()  # type: ignore[no-untyped-call]
        del losses
        clip_gradients(trained, settings.largest_grad_norm)
        optimiser.step()
        return Peak(allocations.peak)


def _optimiser_with_state(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer | _Kept:
    if config.optimiser in EIGHT_BIT:  # whose kernels read values
        return _Kept(empty_8bit_moments(model, paged=config.optimiser is Optimiser.PAGED_ADAMW_8BIT))
    optimiser = build_optimiser(model, config)
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return optimiser


@dataclass(frozen=True)
class _Kept:
    """The state of an optimiser that works in place."""

    state: list[torch.Tensor]

    def step(self) -> None:
        """Make no tensor."""


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that an operation makes on `device` while this mode is on; `part` is what new ones are for.

    What waits in the host's memory for a GPU takes none of the GPU's.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.part = Part.SCRATCH
        self.live: dict[Part, int] = dict.fromkeys(Part, 0)
        self.peak = dict(self.live)
        self._storages: dict[int, tuple[weakref.ref[Any], Part, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and take note of the storages of its results."""
        result = func(*args, **(kwargs or {}))
        part = Part.CASTS if self._casts_weight(func, args) else self.part
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self._storages:
                self.assign(leaf, part)
        return result

    def assign(self, tensor: torch.Tensor | None, part: Part) -> None:
        """Count the storage of `tensor` as `part`, whatever it was for until now."""
        if tensor is None or tensor.device.type != self.device.type:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            self._forget(key)
        size = storage.nbytes()
        self._storages[key] = (weakref.ref(storage, lambda _: self._forget(key)), part, size)
        self.live[part] += size
        if sum(self.live.values()) > sum(self.peak.values()):
            self.peak = dict(self.live)

    def forget_peak(self) -> None:
        """Begin to look for the peak anew."""
        self.peak = dict(self.live)

    def _forget(self, key: int) -> None:
        _, part, size = self._storages.pop(key)
        self.live[part] -= size

    def _casts_weight(self, func: Any, args: Any) -> bool:
        if func is not torch.ops.aten._to_copy.default or not isinstance(args[0], nn.Parameter):
            return False
        return self.part is Part.ACTIVATIONS


@contextmanager
def _then(model: nn.Module, allocations: Allocations, part: Part) -> Iterator[None]:
    """Count as `part` what is made after the forward pass of `model`."""
    handle = model.register_forward_hook(lambda *_: setattr(allocations, "part", part))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _quiet_about_failures() -> Iterator[None]:
    """Keep torch from writing a traceback for an operation that has no answer without values: the caller says what it was."""
    logger = logging.getLogger(FakeTensorMode.__module__)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _without_data(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put tensors of the same shapes in place of all parameters and buffers, tied ones still tied; back again at the end."""
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    fakes: dict[int, torch.Tensor] = {}
    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for owned in tables:
            kept.append((owned, dict(owned)))
            for name, tensor in owned.items():
                if tensor is not None:
                    owned[name] = fakes.setdefault(id(tensor), _fake(tensor, device))
    packed = quantised_layers(model)
    for layer in packed:
        layer.forward = MethodType(without_values, layer)
    try:
        yield
    finally:
        for owned, content in kept:
            owned.update(content)
        for layer in packed:
            del layer.forward


def _batch_without_data(batch: Batch, device: torch.device) -> Batch:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    fakes: dict[str, Any] = {name: _fake(t, device) for name, t in values.items() if isinstance(t, torch.Tensor)}
    return replace(batch, **fakes)


def _fake(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    return nn.Parameter(fake, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
