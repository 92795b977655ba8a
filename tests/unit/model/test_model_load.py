"""Loading models of many families, random starts, dropout and grown vocabularies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny import FAMILIES, VOCABULARY, tiny_config, tiny_folder, tiny_model
from tutelage.config.schema import ModelConfig
from tutelage.errors import ModelError, UnsafeError
from tutelage.model.load import build_from_config, grow_embeddings, load_model, read_config, set_dropout
from tutelage.model.locate import locate_model

IDS = torch.tensor([[5, 9, 200, 33, 7]])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "llama", "llama")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("family", [*FAMILIES, "mamba"])
def test_a_folder_of_any_family_loads_in_fp32_and_evaluation_mode(tmp_path: Path, family: str) -> None:
    loaded = load_model(ModelConfig(path=str(tiny_folder(tmp_path / family, family))))
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert torch.equal(loaded.model(IDS).logits, tiny_model(family)(IDS).logits)


def test_weights_stored_in_bf16_become_fp32_masters_unless_asked_otherwise(tmp_path: Path) -> None:
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "m")
    cfg = ModelConfig(path=str(tmp_path / "m"))
    loaded = load_model(cfg)
    assert loaded.stored_dtype is torch.bfloat16
    assert loaded.model.dtype is torch.float32
    assert load_model(cfg, dtype=torch.bfloat16).model.dtype is torch.bfloat16


def test_sharded_weights_load(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "m", max_shard_size="50KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    assert torch.equal(load_model(ModelConfig(path=str(tmp_path / "m"))).model(IDS).logits, model(IDS).logits)
    next((tmp_path / "m").glob("*.safetensors")).unlink()
    with pytest.raises(ModelError, match="one of its"):
        load_model(ModelConfig(path=str(tmp_path / "m")))


def _drop_norm(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.norm.weight"]


def _add_stranger(weights: dict[str, torch.Tensor]) -> None:
    weights["model.stranger.weight"] = torch.ones(2)


def _shrink_norm(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"] = torch.ones(3)


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit_weights(folder, _drop_norm), "lacks model.norm.weight"),
        (lambda folder: edit_weights(folder, _add_stranger), "does not know: model.stranger.weight"),
        (lambda folder: edit_weights(folder, _shrink_norm), "another shape .* model.norm.weight"),
        (_truncate, "model.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "model.safetensors is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json; it holds"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: edit_config(folder, model_type="no-such-model"), "no-such-model"),
        (lambda folder: edit_config(folder, architectures=["LlamaForSequenceClassification"]), "no causal language"),
        (lambda folder: edit_config(folder, model_type="t5", architectures=["T5ForConditionalGeneration"]), "'t5'"),
        (lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq"}), "quantised"),
    ],
)
def test_a_folder_that_is_not_a_whole_causal_model_says_what_is_wrong(
    llama: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "damaged"))
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(ModelConfig(path=str(folder)))
    assert caught.value.mend


def test_a_seed_decides_random_weights_and_leaves_the_global_generator_alone(llama: Path) -> None:
    torch.manual_seed(123)
    expected_next = torch.rand(1)
    torch.manual_seed(123)
    first = build_from_config(llama, seed=1)
    assert torch.equal(torch.rand(1), expected_next)
    again = build_from_config(json.loads((llama / "config.json").read_text()), seed=1)
    other = build_from_config(read_config(locate_model(llama)), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_a_configuration_that_asks_for_code_or_is_unknown_is_refused() -> None:
    with pytest.raises(UnsafeError):
        build_from_config({"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}, seed=0)
    with pytest.raises(ModelError):
        build_from_config({"model_type": "no-such-model"}, seed=0)
    with pytest.raises(ModelError, match="no causal"):
        build_from_config({"model_type": "t5"}, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_reaches_the_layers_of_every_attention_family(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path / family, family)
    model = load_model(ModelConfig(path=str(folder), dropout=0.5)).model.train()
    torch.manual_seed(0)
    first, second = model(IDS).logits, model(IDS).logits
    assert not torch.equal(first, second)
    assert torch.equal(model.eval()(IDS).logits, tiny_model(family)(IDS).logits)


def test_dropout_for_an_architecture_without_any_is_an_error() -> None:
    with pytest.raises(ModelError, match="mamba has no dropout"):
        set_dropout(tiny_config("mamba"), 0.1)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "gemma2", "gpt_neox"])
def test_new_tokens_get_rows_and_old_tokens_keep_their_logits(family: str) -> None:
    model = tiny_model(family)
    before = model(IDS).logits
    new = [VOCABULARY, VOCABULARY + 1]
    assert grow_embeddings(model, new, seed=3) == 2
    assert model.config.get_text_config().vocab_size == VOCABULARY + 2
    after = model(IDS).logits
    assert torch.allclose(after[..., :VOCABULARY], before, atol=1e-5)
    assert bool(after[..., new].isfinite().all())
    # The head finds a new token about as likely as an average one, so it takes little from the others.
    assert float(after.detach().softmax(-1)[..., new].sum(-1).max()) < 0.1

    table = model.get_input_embeddings().weight
    assert not torch.equal(table[new[0]], table[new[1]])
    assert torch.allclose(table[new], table[:VOCABULARY].mean(0).expand(2, -1), atol=0.1)
    twin = tiny_model(family)
    grow_embeddings(twin, new, seed=3)
    assert torch.equal(twin(IDS).logits, after)


def test_new_tokens_in_spare_rows_need_no_growth_but_a_fresh_start() -> None:
    model = tiny_model("llama")
    model.get_input_embeddings().weight.data[380] = 1e6  # a spare row holds whatever it holds
    assert grow_embeddings(model, [380]) == 0
    assert float(model.get_input_embeddings().weight[380].detach().abs().max()) < 1
    assert grow_embeddings(model, []) == 0


def test_a_grown_model_is_saved_and_loaded_with_its_new_rows(tmp_path: Path) -> None:
    model = tiny_model("llama_tied")
    grow_embeddings(model, [VOCABULARY])
    model.save_pretrained(tmp_path / "m")
    ids = torch.tensor([[VOCABULARY, 3]])
    assert torch.equal(load_model(ModelConfig(path=str(tmp_path / "m"))).model(ids).logits, model(ids).logits)


def test_a_real_pretrained_model_loads(shared_data: Path) -> None:
    loaded = load_model(ModelConfig(path=str(shared_data / "models" / "stories260K")))
    logits = loaded.model(torch.tensor([[1, 403, 407, 261, 378]])).logits  # <s> Once upon a time
    assert logits.softmax(-1)[0, -1].max() > 0.5
