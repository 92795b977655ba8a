"""The predicted peak of a step, held against what torch's allocator gave out while the same step was taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sample_documents import random_documents
from step_peak import SETTINGS, measure_peak
from tiny import tiny_model
from tutelage.config.schema import Checkpointing, LoraConfig, Method, Precision, TrainConfig
from tutelage.model.adapters import add_lora
from tutelage.model.attention import NAME, register_attention
from tutelage.model.checkpointing import set_checkpointing
from tutelage.model.head import supervised_losses
from tutelage.model.lora_linear import narrow_frozen_matrices
from tutelage.pack.batch import Batch, pack_batch, pad_batch
from tutelage.train.memory import Allocations, Part, Peak, UnpredictableError, predict_peak, standing_bytes

LENGTHS = (90, 200, 60, 150)
SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "max_position_embeddings": 512}


def model_of(family: str = "llama", *, method: Method = Method.FULL, **changes: Any) -> torch.nn.Module:
    register_attention()
    model = tiny_model(family, **{**SHAPE, "vocab_size": 3000, **changes})
    model.set_attn_implementation(NAME)
    trained: torch.nn.Module = add_lora(model, LoraConfig(rank=4)) if method is Method.LORA else model
    return trained.train()


def batch_of_several() -> Batch:
    return pack_batch(random_documents(LENGTHS))


def assert_predicted(predicted: Peak, measured: int) -> None:
    assert predicted.total == pytest.approx(measured, rel=0.15), predicted.bytes_by_part


@pytest.mark.parametrize("kind", [Checkpointing.NONE, Checkpointing.SELECTIVE, Checkpointing.LAYERS])
@pytest.mark.parametrize("method", list(Method))
def test_the_peak_is_within_15_percent_of_what_is_allocated(method: Method, kind: Checkpointing) -> None:
    config, model, batch = TrainConfig(method=method), model_of(method=method), batch_of_several()
    set_checkpointing(model, kind)
    predicted = predict_peak(model, batch, SETTINGS, config, accumulates=False)
    assert_predicted(predicted, measure_peak(model, [batch], SETTINGS, config))


@pytest.mark.parametrize("family", ["llama_tied", "gemma2", "gpt2", "qwen3", "mistral", "granite"])
def test_the_peak_of_other_architectures_is_predicted_too(family: str) -> None:
    changes = {"n_embd": 64, "n_layer": 3, "n_positions": 512} if family == "gpt2" else {}
    config, model, batch = TrainConfig(), model_of(family, **changes), batch_of_several()
    predicted = predict_peak(model, batch, SETTINGS, config, accumulates=False)
    assert_predicted(predicted, measure_peak(model, [batch], SETTINGS, config))


@pytest.mark.parametrize("method", list(Method))
def test_the_peak_under_bf16_is_predicted_with_its_casts(method: Method) -> None:
    config, model, batch = TrainConfig(method=method), model_of(method=method), batch_of_several()
    if method is Method.LORA:
        narrow_frozen_matrices(model, torch.bfloat16)
    settings = replace(SETTINGS, precision=Precision.BF16)
    predicted = predict_peak(model, batch, settings, config, accumulates=False)
    assert predicted.bytes_by_part[Part.CASTS] > 0
    assert_predicted(predicted, measure_peak(model, [batch], settings, config))


def test_padded_rows_and_steps_of_several_batches_are_predicted() -> None:
    config, model = TrainConfig(), model_of()
    batch = pad_batch(random_documents(LENGTHS))
    alone, several = (predict_peak(model, batch, SETTINGS, config, accumulates=a) for a in (False, True))
    assert several.total > alone.total
    assert_predicted(alone, measure_peak(model, [batch], SETTINGS, config))
    assert_predicted(several, measure_peak(model, [batch, batch], SETTINGS, config))


def test_weights_and_moments_are_counted_to_the_byte_and_frozen_ones_apart() -> None:
    model = model_of(method=Method.LORA)
    parts = predict_peak(model, batch_of_several(), SETTINGS, TrainConfig(), accumulates=True).bytes_by_part
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    counters = 4 * sum(p.requires_grad for p in model.parameters())  # AdamW's step count beside the moments
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert parts[Part.WEIGHTS] == 4 * trained
    assert parts[Part.FROZEN] == 4 * frozen + buffers
    assert parts[Part.OPTIMISER] == 8 * trained + counters
    assert standing_bytes(model)[Part.GRADIENTS] == 4 * trained


def test_predicting_changes_neither_the_model_nor_the_random_state() -> None:
    model, batch = model_of(attention_dropout=0.1), batch_of_several()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(map(id, model.parameters()))
    torch.manual_seed(3)
    random_state = torch.get_rng_state()
    predict_peak(model, batch, replace(SETTINGS, neftune_alpha=5.0), TrainConfig(), accumulates=False)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert list(map(id, model.parameters())) == parameters
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(p.grad is None for p in model.parameters())
    losses = supervised_losses(model, batch)  # and it still computes
    assert torch.isfinite(losses.loss).all()


def test_a_model_without_weights_needs_what_the_one_with_them_needs() -> None:
    batch = batch_of_several()
    loaded = predict_peak(model_of(), batch, SETTINGS, TrainConfig(), accumulates=False)
    with torch.device("meta"):
        unloaded = model_of()
    assert predict_peak(unloaded, batch, SETTINGS, TrainConfig(), accumulates=False) == loaded


def test_what_waits_on_another_device_is_not_counted() -> None:
    with Allocations(torch.device("meta")) as allocations:
        kept = [torch.empty(100, device=device) for device in ("meta", "cpu")]
    assert allocations.peak[Part.SCRATCH] == kept[0].nbytes


class ReadsValues(torch.nn.Module):
    """Chooses what to compute by what it sees."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.module = inner

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return self.module(input_ids[:, : int(input_ids.max())], **kwargs)


def test_a_model_that_reads_values_is_said_to_be_unpredictable_and_left_whole(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = ReadsValues(model_of())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UnpredictableError):
        predict_peak(model, batch_of_several(), SETTINGS, TrainConfig(), accumulates=False)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert capfd.readouterr().err == ""
