"""Training a few rows of a frozen embedding at the cost of a few rows.

peft copies the whole table with the rows put in, at each use, and so gets a gradient of the whole table, of which it keeps
the rows. Here the frozen table is used as it is, and what the rows make replaces what their places in the table made.
"""

# K trainable rows

from __future__ import annotations

import tutelage.model.hub_kernels  # noqa: F401  # before peft, which imports bitsandbytes

# isort: split
from types import MethodType
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn import functional


def replace_rows_only(model: nn.Module) -> None:
    """Let embeddings and heads with trainable rows compute no gradient of their frozen rows.

    The result is that of peft's layer, which stays in place; it does the work itself while the rows are switched off, merged, or of
    several adapters.
    """
    for layer in model.modules():
        if isinstance(layer, TrainableTokensLayer):
            layer.forward = MethodType(_forward, layer)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    names = [name for name in layer.active_adapters if name in layer.token_indices]
    if len(names) != 1 or layer.disable_adapters or layer.merged or layer.base_layer.weight.requires_grad:
        return _forward_of_peft(layer, x, *args, **kwargs)
    base = layer.base_layer
    ids_K = layer.token_indices[names[0]]
    rows_KH = layer.trainable_tokens_delta[names[0]].to(base.weight)
    if type(base) is nn.Linear and base.bias is None:
        # In place: a linear layer does not keep its output, and nobody else has seen it yet.
        return functional.linear(x, base.weight).index_copy_(-1, _on(x.device, ids_K), functional.linear(x, rows_KH))
    # A padding row gets no gradient from an embedding, and a largest norm changes the table; neither is worth a case here.
    if type(base) is nn.Embedding and base.padding_idx not in ids_K and base.max_norm is None:
        return _embed(x, base, _on(x.device, sorted(ids_K)), rows_KH[_order(ids_K)])
    return _forward_of_peft(layer, x, *args, **kwargs)


def _embed(ids: Tensor, table: nn.Embedding, sorted_K: Tensor, rows_KH: Tensor) -> Tensor:
    """Look ids up in the frozen table, those of `sorted_K` in `rows_KH`."""
    place = torch.searchsorted(sorted_K, ids).clamp_(max=len(sorted_K) - 1)
    is_trained = sorted_K[place] == ids
    return torch.where(is_trained[..., None], functional.embedding(place, rows_KH), table(ids))


def _on(device: torch.device, ids: list[int]) -> Tensor:
    return torch.tensor(ids).to(device, non_blocking=True)


def _order(ids_K: list[int]) -> list[int]:
    return sorted(range(len(ids_K)), key=ids_K.__getitem__)


def _forward_of_peft(layer: Any, *args: Any, **kwargs: Any) -> Tensor:
    y: Tensor = TrainableTokensLayer.forward(layer, *args, **kwargs)
    return y
