"""The model that is trained: which part of it learns, and what takes part in the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import tiny_folder
from tutelage.config.schema import Config, Precision
from tutelage.model.adapters import trainable_parameters
from tutelage.train.trainee import Start, Trainee, make_trainee

IDS = torch.tensor([[5, 9, 200, 33, 7], [8, 3, 60, 61, 2]])
CPU = torch.device("cpu")


def lora_trainee(folder: Path, *, precision: Precision = Precision.FP32, **train: Any) -> Trainee:
    """A tiny Llama with adapters on all its linear layers, moved away from their start."""
    if not folder.exists():
        tiny_folder(folder, "llama")
    config = Config.model_validate(
        {
            "model": {"path": str(folder)},
            "data": {"train": [{"path": "none.jsonl"}]},
            "train": {"method": "lora", "lora": {"rank": 4}, **train},
            "run": {"dir": "none"},
        }
    )
    trainee = make_trainee(config, start=Start.WEIGHTS, device=CPU, precision=precision)
    generator = torch.Generator().manual_seed(1)
    for _, parameter in trainable_parameters(trainee.model):
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return trainee


def run_backward(trainee: Trainee) -> tuple[Tensor, Tensor]:
    """Take a step's gradient; return the loss and what the embedding put out."""
    outputs: list[Tensor] = []
    embedding = trainee.model.get_input_embeddings()  # type: ignore[operator]
    embedding.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    loss: Tensor = trainee.model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()  # type: ignore[no-untyped-call]
    (output,) = outputs
    return loss.detach(), output


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_below_the_first_adapter_takes_part_in_the_backward_pass(tmp_path: Path, checkpointing: bool) -> None:
    trainee = lora_trainee(tmp_path / "model", gradient_checkpointing=checkpointing)
    _, output = run_backward(trainee)
    assert not output.requires_grad
    assert output.grad_fn is None
    for name, parameter in trainee.model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name


def test_checkpointing_changes_no_gradient_of_an_adapter(tmp_path: Path) -> None:
    plain = lora_trainee(tmp_path / "model")
    checkpointed = lora_trainee(tmp_path / "model", gradient_checkpointing=True)
    assert torch.equal(run_backward(plain)[0], run_backward(checkpointed)[0])
    for (name, want), (_, got) in zip(
        trainable_parameters(plain.model), trainable_parameters(checkpointed.model), strict=True
    ):
        assert want.grad is not None
        assert torch.equal(got.grad, want.grad), name
