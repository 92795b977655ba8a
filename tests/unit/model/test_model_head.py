"""Losses of supervised tokens: exact, and no logits for any other token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sample_documents import document, random_documents
from tiny import tiny_model
from tutelage.config.schema import Layout
from tutelage.model import head
from tutelage.model.attention import NAME, register_attention
from tutelage.model.head import supervised_logits, supervised_losses
from tutelage.pack.batch import make_batches, pack_batch, pad_batch

register_attention()


def packed_model(family: str = "llama", **changes: object):  # type: ignore[no-untyped-def]
    model = tiny_model(family, **changes)
    model.set_attn_implementation(NAME)
    return model


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.PADDED, Layout.SINGLE])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_logits_are_those_of_the_whole_forward_pass_at_supervised_positions(family: str, layout: Layout) -> None:
    model = packed_model(family)
    for batch in make_batches(random_documents(), layout, 256):
        everywhere = replace(batch, supervised=torch.arange(batch.input_ids.numel()))
        with torch.no_grad():
            expected = supervised_logits(model, everywhere)[batch.supervised]
            torch.testing.assert_close(supervised_logits(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_the_head_sees_supervised_positions_only() -> None:
    model = packed_model()
    batch = pad_batch(random_documents())
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, __, out: seen.append(out.shape[:-1].numel()))
    supervised_losses(model, batch)
    handle.remove()
    assert seen == [batch.num_supervised]
    assert model(input_ids=batch.input_ids).logits.shape[:2] == batch.input_ids.shape


def test_soft_capping_of_the_logits_is_kept() -> None:
    model = packed_model("gemma2", final_logit_softcapping=1.5)
    logits = supervised_logits(model, pack_batch(random_documents()))
    assert 1.0 < logits.abs().max() < 1.5


def test_a_model_without_an_output_embedding_still_gives_its_losses() -> None:
    model = packed_model()
    batch = pack_batch(random_documents())
    expected = supervised_losses(model, batch).loss

    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def get_output_embeddings(self) -> None:
            return None

        def forward(self, input_ids, position_ids, attention_mask, use_cache):  # type: ignore[no-untyped-def]
            return self.inner(
                input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=use_cache
            )

    torch.testing.assert_close(supervised_losses(Headless(), batch).loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 1024])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropy_in_chunks_is_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(head, "CHUNK_VALUES_CPU", rows * 50)
    torch.manual_seed(0)
    logits = (torch.randn(23, 50) * 4).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (23,))
    weight = torch.rand(23)
    exact = torch.float64 if dtype is torch.float64 else torch.float32
    loss, correct = head._cross_entropy(logits, targets)
    (grad,) = torch.autograd.grad((loss * weight).sum(), logits)
    expected = cross_entropy(logits.to(exact), targets, reduction="none")
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), logits)
    assert loss.dtype == exact
    assert grad.dtype == dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)
    assert torch.equal(correct, logits.argmax(-1) == targets)


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4]], requires_grad=True)
    loss, _ = head._cross_entropy(logits, torch.tensor([1, 2]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([6e4, 1.0986123])
    assert torch.isfinite(logits.grad).all()


def test_the_backward_pass_keeps_no_wide_copy_of_the_logits() -> None:
    logits = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        head._cross_entropy(logits, torch.zeros(64, dtype=torch.long))
    assert [t.dtype for t in kept if t.shape == logits.shape] == [torch.bfloat16]


def test_weights_scale_the_loss_and_a_batch_without_supervised_tokens_costs_nothing() -> None:
    model = packed_model()
    single = document([5, 6, 7, 8], [0, 0, 1, 1])
    double = document([5, 6, 7, 8], [0, 0, 2, 2])
    once = supervised_losses(model, pack_batch([single])).weighted_sum.item()
    assert supervised_losses(model, pack_batch([double])).weighted_sum.item() == pytest.approx(2 * once)
    nothing = supervised_losses(model, pack_batch([document([5, 6, 7], [1, 0, 0])]))
    nothing.weighted_sum.backward()
    assert nothing.loss.shape == (0,)
    assert nothing.weighted_sum.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_target_that_is_the_likeliest_token_counts_as_correct() -> None:
    model = packed_model()
    ids = [5, 6, 7, 8, 9]
    with torch.no_grad():
        likeliest = model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
    right = supervised_losses(model, pack_batch([document([*ids, likeliest[-1]], [0, 0, 0, 0, 0, 1])]))
    wrong = supervised_losses(model, pack_batch([document([*ids, likeliest[-1] ^ 1], [0, 0, 0, 0, 0, 1])]))
    assert right.correct.tolist() == [True]
    assert wrong.correct.tolist() == [False]
