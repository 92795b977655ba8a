"""`tutelage merge`, as a program: the figures it prints, and what it leaves behind when it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tiny import tiny_folder, tiny_tokenizer
from tutelage.chat.tokenizer import ChatTokenizer
from tutelage.cli.merge import run
from tutelage.config.schema import LoraConfig, ModelConfig
from tutelage.model.adapters import add_lora, trainable_parameters
from tutelage.model.export import save_model
from tutelage.model.load import load_model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose result is an adapter; its base lies beside it."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    base = tiny_folder(folder.with_name("base"), "llama")
    adapted = add_lora(load_model(ModelConfig(path=str(base))).model, LoraConfig(rank=2))
    torch.manual_seed(0)
    for _, parameter in trainable_parameters(adapted):
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    save_model(adapted, ChatTokenizer(tiny_tokenizer()), None, folder / "final")
    return folder


def test_merging_prints_its_figures_and_writes_a_plain_model(run_folder: Path, tmp_path: Path) -> None:
    words = ["merge", str(run_folder), str(tmp_path / "merged"), "--dtype", "bf16"]
    command = [sys.executable, "-c", "from tutelage.cli.main import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "written as bf16" in done.stdout
    assert "written model against adapter" in done.stdout
    assert "%" in done.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype is torch.bfloat16


def test_the_figures_can_be_read_by_machines(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(run_folder, tmp_path / "merged", as_json=True)
    figures = json.loads(capsys.readouterr().out)
    assert figures["folder"] == str(tmp_path / "merged")
    assert figures["dtype"] == "fp32"
    assert figures["error"]["max_difference"] <= figures["allowed_difference"]
    assert figures["error"]["argmax_agreement"] == 1
    assert figures["effect"]["mean_kl"] > 0.01
