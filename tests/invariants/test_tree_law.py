"""The layout law in trees: documents that share a prefix, computed once, have the loss and gradient of separate rows.

The reference is that of the layout law: transformers' own attention, one document at a time, in real fp64, to 1e-10. Trees have
any shape: prefixes inside prefixes, branches of one token, equal documents, several trees in a stream, loss on shared tokens, paths
longer than a sliding window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layout_law import CHANGES, TOLERANCE, assert_equal, by_definition, in_batches
from transformers import PreTrainedModel

from sample_documents import document
from tiny import FAMILIES, tiny_model
from true_double import TrueDouble
from tutelage.chat.rendered import Rendered
from tutelage.errors import IsolationError
from tutelage.model.attention import NAME, DocumentMask, document_attention_forward, register_attention
from tutelage.model.head import supervised_logits, supervised_losses
from tutelage.model.probe import probe_layout
from tutelage.pack.batch import Batch, pack_batch
from tutelage.pack.tree import Tree, common_prefix, grow_tree

register_attention()


@cache
def family_model(family: str, attention: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    model = tiny_model(family, dtype=dtype, **CHANGES.get(family, {}))
    model.set_attn_implementation(attention)
    return model


def grown(blocks: Sequence[Sequence[int]], seed: int = 0, names: str = "document") -> list[Rendered]:
    """Return documents made of numbered blocks of one to six tokens; a block always has the same tokens."""
    random = np.random.default_rng(seed)
    tokens = {block: random.integers(3, 300, random.integers(1, 7)).tolist() for block in range(8)}
    documents = []
    for number, row in enumerate(blocks):
        ids = [token for block in row for token in tokens[block]]
        weights = random.choice([0.0, 0.5, 1.0, 2.0], len(ids)).tolist()
        documents.append(document(ids, weights, name=f"{names}-{number}"))
    return documents


BLOCKS = ([0, 1, 2, 3], [0, 1, 2, 4, 5], [0, 1, 2, 4, 5], [0, 1], [0, 6, 7], [5, 4, 3], [5, 4, 2, 1], [6])
WIDE = tuple([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, answer] for answer in (4, 5, 6, 7, 4))  # short siblings behind a long path


def shared_by(documents: Sequence[Rendered]) -> list[int]:
    return [0, *(common_prefix(one, other) for one, other in pairwise(documents))]


def tree_of(documents: Sequence[Rendered]) -> Tree:
    return grow_tree([len(one) for one in documents], shared_by(documents))


def as_tree(documents: Sequence[Rendered]) -> list[Batch]:
    return [pack_batch(documents, shared_by(documents))]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_has_the_loss_and_gradient_of_each_document_alone(family: str) -> None:
    documents = [*grown(BLOCKS), *grown(WIDE)]
    assert as_tree(documents)[0].num_tokens < 0.6 * sum(map(len, documents))
    with TrueDouble():
        reference = by_definition(family_model(family, "eager"), documents)
        assert_equal(in_batches(family_model(family, NAME), as_tree(documents)), reference, TOLERANCE)


@settings(max_examples=25)
@given(
    blocks=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=7),
    ahead=st.sampled_from([[], [3, 4, 5, 6, 7, 3, 4, 5, 6, 7]]),
    sort=st.booleans(),
    seed=st.integers(0, 1000),
    family=st.sampled_from(["llama", "qwen3", "gpt2", "gemma2", "mistral"]),
)
def test_trees_of_any_shape_have_the_loss_and_gradient_of_separate_rows(
    blocks: list[list[int]], ahead: list[int], sort: bool, seed: int, family: str
) -> None:
    documents = grown([[*ahead, *row] for row in (sorted(blocks) if sort else blocks)], seed)
    model = family_model(family, NAME)
    with TrueDouble():
        separate = in_batches(model, [pack_batch([one]) for one in documents])
        assert_equal(in_batches(model, as_tree(documents)), separate, TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_each_document_of_a_tree_has_the_very_losses_that_it_has_alone(family: str) -> None:
    """Sums could hide two errors that cancel; a document's own losses, in its own order, cannot."""
    documents = grown(BLOCKS)
    model = family_model(family, NAME)
    with TrueDouble(), torch.no_grad():
        tree = supervised_losses(model, as_tree(documents)[0])
        for number, one in enumerate(documents):
            alone = supervised_losses(model, pack_batch([one]))
            own = tree.document == number
            torch.testing.assert_close(tree.loss[own], alone.loss, rtol=TOLERANCE, atol=TOLERANCE)
            assert torch.equal(tree.weight[own], alone.weight)


def test_branches_of_a_tree_do_not_see_each_other() -> None:
    documents = grown(([0, 1, 2], [0, 1, 3, 4], [0, 5, 6]))
    batch = as_tree(documents)[0]
    everywhere = torch.arange(batch.num_tokens)
    watched = replace(
        batch, supervised=everywhere, supervised_targets=everywhere, supervised_weights=everywhere.float()
    )
    own = torch.from_numpy(np.setdiff1d(batch.places(1), np.union1d(batch.places(0), batch.places(2))))
    other_ids = watched.input_ids.clone()
    other_ids[0, own] = (other_ids[0, own] + 1) % 300
    with torch.no_grad():
        before = supervised_logits(family_model("llama", NAME), watched)
        after = supervised_logits(family_model("llama", NAME), replace(watched, input_ids=other_ids))
    moved = (before != after).any(dim=-1)
    assert moved[own].all()
    assert moved.sum() == len(own) < len(moved)


def test_gradient_checkpointing_changes_nothing_in_a_tree() -> None:
    documents = grown(BLOCKS)
    model = tiny_model("llama", dtype=torch.float64)
    model.set_attn_implementation(NAME)
    model.train()
    plain = in_batches(model, as_tree(documents))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert model.is_gradient_checkpointing
    assert_equal(in_batches(model, as_tree(documents)), plain, TOLERANCE)


def test_the_gradient_of_a_tree_is_the_same_to_the_last_bit_each_time() -> None:
    """A position that predicts for many documents adds up their gradients, in one order always."""
    prompt = np.random.default_rng(0).integers(3, 300, 30).tolist()
    documents = [document([*prompt, *range(3 + n, 40 + n)], [1.0] * 67, name=str(n)) for n in range(64)]
    model = family_model("llama", NAME, torch.float32)
    first, again = (in_batches(model, [pack_batch(documents, [0, *[30] * 63])]) for _ in range(2))
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])


def test_rules_beside_causality_and_windows_are_refused_however_short_the_documents() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation(NAME)
    batch = as_tree(grown(BLOCKS))[0]
    for mask in (DocumentMask(batch, 64, False, lambda *_: None), DocumentMask(batch, None, True, lambda *_: None)):
        x = torch.zeros(1, 4, batch.num_tokens, 8)
        with pytest.raises(IsolationError, match="unknown in a tree"):
            document_attention_forward(model.model.layers[0].self_attn, x, x, x, mask, sliding_window=None)


def changed_masks(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    """Let every mask behind a path be what `change` makes of it and of the number of tokens before it."""
    right = DocumentMask.behind

    def wrong(self: DocumentMask, before: int, lengths: Sequence[int], device: torch.device) -> torch.Tensor | None:
        mask = right(self, before, lengths, device)
        return mask if mask is None else change(mask.clone(), before)

    monkeypatch.setattr(DocumentMask, "behind", wrong)


def sees_one_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_masks(monkeypatch, lambda mask, before: mask.tril(before - 1))


def forgets_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_masks(monkeypatch, lambda mask, _: mask.index_fill(1, torch.tensor([0]), False))


def sees_the_siblings_computed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_masks(monkeypatch, lambda mask, before: torch.ones_like(mask).tril(before))


def forgets_half_of_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_masks(monkeypatch, lambda mask, before: mask.index_fill(1, torch.arange(before // 2), False))


@pytest.mark.parametrize(
    "fault",
    [
        sees_one_too_few,
        forgets_the_first_token,
        forgets_half_of_the_path,
        sees_the_siblings_computed_with_it,
    ],
)
def test_the_probe_catches_attention_that_is_wrong(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    model, documents = family_model("llama", NAME, torch.float32), [*grown(BLOCKS), *grown(WIDE, names="wide")]
    assert any(len(run) > 1 for run in tree_of(documents).siblings())
    assert probe_layout(model, documents, as_tree).passed
    fault(monkeypatch)
    assert not probe_layout(model, documents, as_tree).passed


def positions_that_run_on(batch: Batch) -> Batch:
    return replace(batch, position_ids=torch.arange(batch.num_tokens)[None])


def the_first_answer_alone_starts_at_the_prompt(batch: Batch) -> Batch:
    wrong = batch.supervised.clone()
    for number in range(1, batch.num_documents):
        wrong[batch.supervised_document == number] += 1
    return replace(batch, supervised=wrong.clamp(max=batch.num_tokens - 1))


def weights_of_the_first(batch: Batch) -> Batch:
    return replace(batch, supervised_weights=batch.supervised_weights[:1].expand(batch.num_supervised))


def losses_of_shared_tokens_once(batch: Batch) -> Batch:
    once = torch.isin(batch.supervised, batch.supervised[batch.supervised_document == 0])
    weights = batch.supervised_weights.masked_fill(once & (batch.supervised_document != 0), 0.0)
    return replace(batch, supervised_weights=weights)


@pytest.mark.parametrize(
    "fault",
    [
        positions_that_run_on,
        the_first_answer_alone_starts_at_the_prompt,
        weights_of_the_first,
        losses_of_shared_tokens_once,
    ],
)
def test_the_probe_catches_a_batch_that_is_wrong(fault: Callable[[Batch], Batch]) -> None:
    model, documents = family_model("llama", NAME, torch.float32), grown(BLOCKS)
    found = probe_layout(model, documents, lambda several: [fault(batch) for batch in as_tree(several)])
    assert not found.passed
