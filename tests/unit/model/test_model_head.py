"""Losses of supervised tokens: exact, and no logits for any other token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sample_documents import document, random_documents
from tiny import tiny_model
from true_double import TrueDouble
from tutelage.config.schema import Layout
from tutelage.model import head
from tutelage.model.attention import NAME, register_attention
from tutelage.model.cross_entropy import Head, LogitMap, cross_entropy, linear_cross_entropy
from tutelage.model.head import TokenLosses, supervised_logits, supervised_losses
from tutelage.model.probe import probe_layout
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
    monkeypatch.setattr("tutelage.model.cross_entropy.CHUNK_ROWS_CPU", rows)
    torch.manual_seed(0)
    logits = (torch.randn(23, 50) * 4).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (23,))
    weight = torch.rand(23)
    exact = torch.float64 if dtype is torch.float64 else torch.float32
    loss, correct = cross_entropy(logits, targets)
    (grad,) = torch.autograd.grad((loss * weight).sum(), logits)
    expected = nn.functional.cross_entropy(logits.to(exact), targets, reduction="none")
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), logits)
    assert loss.dtype == exact
    assert grad.dtype == dtype
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)
    assert torch.equal(correct, logits.argmax(-1) == targets)


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4]], requires_grad=True)
    loss, _ = cross_entropy(logits, torch.tensor([1, 2]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([6e4, 1.0986123])
    assert torch.isfinite(logits.grad).all()


def test_the_backward_pass_keeps_no_wide_copy_of_the_logits() -> None:
    logits = torch.randn(64, 32, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        cross_entropy(logits, torch.zeros(64, dtype=torch.long))
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


class LargestTensor(TorchDispatchMode):
    """Record how many elements the largest tensor has that any operation inside allocates; views are none."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        there = {storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        made = [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor) and storage(leaf) not in there]
        self.numel = max([self.numel, *(leaf.numel() for leaf in made)])
        return results


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def watched_head(model: nn.Module) -> Iterator[None]:
    """A hook that changes nothing, but makes the head more than a plain linear layer."""
    handle = model.get_output_embeddings().register_forward_hook(lambda _, __, out: out)
    try:
        yield
    finally:
        handle.remove()


def gradients_of(model: nn.Module, losses: TokenLosses) -> dict[str, torch.Tensor]:
    model.zero_grad()
    losses.weighted_sum.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_as_with_whole_logits(model: nn.Module, documents: list, tolerance: float) -> None:  # type: ignore[type-arg]
    batch = pack_batch(documents)
    losses = supervised_losses(model, batch)
    gradients = gradients_of(model, losses)
    with watched_head(model):
        expected = supervised_losses(model, batch)
        expected_gradients = gradients_of(model, expected)
    assert torch.equal(losses.correct, expected.correct)
    torch.testing.assert_close(losses.loss, expected.loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(losses.weighted_sum, expected.weighted_sum, rtol=tolerance, atol=tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, expected_gradients[name], rtol=0, atol=tolerance * float(gradient.abs().max())
        )


MAPS: dict[str, tuple[LogitMap, Callable[[torch.Tensor], torch.Tensor]]] = {
    "as they are": (LogitMap(), lambda logits: logits),
    "scaled": (LogitMap(scale=0.25), lambda logits: logits * 0.25),
    "capped": (LogitMap(cap=3.0), lambda logits: 3.0 * torch.tanh(logits / 3.0)),
}


@pytest.mark.parametrize(
    "wanted", [(True, True, True), (True, False, False), (False, True, True), (False, False, True)]
)
@pytest.mark.parametrize("after", MAPS)
@pytest.mark.parametrize("rows", [1, 7, 512])
def test_head_and_cross_entropy_in_chunks_give_the_gradients_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, rows: int, after: str, wanted: tuple[bool, bool, bool]
) -> None:
    monkeypatch.setattr("tutelage.model.cross_entropy.CHUNK_ROWS_CPU", rows)
    torch.manual_seed(0)
    values = torch.randn(16, 23).double().t(), torch.randn(50, 16).double(), torch.randn(50).double()
    hidden, weight, bias = (x.requires_grad_(wants) for x, wants in zip(values, wanted, strict=True))
    assert not hidden.is_contiguous()
    targets, weights = torch.randint(0, 50, (23,)), torch.rand(23)
    logit_map, by_hand = MAPS[after]
    chosen = [x for x in (hidden, weight, bias) if x.requires_grad]

    total, loss, correct = linear_cross_entropy(hidden, Head(weight, bias, logit_map), targets, weights)
    logits = by_hand(hidden @ weight.t() + bias)
    expected = nn.functional.cross_entropy(logits, targets, reduction="none")
    expected_total = (expected * weights).sum()

    tight = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(loss, expected.detach(), **tight)
    torch.testing.assert_close(total, expected_total, **tight)
    assert torch.equal(correct, logits.argmax(-1) == targets)
    assert not loss.requires_grad
    for one, other in zip(
        torch.autograd.grad(total * 0.5, chosen), torch.autograd.grad(expected_total * 0.5, chosen), strict=True
    ):
        torch.testing.assert_close(one, other, **tight)


@pytest.mark.parametrize("S", [0, 1])
def test_no_token_and_one_token_have_gradients_too(S: int) -> None:
    hidden, weight = torch.randn(S, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets = torch.full((S,), 3)
    total, _, _ = linear_cross_entropy(hidden, Head(weight, None, LogitMap()), targets, torch.ones(S))
    gradients = torch.autograd.grad(total, (hidden, weight))
    expected = torch.autograd.grad(
        nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="sum"), (hidden, weight)
    )
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_extreme_logits_in_a_head_give_finite_losses_and_gradients() -> None:
    hidden, weight = torch.tensor([[3e4]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    total, loss, _ = linear_cross_entropy(hidden, Head(weight, None, LogitMap()), torch.tensor([1]), torch.ones(1))
    total.backward()
    assert loss.tolist() == [6e4]
    assert hidden.grad.tolist() == [[2.0]]
    assert weight.grad.tolist() == [[3e4], [-3e4]]


def test_the_loss_is_differentiated_once() -> None:
    hidden = torch.randn(3, 4, requires_grad=True)
    head = Head(torch.randn(9, 4), None, LogitMap())
    total, _, _ = linear_cross_entropy(hidden, head, torch.tensor([1, 2, 3]), torch.ones(3))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated already"):
        total.backward()


def test_the_gradients_become_those_of_the_leaves_without_a_copy() -> None:
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    total, _, _ = linear_cross_entropy(hidden, Head(weight, None, LogitMap()), torch.tensor([1, 2, 3]), torch.ones(3))
    made = [gradient.data_ptr() for gradient in total.grad_fn.gradients if gradient is not None]
    total.backward()
    assert [hidden.grad.data_ptr(), weight.grad.data_ptr()] == made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("after", MAPS)
def test_a_gpu_gives_what_the_cpu_gives(monkeypatch: pytest.MonkeyPatch, after: str) -> None:
    monkeypatch.setattr("tutelage.model.cross_entropy.CHUNK_ROWS_CPU", 16)
    monkeypatch.setattr("tutelage.model.cross_entropy.CHUNK_VALUES_GPU", 16 * 5000)
    hidden, weight, bias = torch.randn(50, 32).double(), torch.randn(5000, 32).double(), torch.randn(5000).double()
    targets, weights = torch.randint(0, 5000, (50,)), torch.rand(50)
    found = []
    for device in ("cpu", "cuda"):
        leaves = [x.to(device).detach().requires_grad_() for x in (hidden, weight, bias)]
        head_there = Head(leaves[1], leaves[2], MAPS[after][0])
        total, loss, _ = linear_cross_entropy(leaves[0], head_there, targets.to(device), weights.to(device))
        found.append([x.cpu() for x in (loss, *torch.autograd.grad(total, leaves))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


FOLLOWED = {
    "llama": {},
    "llama_tied": {},
    "gemma2": {"final_logit_softcapping": 1.5},
    "granite": {},
    "cohere": {},
}


@pytest.mark.parametrize("family", FOLLOWED)
def test_a_model_gives_the_loss_and_gradient_of_its_own_logits(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr("tutelage.model.cross_entropy.CHUNK_ROWS_CPU", 10)
    with TrueDouble():
        model = packed_model(family, dtype=torch.float64, **FOLLOWED[family])
        assert_as_with_whole_logits(model, random_documents(), 1e-12)


def test_a_frozen_head_gets_no_gradient_and_the_body_the_same() -> None:
    with TrueDouble():
        model = packed_model(dtype=torch.float64)
        model.lm_head.weight.requires_grad_(False)
        assert_as_with_whole_logits(model, random_documents(), 1e-12)
    assert model.lm_head.weight.grad is None


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_adapters_on_the_head_and_off_it(targets: list[str]) -> None:
    model = get_peft_model(
        packed_model(dtype=torch.float64), LoraConfig(target_modules=targets, init_lora_weights=False)
    )
    with TrueDouble():
        assert_as_with_whole_logits(model.eval(), random_documents(), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_bf16_the_products_are_coarse_and_the_losses_are_not(dtype: torch.dtype) -> None:
    model = packed_model(dtype=dtype)
    batch = pack_batch(random_documents())
    with torch.autocast("cpu", torch.bfloat16):
        losses = supervised_losses(model, batch)
        with watched_head(model):
            expected = supervised_losses(model, batch)
    assert losses.loss.dtype == losses.weighted_sum.dtype == torch.float32
    torch.testing.assert_close(losses.loss, expected.loss, rtol=1e-5, atol=1e-5)
    one, other = gradients_of(model, losses), gradients_of(model, expected)
    for name, gradient in other.items():
        assert one[name].dtype == dtype
        assert (one[name] - gradient).norm() <= 0.02 * gradient.norm()


def test_no_tensor_is_as_large_as_the_logits_of_all_supervised_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.model.cross_entropy.CHUNK_ROWS_CPU", 16)
    model = packed_model()
    batch = pack_batch(random_documents((60,) * 8))
    S, V = batch.num_supervised, model.config.vocab_size
    assert model.lm_head.weight.numel() < S * V / 4
    with LargestTensor() as new:
        supervised_losses(model, batch).weighted_sum.backward()
    with watched_head(model), LargestTensor() as whole:
        supervised_losses(model, batch).weighted_sum.backward()
    assert new.numel < S * V / 3
    assert whole.numel == S * V


def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.model.cross_entropy.CHUNK_ROWS_CPU", 4)
    model = packed_model()
    batch = pack_batch(random_documents())
    expected = supervised_losses(model, batch)
    with torch.no_grad(), LargestTensor() as seen:
        losses = supervised_losses(model, batch)
    assert torch.equal(losses.loss, expected.loss)
    assert not losses.weighted_sum.requires_grad
    assert seen.numel < model.lm_head.weight.numel()


def test_a_head_followed_by_anything_else_is_left_to_the_model() -> None:
    """Dropout too falls the same way whether or not the model had to be looked at first."""
    batch = pack_batch(random_documents())
    model = packed_model("gpt2").train()
    uneven = torch.linspace(0.5, 1.5, model.config.vocab_size)
    model.register_forward_hook(lambda _, __, out: type(out)(logits=out.logits * uneven))
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        seen.append(supervised_losses(model, batch).weighted_sum)
    torch.manual_seed(0)
    whole = nn.functional.cross_entropy(supervised_logits(model, batch), batch.supervised_targets, reduction="none")
    assert seen[0] == seen[1]
    torch.testing.assert_close(seen[0], (whole * batch.supervised_weights).sum())


def test_the_layout_probe_looks_at_the_pass_that_made_the_losses() -> None:
    model = packed_model()
    uneven = torch.linspace(0.5, 1.5, model.config.vocab_size)
    model.register_forward_hook(lambda _, __, out: type(out)(logits=out.logits * uneven))
    assert probe_layout(model, random_documents()).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_is_found_to_the_last_bit_in_any_precision(dtype: torch.dtype) -> None:
    model = packed_model("granite", dtype=dtype, logits_scaling=6.0)
    supervised_losses(model, pack_batch(random_documents()))
    assert head._after_head[model.lm_head] == LogitMap(scale=1 / 6)
