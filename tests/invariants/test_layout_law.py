"""The layout law: loss and gradient are the same however documents are packed, padded or split into forward passes.

The reference is the definition of the loss: transformers' own attention, one document at a time, the negative log likelihood of
each next token times its weight. All in real fp64, compared to 1e-10 of the largest value; packed, padded and single agree
to about 1e-15.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from sample_documents import random_documents
from tiny import FAMILIES, tiny_model
from true_double import TrueDouble
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout
from tutelage.model.attention import NAME, register_attention
from tutelage.model.head import supervised_losses
from tutelage.pack.batch import Batch, make_batches, pack_batch

TOLERANCE = 1e-10
CHANGES = {
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]},
    "gemma2": {"num_hidden_layers": 3},  # both kinds of layer: with and without a window
    "gemma3": {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
}
LAYOUTS = {
    "single": lambda documents: make_batches(documents, Layout.SINGLE, 64),
    "one pack": lambda documents: make_batches(documents, Layout.PACKED, 256),
    "several packs": lambda documents: make_batches(documents, Layout.PACKED, 32),
    "padded": lambda documents: make_batches(documents, Layout.PADDED, 256),
    "padded in groups": lambda documents: make_batches(documents, Layout.PADDED, 40),
}

register_attention()


@cache
def family_model(family: str, attention: str) -> PreTrainedModel:
    model = tiny_model(family, dtype=torch.float64, **CHANGES.get(family, {}))
    model.set_attn_implementation(attention)
    return model


def gradients(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def by_definition(model: PreTrainedModel, documents: Sequence[Rendered]) -> tuple[float, torch.Tensor]:
    """Loss sum and gradient of documents, each alone, without anything of tutelage's batches, attention or head."""
    model.zero_grad()
    total = 0.0
    for document in documents:
        ids = torch.from_numpy(document.ids).long()[None]
        log_likelihood = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        nll = -log_likelihood[torch.arange(len(document) - 1), ids[0, 1:]]
        loss = (nll * torch.from_numpy(document.weights[1:])).sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def in_batches(model: PreTrainedModel, batches: Sequence[Batch]) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = supervised_losses(model, batch).weighted_sum
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def assert_equal(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor], tolerance: float) -> None:
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert one[1].shape == other[1].shape
    assert (one[1] - other[1]).abs().max() <= tolerance * other[1].abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_gives_the_loss_and_gradient_of_each_document_alone(family: str) -> None:
    documents = random_documents()
    with TrueDouble():
        reference = by_definition(family_model(family, "eager"), documents)
        model = family_model(family, NAME)
        for lay_out in LAYOUTS.values():
            assert_equal(in_batches(model, lay_out(documents)), reference, TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_layouts_agree_in_fp32_to_rounding(family: str) -> None:
    documents = random_documents()
    model = tiny_model(family, **CHANGES.get(family, {}))
    model.set_attn_implementation(NAME)
    alone, *others = [in_batches(model, lay_out(documents)) for lay_out in LAYOUTS.values()]
    for other in others:
        assert_equal(other, alone, 2e-5)


def test_a_model_with_state_gives_the_same_padded_as_alone() -> None:
    documents = random_documents()
    model = tiny_model("mamba", dtype=torch.float64)
    with TrueDouble():
        reference = by_definition(model, documents)
        for layout in (Layout.SINGLE, Layout.PADDED):
            assert_equal(in_batches(model, make_batches(documents, layout, 256)), reference, TOLERANCE)


def test_gradient_checkpointing_changes_nothing_in_a_pack() -> None:
    documents = random_documents()
    model = copy.deepcopy(family_model("mistral", NAME)).train()
    plain = in_batches(model, [pack_batch(documents)])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.is_gradient_checkpointing
    assert_equal(in_batches(model, [pack_batch(documents)]), plain, TOLERANCE)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=7),
    cuts=st.lists(st.booleans(), min_size=7, max_size=7),
    shuffle=st.randoms(use_true_random=False),
    family=st.sampled_from(["llama", "mistral", "gpt2"]),
)
def test_any_split_into_packs_in_any_order_gives_the_same_loss(lengths, cuts, shuffle, family) -> None:  # type: ignore[no-untyped-def]
    documents = random_documents(lengths)
    shuffled = list(documents)
    shuffle.shuffle(shuffled)
    packs: list[list[Rendered]] = [[]]
    for document, cut in zip(shuffled, cuts, strict=False):
        if cut and packs[-1]:
            packs.append([])
        packs[-1].append(document)
    with TrueDouble(), torch.no_grad():
        model = family_model(family, NAME)
        alone = sum(supervised_losses(model, pack_batch([d])).weighted_sum.item() for d in documents)
        packed = sum(supervised_losses(model, pack_batch(pack)).weighted_sum.item() for pack in packs)
    assert packed == pytest.approx(alone, rel=TOLERANCE, abs=TOLERANCE)
