"""Batches hold exactly the documents they were given, in each layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sample_documents import document, random_documents
from tutelage.config.schema import Layout
from tutelage.pack.batch import document_key, make_batches, pack_batch, pad_batch

FIRST = document([5, 6, 7], [0, 1, 0.5], name="first", source="one")
SECOND = document([8, 9], [1, 1], name="second", source="two")


def test_a_pack_restarts_positions_and_never_predicts_across_a_boundary() -> None:
    batch = pack_batch([FIRST, SECOND])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.supervised_targets.tolist() == [6, 7, 9]
    assert batch.supervised_weights.tolist() == [1.0, 0.5, 1.0]
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.supervised.tolist() == [0, 1, 3]
    assert batch.supervised_document.tolist() == [0, 0, 1]
    assert batch.attention_mask is None
    assert (batch.lengths, batch.document_sources, batch.layout) == ((3, 2), ("one", "two"), Layout.PACKED)


def test_padded_rows_hold_one_document_each_and_mask_the_rest() -> None:
    batch = pad_batch([FIRST, SECOND])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch.supervised_targets.tolist() == [6, 7, 9]
    assert batch.supervised_weights.tolist() == [1.0, 0.5, 1.0]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.supervised.tolist() == [0, 1, 3]
    assert batch.supervised_document.tolist() == [0, 0, 1]
    assert batch.num_tokens == 5


def test_single_gives_each_document_a_batch_of_its_own() -> None:
    batches = make_batches([FIRST, SECOND], Layout.SINGLE, micro_tokens=2)
    assert [batch.input_ids.tolist() for batch in batches] == [[[5, 6, 7]], [[8, 9]]]
    assert {batch.layout for batch in batches} == {Layout.SINGLE}


def test_the_layout_must_be_decided_before_batches_are_made() -> None:
    with pytest.raises(ValueError, match="auto"):
        make_batches([FIRST], Layout.AUTO, micro_tokens=8)


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.PADDED, Layout.SINGLE])
def test_tokens_and_weights_add_up_in_every_layout(layout: Layout) -> None:
    documents = random_documents((3, 30, 1, 12, 9, 9, 2, 17))
    batches = make_batches(documents, layout, micro_tokens=32)
    assert sum(batch.num_tokens for batch in batches) == sum(map(len, documents))
    assert sum(batch.num_documents for batch in batches) == len(documents)
    assert sum(batch.num_supervised for batch in batches) == sum(d.supervised_tokens for d in documents)
    weight = sum(float(batch.supervised_weights.double().sum()) for batch in batches)
    assert weight == sum(float(d.weights[1:].sum()) for d in documents)
    keys = sorted(key for batch in batches for key in batch.document_keys.tolist())
    assert keys == sorted(map(document_key, documents))
    if layout is not Layout.SINGLE:
        assert all(batch.input_ids.numel() <= 32 for batch in batches)


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.PADDED, Layout.SINGLE])
def test_a_document_longer_than_the_budget_gets_a_batch(layout: Layout) -> None:
    batches = make_batches(random_documents((50, 3)), layout, micro_tokens=10)
    assert sorted(length for batch in batches for length in batch.lengths) == [3, 50]


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.PADDED, Layout.SINGLE])
def test_no_documents_make_no_batches(layout: Layout) -> None:
    assert make_batches([], layout, micro_tokens=10) == []


def test_the_key_of_a_document_depends_on_its_record_and_stage_alone() -> None:
    longer = document([1, 2, 3, 4], [1, 1, 1, 1], name="first", source="elsewhere")
    assert document_key(FIRST) == document_key(longer) == -6745363598608850024
    assert document_key(FIRST) != document_key(SECOND)
    assert -(2**63) <= document_key(SECOND) < 2**63


def test_moving_a_batch_moves_every_tensor_and_keeps_what_the_host_knows() -> None:
    moved = pad_batch([FIRST, SECOND]).to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 10
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.lengths == (3, 2)


def test_batches_do_not_share_memory_with_the_documents() -> None:
    source = document([5, 6, 7], [0, 1, 1])
    batch = pack_batch([source])
    batch.supervised_weights.zero_()
    batch.input_ids.zero_()
    assert source.weights.tolist() == [0, 1, 1]
    assert source.ids.tolist() == np.asarray([5, 6, 7]).tolist()
