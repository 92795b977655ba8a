"""The layout that a run chooses after asking the model."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from sample_documents import random_documents
from tiny import tiny_model
from tutelage.config.schema import Layout
from tutelage.errors import IsolationError
from tutelage.model.attention import NAME, register_attention
from tutelage.pack.plan import Step
from tutelage.train.layout import LayoutChoice, choose_layout


class _PlaceTable(nn.Embedding):
    """Absolute positions that count along the whole row, whatever positions the model is given."""

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.arange(places.shape[-1], device=places.device).expand(places.shape))


def _gpt2(*, restarts: bool) -> nn.Module:
    register_attention()
    model = tiny_model("gpt2").eval()
    model.set_attn_implementation(NAME)
    if not restarts:
        table = model.transformer.wpe
        model.transformer.wpe = _PlaceTable(*table.weight.shape, _weight=table.weight.detach() * 20)
    return model


def _choose(asked: Layout, model: nn.Module) -> LayoutChoice:
    documents = random_documents()
    everything = Step(packs=(tuple(range(len(documents))),), num_tokens=0, weight_sum=1.0)
    device = torch.device("cpu")
    return choose_layout(asked, model, [everything], documents, micro_tokens=64, device=device, autocast=nullcontext())


def test_a_model_that_keeps_documents_apart_is_packed() -> None:
    choice = _choose(Layout.AUTO, _gpt2(restarts=True))
    assert choice.layout is Layout.PACKED
    assert len(choice.checks) == 3 and all(check.passed for check in choice.checks)


def test_a_model_whose_positions_do_not_restart_is_padded_and_says_why() -> None:
    choice = _choose(Layout.AUTO, _gpt2(restarts=False))
    assert choice.layout is Layout.PADDED
    assert "learns something else" in choice.reason


def test_packing_such_a_model_by_name_is_refused() -> None:
    with pytest.raises(IsolationError, match="learns something else"):
        _choose(Layout.PACKED, _gpt2(restarts=False))


@pytest.mark.parametrize("layout", [Layout.PADDED, Layout.SINGLE])
def test_one_document_a_row_is_compared_with_each_document_alone(layout: Layout) -> None:
    choice = _choose(layout, _gpt2(restarts=False))
    assert choice.layout is layout
    assert [(check.law, check.passed) for check in choice.checks] == [("isolation", True), ("layout", True)]
    assert choice.checks[1].figures["documents"] > 1


def test_a_model_that_sees_the_padding_is_refused() -> None:
    model = _gpt2(restarts=True)
    model.transformer.wpe.register_forward_hook(lambda _, __, places: places * places.shape[1])
    with pytest.raises(IsolationError, match="padded row"):
        _choose(Layout.PADDED, model)
