from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import masking_utils

from sample_documents import document, random_documents
from tiny import tiny_model
from tutelage.chat.documents import loss_weights_of
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout, Precision, TrainConfig
from tutelage.model.attention import NAME, register_attention
from tutelage.pack.plan import PlanOptions, Step, plan_epoch
from tutelage.train.objective import Reweighing, total
from tutelage.train.optim import build_optimiser
from tutelage.train.step import StepSettings, accumulate_gradients, train_step

register_attention()
SETTINGS = StepSettings(
    layout=Layout.PACKED,
    micro_tokens=64,
    seed=0,
    precision=Precision.FP32,
    device=torch.device("cpu"),
    largest_grad_norm=1.0,
    neftune_alpha=0.0,
    sources=("source-0", "source-1", "source"),
)
LENGTHS = (5, 17, 3, 9, 31, 2, 12, 8, 24, 7, 19, 4)


def model_of(family: str = "llama", dtype: torch.dtype = torch.float64, **changes: object) -> torch.nn.Module:
    model = tiny_model(family, dtype=dtype, **changes)
    model.set_attn_implementation(NAME)
    return model.train()


def plan_of(documents: list[Rendered], **options: int) -> list[Step]:
    settings = PlanOptions(**{"pack_tokens": 64, "batch_tokens": 256, **options})
    lengths = [len(one) for one in documents]
    return plan_epoch(np.arange(len(documents)), lengths, loss_weights_of(documents), settings, epoch=0)


def gradients(model: torch.nn.Module, step: Step, documents: list[Rendered], settings: StepSettings) -> torch.Tensor:
    model.zero_grad()
    accumulate_gradients(model, step, documents, settings, step=1)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_layout_and_accumulation_do_not_change_the_gradient(family: str) -> None:
    documents = random_documents(LENGTHS)
    model = model_of(family, **({"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0} if family == "gpt2" else {}))
    whole = plan_of(documents, pack_tokens=256)[0]
    small_packs = plan_of(documents, pack_tokens=256, micro_tokens=32)[0]
    assert sorted(whole.documents) == sorted(small_packs.documents) and len(small_packs.packs) > len(whole.packs)
    expected = gradients(model, whole, documents, SETTINGS)
    for step, layout in [(small_packs, Layout.PACKED), (whole, Layout.PADDED), (whole, Layout.SINGLE)]:
        found = gradients(model, step, documents, replace(SETTINGS, layout=layout))
        assert (found - expected).norm() / expected.norm() < 1e-10


def test_the_loss_is_the_weighted_mean_over_the_whole_step() -> None:
    documents = random_documents(LENGTHS[:6])
    model = model_of()
    step = plan_of(documents)[0]
    expected, weight = 0.0, 0.0
    for one in documents:
        ids = torch.from_numpy(one.ids).long()[None]
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        for position in range(1, len(one)):
            expected -= float(one.weights[position]) * log_p[position - 1, ids[0, position]].item()
            weight += float(one.weights[position])
    result = train_step(model, build_optimiser(model, TrainConfig()), step, documents, SETTINGS, step=1)
    assert result.loss == pytest.approx(expected / weight, rel=1e-9)
    assert result.weight_sum == step.weight_sum == pytest.approx(weight)


def test_sums_of_sources_add_up_to_the_step() -> None:
    documents = random_documents(LENGTHS)
    model = model_of()
    step = plan_of(documents)[0]
    result = train_step(model, build_optimiser(model, TrainConfig()), step, documents, SETTINGS, step=1)
    assert set(result.by_source) == {"source-0", "source-1"}
    for name, totals in result.by_source.items():
        own = [documents[i] for i in step.documents if documents[i].source == name]
        assert totals.sums.tokens == sum(one.supervised_tokens for one in own)
        assert totals.sums.weight_sum == pytest.approx(sum(one.weights[1:].sum() for one in own))
        assert (totals.read_tokens, totals.read_documents) == (sum(map(len, own)), len(own))


def test_a_step_of_documents_without_trained_tokens_in_a_pack_is_finite() -> None:
    silent = document([5, 6, 7], [0.0, 0.0, 0.0])
    documents = [silent, *random_documents(LENGTHS[:3])]
    model = model_of()
    result = train_step(
        model, build_optimiser(model, TrainConfig()), plan_of(documents)[0], documents, SETTINGS, step=1
    )
    assert math.isfinite(result.loss)


def test_a_pack_of_nothing_but_silent_documents_adds_nothing() -> None:
    documents = [document([5, 6, 7], [0.0] * 3), document([8, 9, 10, 11], [0.0, 1.0, 1.0, 1.0])]
    model = model_of()
    together = Step(packs=((0,), (1,)), num_tokens=7, weight_sum=3.0)
    alone = Step(packs=((1,),), num_tokens=4, weight_sum=3.0)
    torch.testing.assert_close(
        gradients(model, together, documents, SETTINGS), gradients(model, alone, documents, SETTINGS), rtol=0, atol=0
    )


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.PADDED])
def test_reweighed_sources_are_trained_as_if_their_tokens_had_that_weight(layout: Layout) -> None:
    documents = random_documents(LENGTHS)
    heavier = [replace(one, weights=3 * one.weights) if one.source == "source-1" else one for one in documents]
    settings, reweighing = replace(SETTINGS, layout=layout), Reweighing(frozenset({"source-1"}), 3.0)
    found = {}
    for name, rows, told in (("planned", heavier, Reweighing()), ("reweighed", documents, reweighing)):
        model = model_of()
        optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
        result = train_step(model, optimiser, plan_of(rows)[0], rows, settings, step=1, reweighing=told)
        found[name] = (result, torch.cat([p.detach().flatten() for p in model.parameters()]))
    (expected, expected_p), (result, parameters) = found["planned"], found["reweighed"]
    torch.testing.assert_close(parameters, expected_p, rtol=1e-12, atol=1e-12)
    assert (result.weight_sum, result.loss) == (pytest.approx(expected.weight_sum), pytest.approx(expected.loss))
    assert result.by_source["source-1"].sums.weight_sum == pytest.approx(expected.by_source["source-1"].sums.weight_sum)
    unchanged = model_of()
    train_step(
        unchanged, torch.optim.SGD(unchanged.parameters(), lr=1.0), plan_of(documents)[0], documents, settings, step=1
    )
    assert not torch.allclose(torch.cat([p.detach().flatten() for p in unchanged.parameters()]), expected_p)


@pytest.mark.parametrize("fault", [None, "it is Monday"])
def test_a_step_that_its_judge_refuses_leaves_weights_and_moments(fault: str | None) -> None:
    documents, asked = random_documents(LENGTHS[:3]), []

    def judge(loss: float, grad_norm: float) -> str | None:
        asked.append((loss, grad_norm))
        return fault

    model = model_of(dtype=torch.float32)
    optimiser = build_optimiser(model, TrainConfig())
    before = [p.clone() for p in model.parameters()]
    result = train_step(model, optimiser, plan_of(documents)[0], documents, SETTINGS, step=7, judge=judge)
    assert result.left_out == fault
    assert asked == [(result.loss, result.grad_norm)]
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)) is (
        fault is not None
    )
    assert (not optimiser.state) is (fault is not None)
    assert all(p.grad is None for p in model.parameters())


class CountReads(TorchDispatchMode):
    """Counts the moments at which the host asks for a value, for each of which it would wait on a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("neftune_alpha", [0.0, 5.0])
def test_a_step_reads_its_figures_in_one_transfer_and_no_value_apart(
    neftune_alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # transformers asks once a pass whether the positions are those of a pack.
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda positions: torch.zeros_like(positions))
    documents = random_documents(LENGTHS)
    model = model_of()
    step = plan_of(documents, pack_tokens=64, micro_tokens=32)[0]
    assert len(step.packs) > 3
    optimiser = build_optimiser(model, TrainConfig())
    settings = replace(SETTINGS, neftune_alpha=neftune_alpha)
    train_step(model, optimiser, step, documents, settings, step=1)  # shows what follows the head
    with CountReads() as reads:
        result = train_step(model, optimiser, step, documents, settings, step=2)
    assert reads.count == 0  # all come in one list
    with CountReads() as reads:
        torch.tensor(result.grad_norm).item()
    assert reads.count == 1


def test_dropout_depends_on_seed_step_and_pack_alone() -> None:
    documents = random_documents(LENGTHS[:8])
    model = model_of("gpt2", resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.0)
    step = plan_of(documents)[0]

    def at(number: int, seed: int = 0) -> torch.Tensor:
        torch.rand(number + seed)  # whatever else draws numbers must not matter
        model.zero_grad()
        accumulate_gradients(model, step, documents, replace(SETTINGS, seed=seed), step=number)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    assert torch.equal(at(3), at(3))
    assert not torch.equal(at(3), at(4))
    assert not torch.equal(at(3), at(3, seed=1))


def test_gradient_checkpointing_changes_nothing() -> None:
    documents = random_documents(LENGTHS[:8])
    model = model_of()
    step = plan_of(documents)[0]
    expected = gradients(model, step, documents, SETTINGS)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    torch.testing.assert_close(gradients(model, step, documents, SETTINGS), expected, rtol=1e-12, atol=1e-14)


def test_bf16_computes_nearly_the_loss_and_gradient_of_fp32_over_weights_that_stay_fp32() -> None:
    documents = random_documents(LENGTHS)
    model = model_of(dtype=torch.float32)
    step = plan_of(documents)[0]
    found = {}
    for precision in (Precision.FP32, Precision.BF16):
        model.zero_grad()
        sums = accumulate_gradients(model, step, documents, replace(SETTINGS, precision=precision), step=1)
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[precision] = (total(sums.over_all_ranks().by_source).loss_sum, gradient)
    (exact_loss, exact), (loss, gradient) = found[Precision.FP32], found[Precision.BF16]
    assert loss == pytest.approx(exact_loss, rel=1e-2) and loss != exact_loss
    assert torch.nn.functional.cosine_similarity(gradient, exact, dim=0) > 0.99
