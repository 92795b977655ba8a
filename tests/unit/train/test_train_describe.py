from __future__ import annotations

import numpy as np
import pytest

from tiny import tiny_model
from tutelage.config.schema import LoraConfig, Precision
from tutelage.model.adapters import add_lora
from tutelage.train.describe import _histogram, estimate_memory


def test_weights_gradients_and_moments_are_counted_to_the_byte() -> None:
    model = tiny_model()
    size = sum(p.numel() for p in model.parameters())
    memory = estimate_memory(model, Precision.FP32, 128, checkpointing=False)
    assert (memory["weights"], memory["gradients"], memory["optimiser"]) == (4 * size, 4 * size, 8 * size)


def test_adapters_need_gradients_and_moments_for_themselves_only() -> None:
    model = add_lora(tiny_model(), LoraConfig(rank=4))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    memory = estimate_memory(model, Precision.FP32, 128, checkpointing=False)
    assert memory["gradients"] == 4 * trained < memory["weights"] / 3


def test_checkpointing_keeps_less() -> None:
    model = tiny_model()
    plain, saved = (estimate_memory(model, Precision.FP32, 128, checkpointing=c)["activations"] for c in (False, True))
    assert 0 < saved < plain / 5


@pytest.mark.parametrize("values", [[1], [5, 5, 5], list(range(1, 5000, 7)), [0]])
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    found = _histogram(np.array(values))
    assert sum(found["counts"]) == len(values)
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert found["edges"] == sorted(set(found["edges"]))
