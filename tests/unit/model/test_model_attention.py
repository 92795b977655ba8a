"""The "tutelage" attention: per document in a pack, and transformers' own everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, GptOssConfig, PreTrainedModel

from sample_documents import random_documents
from tiny import FAMILIES, tiny_config, tiny_model
from true_double import TrueDouble
from tutelage.errors import IsolationError
from tutelage.model import attention
from tutelage.model.attention import (
    NAME,
    AttentionChoice,
    DocumentMask,
    Rules,
    choose_attention,
    document_attention,
    document_attention_forward,
    forward_arguments,
    register_attention,
)
from tutelage.model.head import supervised_losses
from tutelage.pack.batch import pack_batch, pad_batch

register_attention()


def sinks_model() -> PreTrainedModel:
    """A tiny gpt-oss: attention sinks, a window in every second layer, mixture of experts."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=2,
    )
    return AutoModelForCausalLM.from_config(config, experts_implementation="eager").double().eval()


@pytest.fixture(params=["gemma2", "gpt-oss", "mistral", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    if request.param == "gpt-oss":
        return sinks_model()
    return tiny_model(request.param, dtype=torch.float64)


def logits_with(model: PreTrainedModel, name: str, **inputs: Any) -> Tensor:
    model.set_attn_implementation(name)
    with torch.no_grad(), TrueDouble():
        return model(**inputs).logits


def test_an_ordinary_call_gives_what_eager_attention_gives(model: PreTrainedModel) -> None:
    ids = torch.arange(3, 33).view(2, 15)
    expected = logits_with(model, "eager", input_ids=ids)
    torch.testing.assert_close(logits_with(model, NAME, input_ids=ids), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_call_gives_what_eager_attention_gives(model: PreTrainedModel, side: str) -> None:
    ids = torch.arange(3, 33).view(2, 15)
    mask = torch.ones_like(ids)
    mask[1, (slice(0, 4) if side == "left" else slice(11, 15))] = 0
    expected = logits_with(model, "eager", input_ids=ids, attention_mask=mask)
    found = logits_with(model, NAME, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-12)


def test_generation_with_a_cache_gives_what_eager_attention_gives(model: PreTrainedModel) -> None:
    answers = []
    for name in ("eager", NAME):
        model.set_attn_implementation(name)
        with TrueDouble():
            answers.append(
                model.generate(
                    torch.arange(3, 15)[None],
                    attention_mask=torch.ones(1, 12, dtype=torch.long),
                    max_new_tokens=12,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                ).tolist()
            )
    assert answers[0] == answers[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ordinary_call_is_bit_for_bit_sdpa(family: str) -> None:
    if family == "gemma2":
        pytest.skip("transformers' sdpa refuses soft-capping")
    ids = torch.arange(3, 33).view(2, 15)
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    model = tiny_model(family)
    found = []
    for name in ("sdpa", NAME):
        model.set_attn_implementation(name)
        with torch.no_grad():
            found.append(model(input_ids=ids, attention_mask=mask).logits)
    assert torch.equal(*found)


def test_a_pack_gives_each_document_what_eager_attention_gives_it_alone(model: PreTrainedModel) -> None:
    documents = random_documents()
    batch = pack_batch(documents)
    model.set_attn_implementation(NAME)
    with torch.no_grad(), document_attention(batch), TrueDouble():
        packed = model(**forward_arguments(model, batch)).logits[0].split(batch.lengths)
    for document, found in zip(documents, packed, strict=True):
        alone = logits_with(model, "eager", input_ids=torch.from_numpy(document.ids).long()[None])
        torch.testing.assert_close(found, alone[0], rtol=0, atol=1e-12)


def test_boundaries_are_forgotten_after_the_forward_pass_and_after_an_error() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation(NAME)
    batch = pack_batch(random_documents((6, 6)))
    with pytest.raises(RuntimeError, match="stop"), document_attention(batch):
        raise RuntimeError("stop")
    with torch.no_grad():
        whole = model(input_ids=batch.input_ids, use_cache=False).logits
        with document_attention(batch):
            packed = model(input_ids=batch.input_ids, use_cache=False).logits
    torch.testing.assert_close(whole[0, :6], packed[0, :6])
    assert not torch.allclose(whole[0, 6:], packed[0, 6:], atol=1e-2)


def test_another_forward_pass_inside_is_not_mistaken_for_the_pack() -> None:
    model = tiny_model("llama", dtype=torch.float64)
    model.set_attn_implementation(NAME)
    ids = torch.arange(3, 23)[None]
    expected = logits_with(model, NAME, input_ids=ids)
    with document_attention(pack_batch(random_documents((6, 6)))):
        assert torch.equal(logits_with(model, NAME, input_ids=ids), expected)


def test_dropout_acts_in_training_and_not_in_evaluation() -> None:
    for family in ("llama", "gemma2"):
        model = tiny_model(family, attention_dropout=0.5)
        model.set_attn_implementation(NAME)
        batch = pack_batch(random_documents())
        still = [supervised_losses(model, batch).weighted_sum.item() for _ in range(2)]
        model.train()
        moving = [supervised_losses(model, batch).weighted_sum.item() for _ in range(2)]
        assert still[0] == still[1]
        assert moving[0] != moving[1]


class Layer(nn.Module):
    num_key_value_groups = 2
    is_causal = True


def document_mask_of(lengths: tuple[int, ...], window: int | None = None) -> DocumentMask:
    def rule(start: int, length: int) -> Tensor:
        distance = torch.arange(length)[:, None] - torch.arange(length)
        return ((distance >= 0) & (distance < (window or length)))[None, None]

    return DocumentMask(pack_batch(random_documents(lengths)), window, False, rule)


@pytest.mark.parametrize("option", [{"position_bias": torch.zeros(1)}, {"is_causal": False}])
def test_attention_that_is_not_plainly_causal_is_refused_in_a_pack(option: dict[str, Any]) -> None:
    q, k = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    with pytest.raises(IsolationError, match="per-document"):
        document_attention_forward(Layer(), q, k, k, document_mask_of((2, 3)), **option)


@pytest.mark.parametrize(
    "use",
    [lambda mask: mask.dtype, lambda mask: mask[:, :, :4], lambda mask: torch.zeros(2) + mask, lambda mask: mask + 1],
)
def test_a_model_that_computes_with_the_mask_is_told_that_it_cannot_be_packed(use: Callable[[Any], Any]) -> None:
    with pytest.raises(IsolationError, match="attention mask"):
        use(document_mask_of((2, 3)))


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What torch documents of `varlen_attn`, in plain operations: [T, H, E] in, [T, H, E] out."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == int(cu_seq_q.diff().max()) and max_k == int(cu_seq_k.diff().max())
    assert enable_gqa == (query.shape[1] != key.shape[1])
    out = []
    left, right = window_size
    for of_queries, of_keys in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        # The last query stands where the last key does, as in FlashAttention since 2.1.
        at_query = torch.arange(*of_queries) - of_queries[1]
        ahead = torch.arange(*of_keys) - of_keys[1] - at_query[:, None]
        seen = (ahead <= right) & ((left == -1) | (ahead >= -left))
        q, k, v = (
            x[slice(*span)].transpose(0, 1)[None] for x, span in ((query, of_queries), (key, of_keys), (value, of_keys))
        )
        out.append(
            scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)[0].transpose(0, 1)
        )
    return torch.cat(out)


@pytest.fixture
def varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the varlen branch run here, against a plain kernel of the documented signature."""
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: reference_varlen)
    yield


@pytest.mark.parametrize("window", [None, 4])
def test_the_varlen_kernel_is_called_for_the_same_result(varlen_on_cpu: None, window: int | None) -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 4, 17, 8, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, 17, 8, dtype=torch.float64)
    mask = document_mask_of((5, 1, 11), window)
    rules = Rules(scaling=0.3, dropout=0.0, softcap=None, sinks=None)
    expected = attention._attend_per_document(q, k, v, mask, rules)
    torch.testing.assert_close(attention._attend_varlen(q, k, v, mask, rules), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 4])
def test_the_varlen_kernel_gets_the_keys_of_each_path_of_a_tree(varlen_on_cpu: None, window: int | None) -> None:
    documents = random_documents((5, 6, 4))
    for document, common in zip(documents[1:], (3, 2), strict=True):
        document.ids[:common] = documents[0].ids[:common]
    mask = replace(document_mask_of((5,), window), batch=pack_batch([*documents, documents[0]], shared=(0, 3, 2, 0)))
    torch.manual_seed(0)
    q = torch.randn(1, 4, 15, 8, dtype=torch.float64)
    k, v = torch.randn(2, 1, 2, 15, 8, dtype=torch.float64)
    rules = Rules(scaling=0.3, dropout=0.0, softcap=None, sinks=None)
    expected = attention._attend_per_document(q, k, v, mask, rules)
    torch.testing.assert_close(attention._attend_varlen(q, k, v, mask, rules), expected, rtol=0, atol=1e-12)


def test_this_torch_has_the_varlen_kernel_that_the_gpu_path_needs() -> None:
    assert attention._varlen_kernel() is not None


def test_the_varlen_kernel_is_kept_for_half_precision_on_a_gpu() -> None:
    q = torch.randn(1, 4, 5, 8, dtype=torch.bfloat16)
    assert not attention._fits_varlen(q, q, document_mask_of((5,)), Rules(None, 0.0, None, None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_on_a_gpu_gives_the_losses_of_each_document_alone(family: str) -> None:
    documents = random_documents((5, 17, 1, 9, 31, 200, 2))
    model = tiny_model(family, dtype=torch.bfloat16).to("cuda")
    model.set_attn_implementation(NAME)
    packed = supervised_losses(model, pack_batch(documents).to("cuda")).loss
    alone = [supervised_losses(model, pack_batch([document]).to("cuda")).loss for document in documents]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0.05, atol=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_on_a_gpu_gives_the_losses_of_each_document_alone(family: str) -> None:
    documents = random_documents((40, 60, 33, 200, 31))
    for document in documents[1:]:
        document.ids[:30] = documents[0].ids[:30]
    model = tiny_model(family, dtype=torch.bfloat16).to("cuda")
    model.set_attn_implementation(NAME)
    tree = supervised_losses(model, pack_batch(documents, (0, 30, 30, 30, 30)).to("cuda")).loss
    alone = [supervised_losses(model, pack_batch([document]).to("cuda")).loss for document in documents]
    torch.testing.assert_close(tree, torch.cat(alone), rtol=0.05, atol=0.05)


def test_the_choice_follows_the_architecture() -> None:
    assert choose_attention(tiny_config("llama"), "cpu").name == NAME
    assert choose_attention(tiny_config("mamba"), "cpu").name == "eager"
    assert choose_attention(tiny_config("llama"), "cpu", "sdpa") == AttentionChoice(
        "sdpa", "asked for by model.attention"
    )
    assert "varlen" in choose_attention(tiny_config("llama"), "cuda").reason
    hybrid = tiny_config("qwen3", layer_types=["full_attention", "full_attention"])
    assert choose_attention(hybrid, "cpu").name == NAME
    hybrid.layer_types = ["conv", "full_attention"]
    assert choose_attention(hybrid, "cpu") == AttentionChoice(
        "sdpa", "layers of type conv carry state across a whole row"
    )


def test_only_arguments_that_the_architecture_knows_are_passed() -> None:
    batch = pad_batch(random_documents())
    assert set(forward_arguments(tiny_model("llama"), batch)) == {
        "input_ids",
        "position_ids",
        "attention_mask",
        "use_cache",
    }
    assert "position_ids" not in forward_arguments(tiny_model("mamba"), batch)
    assert forward_arguments(tiny_model("llama"), replace(batch, attention_mask=None))["attention_mask"] is None


def test_wrappers_are_seen_through() -> None:
    inner = tiny_model("llama")
    wrapper = nn.Module()
    wrapper.module = inner
    assert attention.unwrapped(wrapper) is inner
    assert attention.unwrapped(inner) is inner
