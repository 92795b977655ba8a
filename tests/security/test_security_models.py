"""Model folders that would run code when loaded are refused before anything of them is read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tiny import tiny_folder, tiny_model
from tutelage.config.schema import LoraConfig, ModelConfig
from tutelage.errors import UnsafeError
from tutelage.model.adapters import add_lora
from tutelage.model.load import load_model
from tutelage.model.locate import locate_model


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.target,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def struck(tmp_path: Path) -> Path:
    """The file that exists if code of the model has run."""
    return tmp_path / "code-has-run"


def edit(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**settings, **changes}))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl", "__0_0.distcp"]
)
def test_pickled_weights_are_refused_with_the_way_to_convert_them(folder: Path, struck: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(struck)))
    with pytest.raises(UnsafeError, match="pickle") as caught:
        load_model(ModelConfig(path=str(folder)))
    assert "save_file" in caught.value.mend
    assert not struck.exists()


def test_a_pickle_beside_safetensors_is_never_opened(folder: Path, struck: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(struck)))
    load_model(ModelConfig(path=str(folder)))
    assert not struck.exists()


def test_an_index_may_name_only_safetensors_of_its_own_folder(folder: Path, struck: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "shard.bin").write_bytes(pickle.dumps(Bomb(struck)))
    for shard in ("shard.bin", "../outside.safetensors", str(folder.parent / "outside.safetensors")):
        edit(folder / "model.safetensors.index.json", weight_map={"model.norm.weight": shard})
        with pytest.raises(UnsafeError, match="only safetensors inside"):
            load_model(ModelConfig(path=str(folder)))
    assert not struck.exists()


def test_a_configuration_may_not_name_a_pickle_as_its_weights(folder: Path, struck: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(struck)))
    edit(folder / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(UnsafeError, match=r"adapter_model\.bin"):
        load_model(ModelConfig(path=str(folder)))
    assert not struck.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("model_type", ["llama", "their_own"])
def test_code_that_comes_with_a_model_is_refused(folder: Path, struck: Path, file: str, model_type: str) -> None:
    (folder / "theirs.py").write_text(f"open({str(struck)!r}, 'w')\nclass Theirs: pass\n")
    edit(folder / "config.json", model_type=model_type)
    edit(folder / file, auto_map={"AutoConfig": "theirs.Theirs", "AutoModelForCausalLM": "theirs.Theirs"})
    with pytest.raises(UnsafeError, match="auto_map"):
        load_model(ModelConfig(path=str(folder)))
    assert not struck.exists()


def test_an_attention_kernel_from_the_hub_is_refused(folder: Path) -> None:
    edit(folder / "config.json", _attn_implementation="someone/kernel")
    with pytest.raises(UnsafeError, match="someone/kernel"):
        load_model(ModelConfig(path=str(folder)))


def test_a_pickled_adapter_is_refused(folder: Path, tmp_path: Path, struck: Path) -> None:
    model = tiny_model("llama")
    model.name_or_path = str(folder)
    adapter = tmp_path / "adapter"
    add_lora(model, LoraConfig(rank=2)).save_pretrained(str(adapter), save_embedding_layers=False)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(struck)))
    with pytest.raises(UnsafeError, match="pickle"):
        load_model(ModelConfig(path=str(adapter)))
    assert not struck.exists()


def test_the_base_of_an_adapter_is_held_to_the_same_rules(folder: Path, tmp_path: Path, struck: Path) -> None:
    adapter = tmp_path / "adapter"
    model = tiny_model("llama")
    model.name_or_path = str(folder)
    add_lora(model, LoraConfig(rank=2)).save_pretrained(str(adapter), save_embedding_layers=False)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeError):
        locate_model(adapter)


@pytest.mark.parametrize(("module", "strikes"), [("tutelage.model.adapters", False), ("bitsandbytes", True)])
def test_no_kernel_comes_from_the_hub_with_bitsandbytes(tmp_path: Path, module: str, strikes: bool) -> None:
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("bitsandbytes asks the Hub only on processors with bf16 products")
    struck = tmp_path / "struck"
    (tmp_path / "kernels.py").write_text(
        f"def get_kernel(*_, **__):\n    open({str(struck)!r}, 'w').close()\n    raise RuntimeError('struck')\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    ended = subprocess.run(
        [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, env=environment, check=True
    )
    assert struck.exists() is strikes
    assert ("kernels-community" in ended.stderr) is strikes
