"""Which arithmetic a run takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from tutelage.config.schema import Config, Precision, TrainConfig
from tutelage.files.atomic import write_json
from tutelage.files.rundir import RunDir
from tutelage.train import precision
from tutelage.train.precision import bf16_speed, choose_precision
from tutelage.train.scene import _arithmetic
from tutelage.train.trainee import Start

CPU = torch.device("cpu")


def _choose(monkeypatch: pytest.MonkeyPatch, *, speed: float, hidden_size: int, asked: Precision) -> Precision:
    monkeypatch.setattr(precision, "bf16_speed", lambda threads: speed)
    return choose_precision(TrainConfig(precision=asked), CPU, LlamaConfig(hidden_size=hidden_size)).precision


@pytest.mark.parametrize(
    ("speed", "hidden_size", "taken"),
    [(3.8, 768, Precision.BF16), (1.2, 768, Precision.FP32), (0.02, 768, Precision.FP32), (3.8, 64, Precision.FP32)],
)
def test_a_cpu_takes_what_it_multiplies_fastest(
    monkeypatch: pytest.MonkeyPatch, speed: float, hidden_size: int, taken: Precision
) -> None:
    assert _choose(monkeypatch, speed=speed, hidden_size=hidden_size, asked=Precision.AUTO) is taken


@pytest.mark.parametrize("asked", [Precision.FP32, Precision.BF16, Precision.BF16_PURE])
def test_what_is_asked_for_is_taken(monkeypatch: pytest.MonkeyPatch, asked: Precision) -> None:
    assert _choose(monkeypatch, speed=0.02, hidden_size=64, asked=asked) is asked


def test_the_probe_times_real_products(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = torch.mm, []

    def watched(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.append(left.dtype)
        return real(left, right)

    monkeypatch.setattr(torch, "mm", watched)
    assert bf16_speed.__wrapped__(1) >= 0.01
    assert {torch.float32, torch.bfloat16} <= set(seen)


def test_a_run_that_goes_on_keeps_what_it_began_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(precision, "bf16_speed", lambda threads: 1.0)
    with RunDir.create(tmp_path / "run") as run:
        assert _arithmetic(Config(), run, Start.WEIGHTS, CPU).precision is Precision.FP32
        write_json(run.plan, {"precision": {"name": "bf16", "reason": "faster there"}})
        assert _arithmetic(Config(), run, Start.WEIGHTS, CPU).precision is Precision.BF16
