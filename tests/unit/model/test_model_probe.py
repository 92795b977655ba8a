"""The probes find planted bugs, pass sound models, and leave everything as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sample_documents import document, random_documents
from tiny import tiny_model
from tutelage.chat.rendered import Rendered
from tutelage.config.schema import Layout
from tutelage.model.attention import NAME, register_attention
from tutelage.model.probe import (
    ProbeResult,
    choose_documents,
    probe_causality,
    probe_isolation,
    probe_layout,
)
from tutelage.pack.batch import Batch, make_batches, pack_batch

register_attention()


def packed_model(family: str = "llama", **changes: Any) -> PreTrainedModel:
    model = tiny_model(family, **changes)
    model.set_attn_implementation(NAME)
    return model


def all_probes(model: PreTrainedModel) -> list[ProbeResult]:
    batch = pack_batch(random_documents())
    return [probe_isolation(model, batch), probe_causality(model, batch), probe_layout(model, random_documents())]


@pytest.fixture
def planted() -> Iterator[Callable[[Any], str]]:
    """Register transformers' sdpa with a wrong mask function as an attention implementation of its own."""
    name = "tutelage-test-planted"

    def plant(mask_function: Any) -> str:
        AttentionInterface.register(name, sdpa_attention_forward)
        AttentionMaskInterface.register(name, mask_function)
        return name

    yield plant
    AttentionInterface._global_mapping.pop(name)
    AttentionMaskInterface._global_mapping.pop(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mistral"])
def test_a_sound_model_passes_every_probe(family: str, dtype: torch.dtype) -> None:
    for found in all_probes(packed_model(family).to(dtype)):
        assert found.passed, found.detail


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_packs_in_the_own_attention_of_transformers_pass_too(name: str) -> None:
    model = tiny_model("llama")
    model.set_attn_implementation(name)
    assert all(found.passed for found in all_probes(model))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lost_boundaries_are_caught(planted: Callable[[Any], str], family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    model.set_attn_implementation(planted(lambda *_, **__: None))  # causal over the whole pack, positions restart
    isolation, causality, layout = all_probes(model)
    assert not isolation.passed
    assert isolation.figures["max_gradient"] > 0
    assert not layout.passed
    assert causality.passed
    assert "another document" in isolation.detail


def test_an_all_ones_attention_mask_is_caught(planted: Callable[[Any], str]) -> None:
    model = tiny_model("llama")

    def everything(*_: Any, q_length: int, kv_length: int, **__: Any) -> torch.Tensor:
        return torch.ones(1, 1, q_length, kv_length, dtype=torch.bool)

    model.set_attn_implementation(planted(everything))
    isolation, causality, _ = all_probes(model)
    assert not isolation.passed
    assert not causality.passed
    assert "a later token" in causality.detail


def test_a_boundary_that_is_off_by_one_is_caught() -> None:
    def shift_boundaries(documents: Sequence[Rendered]) -> list[Batch]:
        batch = pack_batch(documents)
        first, second, *rest = batch.lengths
        return [replace(batch, lengths=(first + 1, second - 1, *rest))]

    assert not probe_layout(packed_model(), random_documents((6, 7, 8)), shift_boundaries).passed


def test_positions_that_do_not_restart_are_caught_where_positions_are_absolute() -> None:
    def running_positions(documents: Sequence[Rendered]) -> list[Batch]:
        batch = pack_batch(documents)
        return [replace(batch, position_ids=torch.arange(batch.num_tokens)[None])]

    assert not probe_layout(packed_model("gpt2"), random_documents(), running_positions).passed
    # Rotary positions are relative: inside a document that nothing else can see, a common offset changes nothing.
    assert probe_layout(packed_model("llama"), random_documents(), running_positions).passed


@pytest.mark.parametrize("by", [-1, 1])
def test_labels_shifted_in_the_batch_are_caught(by: int) -> None:
    def shifted(documents: Sequence[Rendered]) -> list[Batch]:
        batch = pack_batch(documents)
        return [replace(batch, supervised=(batch.supervised + by).clamp(0, batch.num_tokens - 1))]

    assert not probe_layout(packed_model(), random_documents(), shifted).passed


def test_labels_shifted_across_boundaries_are_caught() -> None:
    def shifted_after_joining(documents: Sequence[Rendered]) -> list[Batch]:
        joined = document(np.concatenate([d.ids for d in documents]), np.concatenate([d.weights for d in documents]))
        batch = pack_batch(documents)
        targets, weights = joined.shifted()
        supervised = torch.from_numpy(np.flatnonzero(weights))
        owner = torch.bucketize(supervised, batch.cu_seqlens, right=True) - 1
        return [
            replace(
                batch,
                supervised=supervised,
                supervised_targets=torch.from_numpy(targets)[supervised],
                supervised_weights=torch.from_numpy(weights)[supervised],
                supervised_document=owner,
            )
        ]

    every_token = [document(d.ids.tolist(), [1.0] * len(d), name=d.record_id) for d in random_documents((4, 5, 6))]
    assert not probe_layout(packed_model(), every_token, shifted_after_joining).passed


@pytest.mark.parametrize("by", [0, 2])
def test_a_wrong_shift_at_the_source_is_caught(monkeypatch: pytest.MonkeyPatch, by: int) -> None:
    def wrong(self: Rendered) -> tuple[np.ndarray, np.ndarray]:
        weights = np.zeros(len(self), dtype=np.float32)
        targets = np.full(len(self), -100, dtype=np.int64)
        weights[: len(self) - by] = self.weights[by:]
        targets[: len(self) - by] = self.ids[by:]
        return targets, weights

    monkeypatch.setattr(Rendered, "shifted", wrong)
    assert not probe_layout(packed_model(), random_documents()).passed


def test_lost_weights_are_caught() -> None:
    def unweighted(documents: Sequence[Rendered]) -> list[Batch]:
        batch = pack_batch(documents)
        return [replace(batch, supervised_weights=torch.ones_like(batch.supervised_weights))]

    assert not probe_layout(packed_model(), random_documents(), unweighted).passed


def test_a_padded_layout_is_probed_too() -> None:
    def padded(documents: Sequence[Rendered]) -> list[Batch]:
        return make_batches(documents, Layout.PADDED, 64)

    def everything_masked(documents: Sequence[Rendered]) -> list[Batch]:
        return [replace(batch, attention_mask=torch.zeros_like(batch.input_ids)) for batch in padded(documents)]

    assert probe_layout(tiny_model("mamba"), random_documents(), padded).passed
    assert not probe_layout(tiny_model("llama"), random_documents(), everything_masked).passed


def test_a_model_whose_layers_carry_state_fails_isolation() -> None:
    found = probe_isolation(tiny_model("mamba"), pack_batch(random_documents()))
    assert not found.passed
    assert found.figures["max_logit_change"] > 100 * found.figures["tolerance"]


def test_a_model_that_computes_with_its_mask_fails_isolation_with_the_reason() -> None:
    model = packed_model()
    model.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attention_mask": kwargs["attention_mask"][:, :, :4]}),
        with_kwargs=True,
    )
    found = probe_isolation(model, pack_batch(random_documents()))
    assert not found.passed
    assert "attention mask" in found.detail


def test_a_model_that_ignores_its_input_is_not_taken_for_an_isolated_one() -> None:
    model = packed_model()
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    isolation, causality, _ = all_probes(model)
    assert not isolation.passed
    assert not causality.passed
    assert "nothing" in isolation.detail


def test_one_document_has_nothing_to_be_kept_apart_from() -> None:
    found = probe_isolation(packed_model(), pack_batch(random_documents((9,))))
    assert found.passed
    assert "one document" in found.detail


def test_probes_leave_mode_gradients_hooks_and_random_state_as_they_were() -> None:
    model = packed_model("gpt2", attn_pdrop=0.1).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    frozen = model.transformer.wpe.weight.requires_grad_(False)
    model.transformer.wte.weight.grad = torch.ones_like(model.transformer.wte.weight)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with torch.no_grad():
        found = all_probes(model)
    assert all(result.passed for result in found)
    assert torch.equal(torch.rand(4), expected)
    assert [module.training for module in model.modules()] == modes
    assert not frozen.requires_grad
    grads = {name for name, p in model.named_parameters() if p.grad is not None}
    assert grads == {"transformer.wte.weight"}
    assert torch.equal(model.transformer.wte.weight.grad, torch.ones_like(model.transformer.wte.weight))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_frozen_models_are_probed_as_well() -> None:
    model = packed_model()
    model.requires_grad_(False)
    assert all(found.passed for found in all_probes(model))


@pytest.mark.parametrize("modules_to_save", [None, ["embed_tokens", "lm_head"]])
def test_a_model_with_adapters_is_probed_through_them(modules_to_save: list[str] | None) -> None:
    settings = LoraConfig(
        r=4,
        target_modules="all-linear",
        modules_to_save=modules_to_save,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(packed_model(tie_word_embeddings=False), settings)
    assert all(found.passed for found in all_probes(model))


def test_probed_documents_are_few_different_and_supervised() -> None:
    empty = document([5, 6, 7], [0, 0, 0], name="unsupervised")
    long, *short = random_documents((200, 20, 30, 40))
    assert choose_documents([empty, long, *short, short[0]], max_tokens=100) == short
    assert choose_documents([long, short[2], short[1]], max_tokens=10) == [short[1], short[2]]
    assert choose_documents([empty]) == []
    assert probe_layout(packed_model(), [empty]).passed


def test_the_probe_draws_other_tokens_from_the_batch() -> None:
    """Token ids from outside could be placeholders for images, which some models refuse."""
    model = packed_model()
    seen: set[int] = set()
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.update(inputs[0].flatten().tolist()))
    batch = pack_batch(random_documents())
    probe_isolation(model, batch)
    probe_causality(model, batch)
    assert seen == set(batch.input_ids.flatten().tolist())
