"""LoRA: what trains, what stays, and what the settings mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tiny import FAMILIES, VOCABULARY, tiny_folder, tiny_model
from tutelage.config.schema import LoraConfig, ModelConfig
from tutelage.errors import ModelError
from tutelage.model.adapters import add_lora, is_adapted, linear_modules, merge_adapter, trainable_parameters
from tutelage.model.load import grow_embeddings, load_model

IDS = torch.tensor([[5, 9, 200, 33, 7]])
NEW = [VOCABULARY, VOCABULARY + 1]


def disturb(model: torch.nn.Module) -> None:
    """Move every trainable weight, as training would."""
    generator = torch.Generator().manual_seed(1)
    for _, parameter in trainable_parameters(model):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_as_a_no_op_and_alone_require_a_gradient(family: str) -> None:
    model = tiny_model(family)
    before = model(IDS).logits.detach()
    adapted = add_lora(model, LoraConfig(rank=2))
    assert is_adapted(adapted)
    assert torch.equal(adapted(IDS).logits, before)
    names = [name for name, _ in trainable_parameters(adapted)]
    assert names
    assert all("lora_" in name for name in names)
    assert not adapted.get_input_embeddings().weight.requires_grad
    disturb(adapted)
    adapted(IDS).logits.sum().backward()
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name


def test_the_update_is_scaled_by_alpha_over_rank_or_its_root() -> None:
    def scale(**settings: object) -> float:
        model = add_lora(tiny_model("llama"), LoraConfig(rank=4, alpha=8, targets=["q_proj"], **settings))
        return float(model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"])

    assert scale() == 8 / 4
    assert scale(rslora=True) == 8 / 4**0.5


def test_targets_choose_the_modules_and_unknown_ones_are_told_their_neighbours() -> None:
    adapted = add_lora(tiny_model("llama"), LoraConfig(rank=2, targets=["q_proj", "down_proj"]))
    assert {name.split(".")[-4] for name, _ in trainable_parameters(adapted)} == {"q_proj", "down_proj"}
    with pytest.raises(ModelError, match="did you mean q_proj") as caught:
        add_lora(tiny_model("llama"), LoraConfig(targets=["q_prj"]))
    assert "down_proj" in caught.value.mend
    assert "all-linear" in caught.value.mend


def test_modules_that_peft_cannot_adapt_are_told_with_those_there_are() -> None:
    with pytest.raises(ModelError, match="peft cannot adapt MambaForCausalLM") as caught:
        add_lora(tiny_model("mamba"), LoraConfig(rank=2, targets=["out_proj"]))
    assert "in_proj" in caught.value.mend


def test_a_single_target_may_be_written_without_a_list() -> None:
    adapted = add_lora(tiny_model("llama"), LoraConfig(rank=2, targets="o_proj"))
    assert {name.split(".")[-4] for name, _ in trainable_parameters(adapted)} == {"o_proj"}


def test_transposed_layers_of_gpt2_are_adapted_and_merged() -> None:
    model = tiny_model("gpt2")
    assert "c_attn" in linear_modules(model)
    adapted = add_lora(model, LoraConfig(rank=2))
    disturb(adapted)
    want = adapted(IDS).logits.detach()
    assert torch.allclose(merge_adapter(adapted)(IDS).logits, want, atol=1e-5)


def test_dora_trains_magnitudes_and_merges() -> None:
    adapted = add_lora(tiny_model("llama"), LoraConfig(rank=2, dora=True))
    assert any("magnitude" in name for name, _ in trainable_parameters(adapted))
    disturb(adapted)
    want = adapted(IDS).logits.detach()
    assert torch.allclose(merge_adapter(adapted)(IDS).logits, want, atol=1e-4)


def test_a_seed_decides_the_adapters() -> None:
    def first_matrix(seed: int) -> torch.Tensor:
        return trainable_parameters(add_lora(tiny_model("llama"), LoraConfig(rank=2), seed=seed))[0][1]

    assert torch.equal(first_matrix(1), first_matrix(1))
    assert not torch.equal(first_matrix(1), first_matrix(2))


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "gpt_neox", "gemma2"])
def test_rows_of_new_tokens_train_in_embedding_and_head_and_no_other_rows_move(family: str) -> None:
    model = tiny_model(family)
    grow_embeddings(model, NEW)
    old_rows = model.get_input_embeddings().weight[:VOCABULARY].detach().clone()
    old_head = model.get_output_embeddings().weight[:VOCABULARY].detach().clone()
    adapted = add_lora(model, LoraConfig(rank=2), new_ids=NEW)
    rows = [(name, p) for name, p in trainable_parameters(adapted) if "token_adapter" in name]
    tied = model.config.get_text_config().tie_word_embeddings
    assert len(rows) == (1 if tied else 2)
    assert all(len(p) == len(NEW) for _, p in rows)

    ids = torch.tensor([[5, NEW[0], 7, NEW[1], 9]])
    before = adapted(ids).logits.detach()
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert all(bool((p.grad != 0).any(dim=-1).all()) for _, p in rows)
    disturb(adapted)
    assert not torch.equal(adapted(ids).logits, before)

    merged = merge_adapter(adapted)
    assert torch.equal(merged.get_input_embeddings().weight[:VOCABULARY], old_rows)
    assert torch.equal(merged.get_output_embeddings().weight[:VOCABULARY], old_head)


def test_an_adapter_for_another_model_is_refused(tmp_path: Path) -> None:
    narrow = tiny_folder(tmp_path / "narrow", "llama", hidden_size=16)
    model = tiny_model("llama")
    model.name_or_path = str(narrow)
    add_lora(model, LoraConfig(rank=2)).save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    with pytest.raises(ModelError, match="does not fit"):
        load_model(ModelConfig(path=str(tmp_path / "adapter")))
