"""Where models are found, and what the messages say when they are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from tutelage.errors import ModelError, UnsafeError
from tutelage.model.locate import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    HUB_LEFT_OUT,
    HUB_TEXT_FILES,
    HUB_WEIGHT_FILES,
    locate_model,
    nearest,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NO_TENSORS = (2).to_bytes(8, "little") + b"{}"  # a whole safetensors file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model, as far as finding it goes."""
    path = tmp_path / "tiny-llama"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "model.safetensors").write_bytes(NO_TENSORS)
    return path


def adapter_of(base: str, path: Path, **changes: object) -> Path:
    path.mkdir()
    (path / ADAPTER_CONFIG_NAME).write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": base, **changes})
    )
    (path / ADAPTER_WEIGHTS_NAME).write_bytes(NO_TENSORS)
    return path


def test_a_local_folder_is_itself(folder: Path) -> None:
    located = locate_model(folder)
    assert located.folder == folder
    assert located.commit is None
    assert not located.is_adapter


def test_a_run_directory_stands_for_its_result(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(ModelError, match="no result yet"):
        locate_model(run)
    folder.rename(run / "final")
    assert locate_model(run).folder == run / "final"


def test_a_misspelt_folder_is_told_its_nearest_neighbour(folder: Path) -> None:
    with pytest.raises(ModelError, match="did you mean tiny-llama"):
        locate_model(folder.with_name("tiny-lama"))


def test_a_file_is_not_a_model_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        locate_model(folder / "config.json")


def test_a_hub_name_without_network_says_so_and_names_the_folders_at_hand(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(folder.parent)
    with pytest.raises(ModelError, match="did you mean tiny-llama") as caught:
        locate_model("tiny-lamma")
    assert "the Hub gives no model" in caught.value.problem


def cache_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *files: str) -> Path:
    """Make a Hub cache that holds one snapshot of `owner/tiny`, cut off from the network; return the snapshot."""
    cache = tmp_path / "hub" / "models--owner--tiny"
    snapshot = cache / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    for file in files:
        (snapshot / file).write_bytes(NO_TENSORS if file.endswith(".safetensors") else b"{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_a_cached_hub_model_is_found_with_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache_hub_model(tmp_path, monkeypatch, "config.json", "model.safetensors")
    located = locate_model("owner/tiny")
    assert located.commit == COMMIT
    assert located.folder == snapshot


def test_a_hub_model_without_safetensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cache_hub_model(tmp_path, monkeypatch, "config.json", "tokenizer.json")
    with pytest.raises(UnsafeError, match="no safetensors"):
        locate_model("owner/tiny")
    assert locate_model("owner/tiny", weights=False).folder == snapshot


def test_of_a_hub_model_only_what_is_needed_is_fetched() -> None:
    kept = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.model",
        "additional_chat_templates/tool_use.jinja",
    ]
    others = [
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/params.json",
        "onnx/model.safetensors",
        "model.py",
    ]
    allowed = [*HUB_TEXT_FILES, *HUB_WEIGHT_FILES]
    assert list(filter_repo_objects([*kept, *others], allow_patterns=allowed, ignore_patterns=[*HUB_LEFT_OUT])) == kept


def test_an_adapter_is_found_with_its_base(folder: Path, tmp_path: Path) -> None:
    located = locate_model(adapter_of(str(folder), tmp_path / "adapter"))
    assert located.is_adapter
    assert located.base is not None
    assert located.base.folder == folder
    assert located.tokenizer_folder == folder
    (located.folder / "tokenizer.json").write_text("{}")
    assert located.tokenizer_folder == located.folder


def test_the_base_of_an_adapter_may_be_given_relative_to_it_or_replaced(folder: Path, tmp_path: Path) -> None:
    relative = locate_model(adapter_of("../tiny-llama", tmp_path / "one"))
    assert relative.base is not None
    assert relative.base.folder == folder
    replaced = locate_model(adapter_of("./gone", tmp_path / "two"), base=str(folder))
    assert replaced.base is not None
    assert replaced.base.folder == folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"base_model_name_or_path": None}, "does not say which model"),
        ({"base_model_name_or_path": "./moved"}, "cannot be found"),
    ],
)
def test_an_adapter_that_cannot_be_used_says_why(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        locate_model(adapter_of("", tmp_path / "adapter", **changes))


def test_an_adapter_on_an_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    first = adapter_of(str(folder), tmp_path / "first")
    with pytest.raises(ModelError, match="another adapter"):
        locate_model(adapter_of(str(first), tmp_path / "second"))


def test_tokenizer_files_alone_are_enough_for_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert locate_model(tmp_path, weights=False).folder == tmp_path


def test_for_text_an_adapter_with_a_tokenizer_needs_no_base_and_one_without_takes_that_of_its_base(
    folder: Path, tmp_path: Path
) -> None:
    alone = adapter_of("./gone", tmp_path / "alone")
    (alone / "tokenizer.json").write_text("{}")
    assert locate_model(alone, weights=False).tokenizer_folder == alone
    bare = adapter_of(str(folder), tmp_path / "bare")
    (bare / ADAPTER_WEIGHTS_NAME).unlink()
    assert locate_model(bare, weights=False).tokenizer_folder == folder


def test_nearest_names_only_what_looks_alike() -> None:
    assert nearest("q_prj", ["q_proj", "lm_head"]) == "; did you mean q_proj?"
    assert nearest("xyz", ["q_proj"]) == ""


def test_finding_a_model_imports_no_torch() -> None:
    code = "import sys, tutelage.model.locate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
