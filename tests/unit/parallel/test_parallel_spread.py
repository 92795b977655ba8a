from __future__ import annotations

import pytest
import torch
from torch import nn

from tiny import tiny_model
from tutelage.config.schema import Parallel
from tutelage.errors import ModelError
from tutelage.parallel.shard import decoder_layers
from tutelage.parallel.spread import choose_spread, kept_bytes, memory_of_rank, spread_for

GIB = 2**30
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("asked", "num_ranks", "kept_gib", "expected"),
    [
        (Parallel.AUTO, 8, 39, Parallel.REPLICATE),
        (Parallel.AUTO, 8, 41, Parallel.SHARD),
        (Parallel.SHARD, 8, 1, Parallel.SHARD),
        (Parallel.REPLICATE, 8, 70, Parallel.REPLICATE),
        (Parallel.SHARD, 1, 70, Parallel.REPLICATE),
    ],
)
def test_a_model_is_sharded_where_replicas_would_fill_more_than_half_of_the_memory(
    asked: Parallel, num_ranks: int, kept_gib: int, expected: Parallel
) -> None:
    choice = spread_for(asked, num_ranks=num_ranks, kept_bytes=kept_gib * GIB, memory_bytes=80 * GIB)
    assert choice.name is expected
    if asked is Parallel.AUTO:
        assert f"{kept_gib} GiB" in choice.reason and "80 GiB" in choice.reason


def test_a_single_process_holds_the_model_whole() -> None:
    assert choose_spread(tiny_model(), Parallel.SHARD, CPU).reason == "there is one process"
    assert memory_of_rank(CPU) > 0


def test_frozen_weights_keep_no_gradient_and_no_moments() -> None:
    layer = nn.Linear(10, 10, bias=False)
    assert kept_bytes(layer) == 100 * 4 * 4
    assert kept_bytes(layer.requires_grad_(False).to(torch.bfloat16)) == 100 * 2


def test_the_layers_are_those_that_the_architecture_names_the_outermost_of_each() -> None:
    assert [type(layer).__name__ for layer in decoder_layers(tiny_model("llama"))] == ["LlamaDecoderLayer"] * 2
    assert [type(layer).__name__ for layer in decoder_layers(tiny_model("mamba"))] == ["MambaBlock"] * 2
    with pytest.raises(ModelError, match=r"does not say which of its modules"):
        decoder_layers(nn.Linear(2, 2))
