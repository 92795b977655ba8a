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
    return choose_layout(asked, model, [everything], documents, device=torch.device("cpu"), autocast=nullcontext())


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
