"""Frozen matrices in 4 bits below adapters (QLoRA), through bitsandbytes.

The matrices of the decoder layers become 4-bit numbers of the NF4 type when the model is loaded; embeddings, norms and the head stay as
they are. Each product unpacks its matrix for as long as it takes. What is trained and written is the adapter alone, which
fits the model that it was made for, quantised or not.

Source: Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

import tutelage.model.hub_kernels  # noqa: F401  # transformers imports bitsandbytes when it quantises
from tutelage.errors import ConfigError

# I inputs, O outputs

LAYER = "Linear4bit"  # of bitsandbytes; the adapter of peft around one has the same name and is no linear layer itself


def nf4_settings(products: torch.dtype) -> Any:
    """Return what transformers needs to be told; matrix products run in `products`.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "model.quantisation=nf4 needs bitsandbytes, which is not installed",
            mend='pip install "tutelage[low-memory]"',
        )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=products
    )


class PackedShape(nn.Linear):
    """A linear layer without data that has the sizes of a quantised one, for a model on the meta device."""

    compute_dtype: torch.dtype


def pack_shapes(model: Any, products: torch.dtype) -> None:
    """Give a model on the meta device the sizes that it has when `nf4_settings(products)` loads it."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear and module is not head:
            packed = torch.empty(-(-module.weight.numel() // 2), 1, dtype=torch.uint8, device="meta")
            module.weight = nn.Parameter(packed, requires_grad=False)
            module.__class__ = PackedShape
            vars(module)["compute_dtype"] = products


def keep_backward_possible(model: nn.Module) -> None:
    """Let no layer pack its matrix anew for CPU inference: the first forward pass without gradients would, and that form has none."""
    for layer in quantised_layers(model):
        layer.support_avx512bf16_for_cpu = False


def quantised_layers(model: nn.Module) -> list[Any]:
    """Return the linear layers of `model` whose matrices are kept in 4 bits, or that stand for such."""
    layers = (module for module in model.modules() if isinstance(module, nn.Linear))
    return [layer for layer in layers if isinstance(layer, PackedShape) or type(layer).__name__ == LAYER]


def num_values(parameter: Any) -> int:
    """Return how many weights a parameter stands for: packed ones hold two in a byte."""
    count: int = parameter.numel()
    return 2 * count if parameter.dtype is torch.uint8 else count


def scales_of(layer: Any) -> list[Tensor]:
    """Return the tensors beside a packed matrix that unpack it: a byte for 64 values, and little more."""
    if isinstance(layer, PackedShape):
        return [torch.empty(layer.weight.numel() // 32, dtype=torch.uint8, device="meta")]
    state = layer.weight.quant_state
    nested = state.state2
    return [state.absmax, state.code] + ([nested.absmax, nested.code, state.offset] if nested is not None else [])


def without_values(layer: Any, x: Tensor) -> Tensor:
    """Take the memory that a product with a packed matrix takes, where only shapes are known: the matrix unpacked, twice."""
    y: Tensor = _UnpackedProduct.apply(x.to(layer.compute_dtype), layer.out_features)  # type: ignore[no-untyped-call]
    return y.to(x.dtype)


class _UnpackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, outputs: int) -> Tensor:
        ctx.shape = (outputs, x.shape[-1])
        return x @ x.new_empty(ctx.shape).t()

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, None]:
        (grad,) = incoming
        return grad @ grad.new_empty(ctx.shape) if ctx.needs_input_grad[0] else None, None
