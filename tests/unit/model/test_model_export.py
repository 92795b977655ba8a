"""Saving, plain loading elsewhere, and merging that is checked before it is called done."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import tutelage.model.export as export
from tiny import FAMILIES, VOCABULARY, tiny_folder, tiny_model, tiny_tokenizer
from tutelage.chat.template import Template
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.config.schema import LoraConfig, ModelConfig
from tutelage.errors import ModelError, RunDirError
from tutelage.files.manifest import read_manifest, verify_manifest
from tutelage.model.adapters import add_lora, trainable_parameters
from tutelage.model.export import compare_logits, merge, save_model
from tutelage.model.load import grow_embeddings, load_model

IDS = torch.tensor([[5, 9, 200, 33, 7]])
NEW = [VOCABULARY, VOCABULARY + 1]
TEMPLATE = Template("{% for m in messages %}<|turn|>{{ m.content }}<|end|>{% endfor %}", name="test")


def tokenizer(*, grown: bool = False) -> ChatTokenizer:
    hf = tiny_tokenizer()
    if grown:
        hf.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|end|>"]})
        assert hf.convert_tokens_to_ids(["<|turn|>", "<|end|>"]) == NEW
    return ChatTokenizer(hf)


def make_adapter(
    tmp_path: Path,
    family: str = "llama",
    *,
    grown: bool = True,
    size: float = 0.1,
    base_dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """Write a base and an adapter whose weights have moved; return the adapter's folder, ids and its logits for them."""
    base = tiny_folder(tmp_path / "base", family, dtype=base_dtype)
    model = load_model(ModelConfig(path=str(base))).model
    new = NEW if grown else []
    grow_embeddings(model, new)
    adapted = add_lora(model, LoraConfig(rank=2, **settings), new_ids=new).eval()
    generator = torch.Generator().manual_seed(1)
    for _, parameter in trainable_parameters(adapted):
        parameter.data.add_(size * torch.randn(parameter.shape, generator=generator))
    ids = torch.tensor([[5, 9, *new, 33]])
    save_model(adapted, tokenizer(grown=grown), TEMPLATE, tmp_path / "adapter", stop_ids=new[1:])
    return tmp_path / "adapter", ids, adapted(ids).logits.detach()


def test_a_saved_folder_has_all_that_others_need(tmp_path: Path) -> None:
    model = tiny_model("llama")
    grow_embeddings(model, NEW)
    save_model(model, tokenizer(grown=True), TEMPLATE, tmp_path / "m", stop_ids=[NEW[1]], about={"steps": 7})
    assert verify_manifest(tmp_path / "m") == []
    assert read_manifest(tmp_path / "m")["about"] == {"steps": 7}
    assert GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == [NEW[1], 2]
    loaded_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert loaded_tokenizer.chat_template == TEMPLATE.source
    assert loaded_tokenizer("<|turn|>x").input_ids[1] == NEW[0]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ids = torch.tensor([[5, *NEW]])
    assert torch.equal(plain(ids).logits, model(ids).logits)
    assert not list((tmp_path / "m").glob("*.bin"))


def test_a_model_without_a_template_is_saved_without_one(tmp_path: Path) -> None:
    save_model(tiny_model("gpt2"), tokenizer(), None, tmp_path / "m")
    assert AutoTokenizer.from_pretrained(tmp_path / "m").chat_template is None


def test_saving_over_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "precious").write_text("x")
    with pytest.raises(RunDirError, match="exists already"):
        save_model(tiny_model("llama"), tokenizer(), None, tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_generation_settings_that_transformers_will_not_save_are_made_valid(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.temperature = 0.6  # as some published models have it, without do_sample
    save_model(model, tokenizer(), None, tmp_path / "m")
    saved = GenerationConfig.from_pretrained(tmp_path / "m")
    assert (saved.temperature, saved.do_sample) == (0.6, True)
    assert model.generation_config.do_sample is not True


def test_files_of_a_saved_model_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        save_model(tiny_model("llama"), tokenizer(), None, tmp_path / "m")
    finally:
        os.umask(old)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "m").iterdir()} == {"0o644"}


def assert_same(got: torch.Tensor, trained: torch.Tensor) -> None:
    """Compare logits with those of the model that trained, whose layers add in another order than peft's."""
    torch.testing.assert_close(got, trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_an_adapter_with_new_tokens_loads_in_plain_peft(tmp_path: Path, family: str) -> None:
    folder, ids, logits = make_adapter(tmp_path, family)
    in_peft = AutoPeftModelForCausalLM.from_pretrained(folder)(ids).logits
    assert_same(in_peft, logits)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(folder)), mean_resizing=False)
    assert torch.equal(PeftModel.from_pretrained(base, folder)(ids).logits, in_peft)
    assert torch.equal(load_model(ModelConfig(path=str(folder))).model(ids).logits, in_peft)


def test_an_adapter_is_written_the_same_in_every_process(tmp_path: Path) -> None:
    folder, _, _ = make_adapter(tmp_path, grown=False)
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert len(targets) >= 7
    assert targets == sorted(targets)


def test_an_adapter_without_new_tokens_loads_on_its_base_as_it_is(tmp_path: Path) -> None:
    folder, ids, logits = make_adapter(tmp_path, grown=False)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert_same(PeftModel.from_pretrained(base, folder)(ids).logits, logits)


def test_a_loaded_adapter_trains_on_when_asked(tmp_path: Path) -> None:
    folder, _, _ = make_adapter(tmp_path)
    assert not trainable_parameters(load_model(ModelConfig(path=str(folder))).model)
    names = [
        name for name, _ in trainable_parameters(load_model(ModelConfig(path=str(folder)), train_adapter=True).model)
    ]
    assert any("lora_A" in name for name in names)
    assert any("token_adapter" in name for name in names)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_is_the_adapted_one(tmp_path: Path, family: str) -> None:
    folder, ids, logits = make_adapter(tmp_path, family)
    report = merge(folder, tmp_path / "merged")
    assert report.is_same_model
    assert report.error.argmax_agreement == 1
    assert report.effect.mean_kl > 0.1
    assert report.lost < 1e-6
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(plain(ids).logits, logits, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == TEMPLATE.source
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id[0] == NEW[1]
    assert verify_manifest(tmp_path / "merged") == []


@pytest.mark.parametrize("settings", [{"dora": True}, {"rslora": True}, {"targets": ["q_proj"]}])
def test_every_kind_of_adapter_merges(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder, ids, logits = make_adapter(tmp_path, **settings)
    merge(folder, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(plain(ids).logits, logits, atol=1e-4)


def test_merging_keeps_the_type_of_the_base_and_measures_its_rounding(tmp_path: Path) -> None:
    folder, _, _ = make_adapter(tmp_path, grown=False, base_dtype=torch.bfloat16)
    report = merge(folder, tmp_path / "merged")
    assert report.dtype is torch.bfloat16
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert 1e-7 < report.error.mean_kl < report.allowed_kl
    exact = merge(folder, tmp_path / "exact", dtype=torch.float32)
    assert exact.error.mean_kl < report.error.mean_kl / 100


def test_a_merge_that_rounds_the_training_away_is_refused(tmp_path: Path) -> None:
    folder, _, _ = make_adapter(tmp_path, grown=False, size=1e-4)
    with pytest.raises(ModelError, match=r"times as much as the adapter") as caught:
        merge(folder, tmp_path / "merged", dtype=torch.bfloat16)
    assert "fp32" in caught.value.mend
    assert merge(folder, tmp_path / "merged", dtype=torch.float32).lost < 0.01


def test_a_wrong_merge_is_noticed_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, _ = make_adapter(tmp_path)
    right = export.merge_adapter

    def wrong(model: Any) -> Any:
        merged = right(model)
        merged.get_output_embeddings().weight.data[NEW[1]].zero_()  # the stop token's row goes missing
        return merged

    monkeypatch.setattr(export, "merge_adapter", wrong)
    with pytest.raises(ModelError, match="changed its logits"):
        merge(folder, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_merging_refuses_a_whole_model_and_a_taken_folder(tmp_path: Path) -> None:
    folder, _, _ = make_adapter(tmp_path, grown=False)
    with pytest.raises(ModelError, match="whole model already"):
        merge(tmp_path / "base", tmp_path / "merged")
    with pytest.raises(RunDirError, match="exists already"):
        merge(folder, tmp_path / "base")
    assert not (tmp_path / "merged").exists()


def test_logits_are_compared_position_by_position() -> None:
    first = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    second = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]])
    same, other = compare_logits(first, first), compare_logits(first, second)
    assert (same.max_difference, same.mean_kl, same.argmax_agreement, same.tokens) == (0, 0, 1, 2)
    p = torch.tensor([0.0, 1.0]).softmax(0)
    expected_kl = float((p * (p.log() - p.flip(0).log())).sum()) / 2  # one of two positions differs
    assert other.max_difference == 1
    assert other.argmax_agreement == 0.5
    assert other.mean_kl == pytest.approx(expected_kl, rel=1e-6)


def test_the_figures_of_a_merge_are_the_same_each_time(tmp_path: Path) -> None:
    folder, _, _ = make_adapter(tmp_path)
    first = merge(folder, tmp_path / "one")
    torch.rand(7)  # whatever was drawn before
    second = merge(folder, tmp_path / "two")
    assert (first.error, first.noise, first.effect) == (second.error, second.noise, second.effect)
