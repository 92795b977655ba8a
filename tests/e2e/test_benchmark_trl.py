"""The benchmark against TRL compares equals: TRL's own trainer and the training step here have one loss and one gradient."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from benchmarks import trl
from benchmarks.support.shapes import SHAPES, Lengths
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
TINY = {
    "vocab_size": 4200,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")


@needs_trl
@pytest.mark.parametrize("method", ["full", "lora"])
def test_trl_has_the_same_loss_and_gradient(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    variants = (trl.FULL if method == "full" else trl.LORA, trl.OWN, trl.FUSED, trl.PADDED)
    lengths = Lengths(prompt=6, answer=9, spread=0.5)
    case = trl.Case("tiny", "tiny", lengths, tokens=300, variants=variants, method=method, trl_length=120)
    found = trl.compare(case, rounds=1, threads=1)
    assert set(found.agreement) == {trl.OWN, trl.FUSED, trl.PADDED}
    for apart in found.agreement.values():
        assert apart.loss < 1e-6
        assert apart.gradient < 1e-5


def test_another_loss_or_gradient_is_no_agreement(tmp_path: Path) -> None:
    files = str(tmp_path / "theirs"), str(tmp_path / "ours")
    same = {"loss": 2.0}, {"loss": 2.0}
    within = trl.CLOSE["fp32"]
    save_file({"w": torch.tensor([3.0, 4.0])}, files[1])
    save_file({"w": torch.tensor([3.0, 4.0 + 5e-5])}, files[0])
    apart = trl.agree(same, files, within)
    assert apart.loss == 0
    assert apart.gradient == pytest.approx(1e-5, rel=0.01)
    with pytest.raises(AssertionError, match="losses"):
        trl.agree(({"loss": 2.001}, {"loss": 2.0}), files, within)
    save_file({"w": torch.tensor([3.0, 4.1])}, files[0])
    with pytest.raises(AssertionError, match="gradients differ"):
        trl.agree(same, files, within)
    save_file({"w": torch.tensor([3.0, 4.0]), "v": torch.tensor([1.0])}, files[0])
    with pytest.raises(AssertionError, match="other parameters"):
        trl.agree(same, files, within)
