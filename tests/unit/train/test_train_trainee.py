"""The model that is trained: which part of it learns, and what takes part in the backward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import tiny_folder
from tutelage.config.schema import Checkpointing, Config, Precision
from tutelage.model.adapters import trainable_parameters
from tutelage.model.checkpointing import set_checkpointing
from tutelage.model.lora_linear import narrow_frozen_matrices
from tutelage.train.trainee import Start, Trainee, make_trainee

IDS = torch.tensor([[5, 9, 200, 33, 7], [8, 3, 60, 61, 2]])
CPU = torch.device("cpu")


def lora_trainee(
    folder: Path,
    *,
    precision: Precision = Precision.FP32,
    checkpointing: Checkpointing = Checkpointing.NONE,
    **train: Any,
) -> Trainee:
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
    set_checkpointing(trainee.model, checkpointing)
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


@pytest.mark.parametrize("checkpointing", [Checkpointing.NONE, Checkpointing.SELECTIVE, Checkpointing.LAYERS])
def test_nothing_below_the_first_adapter_takes_part_in_the_backward_pass(
    tmp_path: Path, checkpointing: Checkpointing
) -> None:
    trainee = lora_trainee(tmp_path / "model", checkpointing=checkpointing)
    _, output = run_backward(trainee)
    assert not output.requires_grad
    assert output.grad_fn is None
    for name, parameter in trainee.model.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name


def test_checkpointing_changes_no_gradient_of_an_adapter(tmp_path: Path) -> None:
    plain = lora_trainee(tmp_path / "model")
    checkpointed = lora_trainee(tmp_path / "model", checkpointing=Checkpointing.LAYERS)
    assert torch.equal(run_backward(plain)[0], run_backward(checkpointed)[0])
    for (name, want), (_, got) in zip(
        trainable_parameters(plain.model), trainable_parameters(checkpointed.model), strict=True
    ):
        assert want.grad is not None
        assert torch.equal(got.grad, want.grad), name


@pytest.mark.parametrize("lora", [{}, {"dropout": 0.3}, {"dora": True}, {"targets": ["q_proj", "lm_head"]}], ids=str)
def test_under_bf16_frozen_matrices_are_bf16_and_nothing_that_is_computed_changes(
    tmp_path: Path, lora: dict[str, Any]
) -> None:
    want = lora_trainee(tmp_path / "model", lora={"rank": 4, **lora})
    got = lora_trainee(tmp_path / "model", precision=Precision.BF16, lora={"rank": 4, **lora})
    narrow = {name for name, p in got.model.named_parameters() if p.dtype == torch.bfloat16}
    adapted = {name for name, _ in got.model.named_parameters() if ".base_layer." in name}
    assert narrow == (set() if "dora" in lora else adapted)
    assert all(p.dtype == torch.float32 for _, p in trainable_parameters(got.model))
    losses = []
    for trainee in (want, got):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(run_backward(trainee)[0])
    assert torch.equal(*losses)
    for (name, p), (_, q) in zip(trainable_parameters(want.model), trainable_parameters(got.model), strict=True):
        assert p.grad is not None
        assert torch.equal(q.grad, p.grad), name


def test_a_matrix_that_the_embedding_reads_too_is_not_narrowed(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "model", "llama_tied")
    trainee = lora_trainee(tmp_path / "model", lora={"rank": 4, "targets": ["q_proj", "lm_head"]})
    narrow_frozen_matrices(trainee.model, torch.bfloat16)
    narrow = {name.split(".")[-3] for name, p in trainee.model.named_parameters() if p.dtype == torch.bfloat16}
    assert narrow == {"q_proj"}
    assert trainee.model.get_input_embeddings().weight.dtype == torch.float32  # type: ignore[operator]
