"""Recomputing activations: the same gradients to the last bits, with noise and dropout, and less that is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sample_documents import random_documents
from tiny import tiny_model
from tutelage.config.schema import Checkpointing, LoraConfig
from tutelage.model.adapters import add_lora
from tutelage.model.attention import NAME, register_attention
from tutelage.model.checkpointing import set_checkpointing
from tutelage.model.head import supervised_losses
from tutelage.model.noise import noisy_embeddings
from tutelage.pack.batch import Batch, pack_batch

KINDS = (Checkpointing.SELECTIVE, Checkpointing.LAYERS)
AND_OFFLOAD = (*KINDS, Checkpointing.OFFLOAD)


def batch_of_several() -> Batch:
    return pack_batch(random_documents((9, 30, 14, 5)))


def model_of(family: str, *, dropout: float = 0.0, lora: bool = False) -> torch.nn.Module:
    register_attention()
    model = tiny_model(family, dtype=torch.float64, attention_dropout=dropout)
    model.set_attn_implementation(NAME)
    if not lora:
        return model.train()
    adapted = add_lora(model, LoraConfig(rank=4)).double()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return adapted.train()


def gradient(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    torch.manual_seed(5)
    model.zero_grad()
    with noisy_embeddings(model, batch, alpha=5.0, seed=1, step=2):
        losses = supervised_losses(model, batch)
    losses.weighted_sum.backward()  # type: ignore[no-untyped-call]
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def kept_bytes(model: torch.nn.Module, batch: Batch) -> int:
    """Bytes of the tensors that the forward pass leaves for the backward pass, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = supervised_losses(model, batch)
    del losses
    return sum(kept.values())


@pytest.mark.parametrize("kind", AND_OFFLOAD)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "mistral"])
def test_recomputing_changes_no_gradient_with_dropout_and_noise(family: str, lora: bool, kind: Checkpointing) -> None:
    batch = batch_of_several()
    model = model_of(family, dropout=0.2, lora=lora)
    expected = gradient(model, batch)
    set_checkpointing(model, kind)
    torch.testing.assert_close(gradient(model, batch), expected, rtol=1e-12, atol=1e-14)


def test_a_layer_keeps_less_the_more_it_may_compute_again() -> None:
    batch = batch_of_several()
    model = model_of("llama")
    gradient(model, batch)  # shows what follows the head
    kept = []
    for kind in (Checkpointing.NONE, *KINDS):
        set_checkpointing(model, kind)
        kept.append(kept_bytes(model, batch))
    none, _, layers = kept  # what selective keeps, it keeps outside of autograd: see the prediction of its peak
    assert layers < none / 3


def test_it_can_be_switched_off_again() -> None:
    batch = batch_of_several()
    model = model_of("llama")
    gradient(model, batch)
    before = kept_bytes(model, batch)
    set_checkpointing(model, Checkpointing.LAYERS)
    set_checkpointing(model, Checkpointing.NONE)
    assert kept_bytes(model, batch) == before


def test_offloading_moves_the_input_of_each_layer_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of_several()
    model = model_of("llama")
    gradient(model, batch)
    moved: list[torch.Size] = []

    class Watched(torch.autograd.graph.saved_tensors_hooks):
        """In place of the copies, which a CPU has no need of."""

        def __init__(self, *, pin_memory: bool) -> None:
            assert not pin_memory  # without a GPU there is nothing to pin it for
            super().__init__(lambda tensor: moved.append(tensor.shape) or tensor, lambda tensor: tensor)  # type: ignore[func-returns-value]

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Watched)
    set_checkpointing(model, Checkpointing.OFFLOAD)
    gradient(model, batch)
    hidden = torch.Size([1, batch.num_tokens, 32])
    assert [shape for shape in moved if shape.numel()] == [hidden] * 2  # two layers
    moved.clear()
    set_checkpointing(model, Checkpointing.LAYERS)
    gradient(model, batch)
    assert not moved


class CountProducts(TorchDispatchMode):
    """Counts the matrix products that are really computed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.mm.out)
        return func(*args, **(kwargs or {}))


def test_selective_repeats_no_matrix_product_and_layers_repeats_them_all() -> None:
    batch = batch_of_several()
    model = model_of("llama")
    counts = {}
    for kind in (Checkpointing.NONE, *KINDS):
        set_checkpointing(model, kind)
        with CountProducts() as products:
            gradient(model, batch)
        counts[kind] = products.count
    of_layers = 2 * 6  # two layers of seven linear modules, of which the last one's output is not needed again
    assert counts[Checkpointing.SELECTIVE] == counts[Checkpointing.NONE]
    assert counts[Checkpointing.LAYERS] == counts[Checkpointing.NONE] + of_layers
