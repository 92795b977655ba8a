"""Adapters over 4-bit matrices: the gradients of the unpacked matrices, in less memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sample_documents import random_documents
from step_peak import SETTINGS, measure_peak
from tiny import tiny_folder, tiny_model
from tutelage.config.schema import Config, LoraConfig, Precision, TrainConfig
from tutelage.errors import ConfigError
from tutelage.model.adapters import add_lora
from tutelage.model.attention import NAME
from tutelage.model.head import supervised_losses
from tutelage.model.quantise import nf4_settings, num_values, pack_shapes, quantised_layers, scales_of
from tutelage.pack.batch import pack_batch
from tutelage.train.memory import predict_peak
from tutelage.train.trainee import Start, Trainee, make_trainee

SHAPE = {"hidden_size": 64, "intermediate_size": 128}


def trainee_of(folder: Path, *, quantisation: str = "nf4", **train: Any) -> Trainee:
    if not folder.exists():
        tiny_folder(folder, **SHAPE)
    config = Config.model_validate(
        {
            "model": {"path": str(folder), "quantisation": quantisation},
            "train": {"method": "lora", "lora": {"rank": 4}, **train},
        }
    )
    return make_trainee(config, start=Start.WEIGHTS, device=torch.device("cpu"), precision=Precision.FP32)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for _, parameter in trained:
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    losses = supervised_losses(model, pack_batch(random_documents((9, 30, 14))))
    losses.weighted_sum.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in trained if p.grad is not None}


def unpack_into(plain: torch.nn.Module, quantised: torch.nn.Module) -> None:
    """Give `plain` the values that the packed matrices stand for."""
    from bitsandbytes.functional import dequantize_4bit

    modules = dict(plain.named_modules())
    for name, module in quantised.named_modules():
        if module in quantised_layers(quantised):
            modules[name].weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state).float()


def test_adapters_get_the_gradient_that_they_have_over_the_unpacked_matrices(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="an extra")
    quantised = trainee_of(tmp_path / "model")
    plain = trainee_of(tmp_path / "model", quantisation="none")
    assert len(quantised_layers(quantised.model)) == 2 * 7  # two layers of seven
    unpack_into(plain.model, quantised.model)
    with torch.no_grad():  # as samples and evaluations do between steps
        supervised_losses(quantised.model.eval(), pack_batch(random_documents((9,))))
    want, got = gradients(plain.model), gradients(quantised.model)
    assert want.keys() == got.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_a_packed_matrix_counts_all_its_weights_and_takes_half_a_byte_each(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="an extra")
    quantised = trainee_of(tmp_path / "model")
    plain = trainee_of(tmp_path / "model", quantisation="none")
    assert quantised.num_parameters == plain.num_parameters
    weight = quantised_layers(quantised.model)[0].weight
    assert 2 * weight.nbytes == num_values(weight)


def test_the_peak_is_predicted_with_matrices_unpacked_one_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="an extra")
    quantised = trainee_of(tmp_path / "model").model
    batch = pack_batch(random_documents((200, 150, 90)))
    want = measure_peak(quantised, [batch], SETTINGS, TrainConfig(method="lora"))
    want += sum(tensor.nbytes for layer in quantised_layers(quantised) for tensor in scales_of(layer))
    peak = predict_peak(quantised, batch, SETTINGS, TrainConfig(method="lora"), accumulates=False)
    assert peak.total == pytest.approx(want, rel=0.15)
    gradients(quantised)  # and it computes as before

    with torch.device("meta"):
        unloaded = tiny_model(**SHAPE)
        unloaded.set_attn_implementation(NAME)
        pack_shapes(unloaded, torch.float32)
        unloaded = add_lora(unloaded, LoraConfig(rank=4)).train()
    previewed = predict_peak(unloaded, batch, SETTINGS, TrainConfig(method="lora"), accumulates=False)
    assert previewed.total == pytest.approx(peak.total, rel=0.05)


def test_what_learns_is_not_quantised(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot learn") as error:
        trainee_of(tmp_path / "model", method="full")
    assert error.value.mend == "train.method=lora"


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    with pytest.raises(ConfigError, match="needs bitsandbytes") as error:
        nf4_settings(torch.float32)
    assert error.value.mend == 'pip install "tutelage[low-memory]"'
