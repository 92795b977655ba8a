"""The isolation law: no document of a pack can move another one's logits or loss, or receive gradient from it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from sample_documents import random_documents
from tiny import FAMILIES, tiny_model
from tutelage.model.attention import NAME, register_attention
from tutelage.model.head import supervised_logits
from tutelage.model.probe import probe_causality, probe_isolation
from tutelage.pack.batch import pack_batch

register_attention()


@cache
def family_model(family: str) -> PreTrainedModel:
    model = tiny_model(family, num_hidden_layers=3)
    model.set_attn_implementation(NAME)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_other_documents_stay_bit_for_bit_the_same_and_get_no_gradient(family: str) -> None:
    found = probe_isolation(family_model(family), pack_batch(random_documents()))
    assert found.passed, found.detail
    assert found.figures["max_logit_change"] == 0.0
    assert found.figures["max_gradient"] == 0.0
    assert found.figures["max_logit_change_of_the_changed_document"] > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_no_token_sees_a_later_one(family: str) -> None:
    found = probe_causality(family_model(family), pack_batch(random_documents()))
    assert found.passed, found.detail
    assert found.figures["max_logit_change"] == 0.0


@pytest.mark.parametrize("changed", range(5))
def test_whichever_document_changes_the_others_stay(changed: int) -> None:
    batch = pack_batch(random_documents((4, 9, 12, 3, 10)))
    watched = replace(batch, supervised=torch.arange(batch.num_tokens))
    bounds = batch.cu_seqlens.tolist()
    mine = slice(bounds[changed], bounds[changed + 1])
    other_ids = watched.input_ids.clone()
    other_ids[0, mine] = (other_ids[0, mine] + 1) % 300
    with torch.no_grad():
        before = supervised_logits(family_model("mistral"), watched)
        after = supervised_logits(family_model("mistral"), replace(watched, input_ids=other_ids))
    moved = (before != after).any(dim=-1)
    assert moved[mine].all()
    assert not moved[: mine.start].any()
    assert not moved[mine.stop :].any()


class LargestSquare(TorchDispatchMode):
    """Remember the largest size of the last two dimensions, where they are equal, of anything computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dim() >= 2 and out.shape[-1] == out.shape[-2]:
            self.size = max(self.size, out.shape[-1])
        return out


@pytest.mark.parametrize("family", FAMILIES)
def test_no_square_larger_than_a_document_is_ever_built(family: str) -> None:
    batch = pack_batch(random_documents((40, 41, 42, 43)))
    with torch.no_grad(), LargestSquare() as largest:
        supervised_logits(family_model(family), batch)
    assert largest.size <= 43
