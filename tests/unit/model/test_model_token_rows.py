"""Trainable rows: peft's function, without the gradient of the whole table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tiny import VOCABULARY, tiny_model
from tutelage.config.schema import LoraConfig
from tutelage.model.adapters import add_lora, trainable_parameters
from tutelage.model.load import grow_embeddings

NEW = [VOCABULARY, VOCABULARY + 1]
IDS = torch.tensor([[5, NEW[1], 200, NEW[0], 7], [NEW[1], 3, NEW[1], 61, 2]])


def adapted(family: str, *, new_ids: list[int], of_peft: bool = False) -> nn.Module:
    model = tiny_model(family, dtype=torch.float64)
    grow_embeddings(model, NEW)
    lora = add_lora(model, LoraConfig(rank=2), new_ids=new_ids).double()
    generator = torch.Generator().manual_seed(1)
    for _, parameter in trainable_parameters(lora):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if of_peft:
        for module in lora.modules():
            vars(module).pop("forward", None)
    return lora


def outcome(model: nn.Module) -> dict[str, Tensor]:
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in trainable_parameters(model)}}


class TablesMade(TorchDispatchMode):
    """Collects operations whose result is as large as the whole table, and is not the table itself."""

    def __init__(self, tables: list[Tensor]) -> None:
        super().__init__()
        self.shape, self.places = tables[0].shape, {table.data_ptr() for table in tables}
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() == self.shape.numel() and result.data_ptr() not in self.places:
            self.made.append(str(func))
        return result


@pytest.mark.parametrize("family", ["llama", "llama_tied", "qwen3", "gpt_neox", "gemma2", "gemma3"])
@pytest.mark.parametrize("new_ids", [NEW, [9, 200, NEW[1]]])
def test_loss_and_gradients_are_those_of_peft(family: str, new_ids: list[int]) -> None:
    want = outcome(adapted(family, new_ids=new_ids, of_peft=True))
    got = outcome(adapted(family, new_ids=new_ids))
    assert want.keys() == got.keys()
    assert any("token_adapter" in name for name in want)
    for name, tensor in want.items():
        assert torch.allclose(got[name], tensor, rtol=1e-9, atol=1e-12 * float(tensor.abs().max())), name


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_nothing_as_large_as_the_table_is_made(family: str) -> None:
    for of_peft in (False, True):
        model = adapted(family, new_ids=NEW, of_peft=of_peft)
        tables = [p for p in model.parameters() if p.shape == (VOCABULARY + len(NEW), 32)]
        with TablesMade(tables) as watched:
            outcome(model)
        assert bool(watched.made) == of_peft, watched.made


def test_rows_that_are_switched_off_or_merged_are_left_to_peft() -> None:
    want, got = (adapted("llama_tied", new_ids=NEW, of_peft=of_peft) for of_peft in (True, False))
    for model in (want, got):
        model.base_model.disable_adapter_layers()
    assert torch.equal(got(IDS).logits, want(IDS).logits)
    for model in (want, got):
        model.base_model.enable_adapter_layers()
        model.merge_adapter()
    assert torch.equal(got(IDS).logits, want(IDS).logits)
