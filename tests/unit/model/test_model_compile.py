"""Compiled layers: the same losses and gradients, few graphs whatever the packs, and everything but training as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from sample_documents import random_documents
from tiny import tiny_model
from tutelage.config.schema import Checkpointing, LoraConfig
from tutelage.errors import ConfigError
from tutelage.model import compile as compile_module
from tutelage.model.adapters import add_lora
from tutelage.model.attention import NAME, register_attention
from tutelage.model.checkpointing import set_checkpointing
from tutelage.model.compile import compile_layers
from tutelage.model.head import supervised_losses
from tutelage.model.noise import noisy_embeddings
from tutelage.pack.batch import Batch, pack_batch, pad_batch

CPU = torch.device("cpu")

# torch's tracer looks whether any tensor has a gradient, and keeps from the screen the warning that this gives.
pytestmark = pytest.mark.filterwarnings("default:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def nothing_compiled_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin anew, and leave out the last part of compiling, which is to make machine code of a graph: it takes most of the time."""
    monkeypatch.setattr(compile_module, "HOW", {"dynamic": True, "backend": "aot_eager"})
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    register_attention()  # the plain one again


def models_of(family: str, *, lora: bool = False, **changes: Any) -> tuple[Any, Any]:
    """Return a model in training mode, and one with the same weights whose layers are compiled."""
    register_attention()
    pair: list[Any] = []
    for _ in range(2):
        model: Any = tiny_model(family, dtype=torch.float64, **changes)
        model.set_attn_implementation(NAME)
        if lora:
            model = add_lora(model, LoraConfig(rank=4, targets=["q_proj", "up_proj"])).double()
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        pair.append(model.train())
    compile_layers(pair[1], CPU)
    counters.clear()  # of what is compiled to see whether it can be
    return pair[0], pair[1]


def loss_and_gradient(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    model.zero_grad()
    alpha = 0.0 if batch.tree else 5.0  # noise is of a document, and branches share tokens
    with noisy_embeddings(model, batch, alpha=alpha, seed=1, step=2):
        losses = supervised_losses(model, batch)
    losses.weighted_sum.backward()  # type: ignore[no-untyped-call]
    return losses.loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def num_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def tree_of_answers() -> Batch:
    first, second, third = random_documents((30, 25, 28))
    for later in (second, third):
        later.ids[:12] = first.ids[:12]
    return pack_batch([first, second, third], [0, 12, 12])


def packs(count: int) -> list[Batch]:
    random = np.random.default_rng(3)
    return [
        pack_batch(random_documents(tuple(random.integers(2, 40, random.integers(1, 7))), seed=n)) for n in range(count)
    ]


def assert_alike(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_losses_and_gradients_are_those_of_the_plain_layers_in_every_layout() -> None:
    plain, compiled = models_of("llama", attention_dropout=0.1)
    for batch in (*packs(3), tree_of_answers(), pad_batch(random_documents((9, 20, 14)))):
        assert_alike(loss_and_gradient(compiled, batch), loss_and_gradient(plain, batch))
    assert num_graphs() > 0  # and something was compiled


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_those_of_fused_adapters_and_of_layers_of_two_kinds_are_too(family: str) -> None:
    plain, compiled = models_of(family, lora=True)
    for batch in packs(3):
        assert_alike(loss_and_gradient(compiled, batch), loss_and_gradient(plain, batch))
    assert num_graphs() > 0


def test_recomputed_layers_are_compiled_too() -> None:
    plain, compiled = models_of("llama")
    for kind in (Checkpointing.LAYERS, Checkpointing.OFFLOAD):
        set_checkpointing(compiled, kind)
        for batch in packs(2):
            assert_alike(loss_and_gradient(compiled, batch), loss_and_gradient(plain, batch))


def test_packs_of_any_shape_and_layers_of_any_number_share_their_graphs() -> None:
    graphs = {}
    for num_layers in (2, 5):
        torch._dynamo.reset()
        _, compiled = models_of("llama", num_hidden_layers=num_layers)
        loss_and_gradient(compiled, packs(1)[0])
        graphs[num_layers] = num_graphs()
        for batch in packs(20)[1:]:
            loss_and_gradient(compiled, batch)
        assert num_graphs() == graphs[num_layers]
    assert 0 < graphs[5] == graphs[2]


def test_evaluation_and_generation_run_the_layers_as_they_are() -> None:
    plain, compiled = models_of("llama")
    (batch,) = packs(1)
    ids = batch.input_ids[:, :5]
    for model in (plain, compiled):
        model.eval()
    with torch.no_grad():
        assert torch.equal(supervised_losses(compiled, batch).loss, supervised_losses(plain, batch).loss)
        answers = [model.generate(input_ids=ids, max_new_tokens=4, do_sample=False) for model in (compiled, plain)]
    assert torch.equal(*answers)
    assert num_graphs() == 0


def test_machine_code_computes_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    plain, compiled = models_of("llama_tied", attention_dropout=0.1)
    for batch in packs(3):
        for one, other in zip(loss_and_gradient(compiled, batch), loss_and_gradient(plain, batch), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert counters["inductor"]


def test_weights_keep_their_names() -> None:
    plain, compiled = models_of("llama")
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_where_nothing_can_be_compiled_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no working C++ compiler\nsecond line")

    monkeypatch.setattr(compile_module, "_compile_something", no_compiler)
    with pytest.raises(ConfigError, match="no working C") as error:
        compile_layers(tiny_model("llama"), CPU)
    assert error.value.mend is not None and "train.compile=false" in error.value.mend
