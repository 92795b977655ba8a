"""The forward pass of peft's LoRA layer as one node of autograd, where the layer is a plain one.

peft adds base output, low-rank product and scale in five operations, and each leaves a tensor as large as the output. Here
the low-rank product is added into the base output in place, and only the input and its narrow projection are kept for the
backward pass. Parameters, names and files stay peft's: only the `forward` of the layer instances is another.
"""

# N tokens, I inputs, O outputs, R rank

from __future__ import annotations

import tutelage.model.hub_kernels  # noqa: F401  # before peft, which imports bitsandbytes

# isort: split
from collections import Counter
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fuse_lora_layers(model: nn.Module) -> None:
    """Let the plain LoRA layers of `model` run as one autograd node each.

    Layers that do more than add B·A·x to a linear layer (DoRA, dropout, transposed weights, a bias in B) keep peft's forward
    pass, and so does any layer while its adapter is switched off, merged, or not the only one.
    """
    for layer in model.modules():
        if _is_plain(layer):
            layer.forward = MethodType(_forward, layer)


@torch.no_grad()
def narrow_frozen_matrices(model: nn.Module, dtype: torch.dtype) -> None:
    """Store in `dtype` the frozen matrices below adapters, for a model that runs under autocast to that type.

    Autocast rounds them so in every product anyway: the same outputs and gradients, in half the memory and without the casts.
    Weights that anything else reads stay as they are: embeddings, norms, the head, and what DoRA takes the length of.
    """
    owners = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    for layer in filter(_adds_to_frozen_linear, model.modules()):
        base: Any = layer.base_layer
        for parameter in base.parameters():
            if owners[id(parameter)] == 1:
                parameter.data = parameter.data.to(dtype)


def _is_plain(layer: Any) -> bool:
    """Whether `layer` adds one low-rank product to a linear layer, with nothing between the factors."""
    if not _adds_to_frozen_linear(layer) or len(layer.lora_A) != 1:
        return False
    (name,) = layer.lora_A
    return not layer.lora_bias[name] and type(layer.lora_dropout[name]) is nn.Identity


def _adds_to_frozen_linear(layer: Any) -> bool:
    """Whether `layer` is peft's LoRA on a frozen `nn.Linear`, and uses that layer in one product only."""
    return (
        type(layer) is PeftLinear
        and type(layer.base_layer) is nn.Linear
        and not layer.fan_in_fan_out
        and not layer.lora_variant
        and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
    )


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run the fused node where it means the same as peft's forward pass, else that one."""
    names = list(layer.lora_A)
    alone = len(names) == 1 and layer.active_adapters == names
    if args or kwargs or not alone or layer.disable_adapters or layer.merged:
        return _forward_of_peft(layer, x, *args, **kwargs)
    (name,) = names
    base = layer.base_layer
    tensors: tuple[Tensor | None, ...] = (
        x,
        base.weight,
        base.bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
    )
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        tensors = tuple(None if tensor is None else tensor.to(dtype) for tensor in tensors)
    elif any(tensor is not None and tensor.dtype != x.dtype for tensor in tensors):
        return _forward_of_peft(layer, x)
    y: Tensor = _LoraLinear.apply(*tensors, layer.scaling[name])  # type: ignore[no-untyped-call]
    return y


def _forward_of_peft(layer: Any, *args: Any, **kwargs: Any) -> Tensor:
    y: Tensor = PeftLinear.forward(layer, *args, **kwargs)
    return y


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ with frozen W and b.

    Shapes: x [..., I], W [O, I], b [O] or None, A [R, I], B [O, R], y [..., O]; all of one type.
    Source: Hu et al., arXiv 2106.09685, equation 3.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        y = x.new_empty(*x.shape[:-1], weight_OI.shape[0])
        y_NO = y.view(-1, weight_OI.shape[0])
        if bias_O is None:
            torch.mm(x_NI, weight_OI.t(), out=y_NO)
        else:
            torch.addmm(bias_O, x_NI, weight_OI.t(), out=y_NO)
        xa_NR = x_NI @ a_RI.t()
        y_NO.addmm_(xa_NR, b_OR.t(), alpha=scale)
        ctx.save_for_backward(x_NI, xa_NR, weight_OI, a_RI, b_OR)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, xa_NR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_xa_NR = (grad_NO @ b_OR).mul_(ctx.scale)
        grad_x = grad_a_RI = grad_b_OR = None
        if ctx.needs_input_grad[0]:  # not in the first layer: nothing below it learns
            grad_x = grad.new_empty(*grad.shape[:-1], weight_OI.shape[1])
            grad_x_NI = grad_x.view(-1, weight_OI.shape[1])
            torch.mm(grad_NO, weight_OI, out=grad_x_NI)
            grad_x_NI.addmm_(grad_xa_NR, a_RI)
        if ctx.needs_input_grad[3]:
            grad_a_RI = grad_xa_NR.t() @ x_NI
        if ctx.needs_input_grad[4]:
            grad_b_OR = (grad_NO.t() @ xa_NR).mul_(ctx.scale)
        return grad_x, None, None, grad_a_RI, grad_b_OR, None
